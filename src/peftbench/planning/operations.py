"""Floating-point operations, bytes and memory of training and answering, as closed forms of a model's sizes.

Two operations per multiply-add, attention in full, as ``peftbench.efficiency.flops`` counts them. A frozen weight has
no gradient, but its input has, on the way to what is trainable below it: two more operations per weight and token.
"""

from msgspec import Struct

from peftbench.planning.sizes import Method, Sizes

GIB = 2.0**30
BYTES = {"bf16": 2, "fp32": 4}
OPTIMISED = 16
"""Bytes of a trainable parameter in training: value, gradient and AdamW's two moments, all fp32."""
KEPT_BYTES = 3.0
"""Of a value that a method keeps: its cast to bf16, and a byte of its dropout mask."""
RUNTIME_HOST = 0.45e9
"""Bytes of a process that imported torch, transformers and peft."""
RUNTIME_LIGHT = 0.17e9
"""Bytes of a process that imported polars or pyarrow."""


class Example(Struct, frozen=True, kw_only=True):
    """An average example: tokens."""

    prompt: float
    """With those of the image."""
    answer: float
    """With the end token."""
    images: float = 1.0

    @property
    def length(self) -> float:
        """All of it."""
        return self.prompt + self.answer


class Flops(Struct, frozen=True, kw_only=True):
    """Of one example."""

    forward: float
    backward: float
    recomputed: float = 0.0
    """The forward pass of the layers once more, with gradient checkpointing."""
    vision: float = 0.0
    """Part of ``forward``: the tower's."""

    @property
    def total(self) -> float:
        """All of them."""
        return self.forward + self.backward + self.recomputed


def _layers(sizes: Sizes, method: Method, tokens: float, context: float) -> float:
    """Forward pass of the decoder layers over ``tokens`` that see ``context`` each.

    Every trainable parameter of a method meets every token once: true of low-rank and bottleneck layers, and of a
    prefix, whose keys and values are seen by every token.
    """
    attention = 4.0 * tokens * context * sizes.layers * sizes.heads * sizes.head_dim
    return 2.0 * tokens * (sizes.products + method.added) + attention


def training(
    sizes: Sizes,
    method: Method,
    example: Example,
    connector: bool,
    vision: bool = False,
    cached: bool = False,
    checkpointing: bool = False,
    everything: bool = False,
) -> Flops:
    """Operations of one training example; ``connector`` and ``vision``: whether they are tuned.

    ``cached``: features of the tower are read instead of computed. ``everything``: a full fine-tune but for the tower.
    """
    length = example.length
    layers = _layers(sizes, method, length, length)
    products, attention = (
        2.0 * length * sizes.products,
        layers - 2.0 * length * (sizes.products + method.added),
    )
    head = 2.0 * example.answer * sizes.hidden * sizes.vocabulary
    tower = 0.0 if cached and not vision else example.images * sizes.vision_flops
    join = example.images * sizes.connector_flops
    backward = 0.0
    if method.trains or connector or vision or everything:
        # Nothing below the first layer asks for a gradient unless the connector does.
        through = 1.0 if connector or vision or everything else 1.0 - 0.4 / sizes.layers
        reach = _reach(method, connector or vision)
        own = 2.0 * length * (2 * method.added + method.products) if method.trains else 0.0
        backward = products * through * reach + own + 2.0 * attention * reach + head
        if everything:
            backward += products + head
    if connector or everything:
        backward += join * (sizes.connector_tuned - 1.0)
    if vision:
        backward += 2.0 * tower + (0.0 if connector else join)
    again = layers if checkpointing and backward else 0.0
    if again and not (method.reaches_end or everything):
        # The pass that is run again stops where all is there that the backward pass needs.
        again -= 2.0 * length * sizes.layers * sizes.intermediate * sizes.hidden
    return Flops(
        forward=layers + head + tower + join,
        backward=backward,
        recomputed=again,
        vision=tower,
    )


def _reach(method: Method, further: bool) -> float:
    """Share of the decoder layers that the backward pass goes through; ``further``: to what lies before them."""
    return 1.0 if further or not method.in_place else method.reach


class Answering(Struct, frozen=True, kw_only=True):
    """Generation for one example, and for one pass over a batch."""

    prefill: float
    """Operations."""
    decode: float
    """Operations of all passes after the first."""
    pass_bytes: float
    """Read from memory in each pass, whatever the batch: the weights."""
    cache_bytes: float
    """Read from memory in each pass for each example: its keys and values."""


def answering(
    sizes: Sizes, method: Method, example: Example, steps: float, precision: str, merged: bool, cached: bool
) -> Answering:
    """Greedy generation of ``steps`` tokens after the prompt."""
    size = BYTES[precision]
    added = Method(added=0, kept=0, trains=False, mergeable=False) if merged else method
    head = 2.0 * sizes.hidden * sizes.vocabulary
    tower = 0.0 if cached else sizes.vision_flops
    prefill = _layers(sizes, added, example.prompt, example.prompt) + head
    prefill += example.images * (tower + sizes.connector_flops)
    passes = max(0.0, steps - 1.0)
    middle = example.prompt + passes / 2.0
    return Answering(
        prefill=prefill,
        decode=passes * (_layers(sizes, added, 1.0, middle) + head),
        pass_bytes=size * (sizes.products + sizes.hidden * sizes.vocabulary) + 4.0 * added.added,
        cache_bytes=2.0 * size * middle * sizes.layers * sizes.kv_heads * sizes.head_dim,
    )


class Memory(Struct, frozen=True, kw_only=True):
    """Of one training or answering job on its device, in bytes."""

    weights: float
    trainable: float
    """Values, gradients and optimiser states of what learns."""
    per_example: float
    """Of each example of a micro-batch: what the backward pass keeps, or the cache of keys and values."""
    working: float = 0.0
    """Besides."""

    def at(self, micro_batch: int) -> float:
        """All of it."""
        return self.weights + self.trainable + self.working + micro_batch * self.per_example

    def largest(self, room: float, most: int) -> int:
        """The largest micro-batch that fits: ``most`` halved as often as needed (as the loop does); 0 for none."""
        size = most
        while size > 1 and self.at(size) > room:
            size //= 2
        return size if self.at(size) <= room else 0


def training_memory(
    sizes: Sizes,
    method: Method,
    example: Example,
    precision: str,
    connector: bool,
    vision: bool,
    checkpointing: bool,
    everything: bool = False,
) -> Memory:
    """Memory of training, by what each layer keeps for the backward pass under autocast.

    Per token: inputs of the two norms in fp32, query, key, value and the attention's output, three values of a gated
    MLP; and what the method keeps. Frozen linear layers keep nothing but their weights.
    """
    size = BYTES[precision]
    counts = sizes.parameters
    learns = method.added + method.in_place if method.trains else 0
    copied = method.in_place + (counts.get("connector", 0) if connector and method.on_connector else 0)
    learns += counts.get("connector", 0) if connector else 0
    learns += counts.get("vision", 0) if vision else 0
    frozen = sizes.total - (learns - (method.added if method.trains else 0))
    if everything:
        learns = sizes.total - counts.get("vision", 0)
        frozen = counts.get("vision", 0)
    wide, narrow = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    layer: float = (
        2 * 4 * sizes.hidden + size * (2 * wide + 2 * narrow) + size * len(sizes.mlp) * sizes.intermediate
    )
    reach = _reach(method, connector or vision)
    layer = layer * reach + KEPT_BYTES * method.kept * (size / 2)
    if everything:
        layer += size * (2 * sizes.hidden + wide + sizes.intermediate)
    tokens = example.length
    kept = tokens * sizes.layers * layer
    if checkpointing:
        kept = tokens * (sizes.layers * size * sizes.hidden + layer)
    logits = example.answer * sizes.vocabulary * (size + 4 + 4)
    tower = size * sizes.vision_activations if vision else size * sizes.vision_activations / 24 / 4
    return Memory(
        weights=float(size * frozen),
        trainable=float(OPTIMISED * learns) + (size * method.copies + method.further) * copied,
        per_example=kept + logits + example.images * tower,
        working=0.02 * size * sizes.total,
    )


def answering_memory(sizes: Sizes, method: Method, example: Example, steps: float, precision: str) -> Memory:
    """Memory of generation: weights, the cache, and the widest layer's values over the prompt."""
    size = BYTES[precision]
    cache = 2 * size * sizes.layers * sizes.kv_heads * sizes.head_dim * (example.prompt + steps)
    widest = example.prompt * size * (3 * sizes.intermediate + 4 * sizes.hidden)
    return Memory(
        weights=float(size * sizes.total + 4 * method.added + (4 - size) * method.in_place),
        trainable=0.0,
        per_example=cache + widest + 4.0 * sizes.vocabulary,
        working=0.02 * size * sizes.total,
    )
