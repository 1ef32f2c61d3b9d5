"""Floating-point operations of the real graph, counted by torch while it runs on the meta device.

Counted are matrix products and convolutions, two operations per multiply-add, as
``torch.utils.flop_counter`` does; element-wise work (norms, activations, softmax, dropout) is not. Attention
is counted in full: kernels that skip the masked half of the scores do fewer, so ``Flops.attention`` is kept
apart. In the backward pass attention costs twice its forward pass, without the recomputation inside fused
kernels.

Nothing is computed on the meta device, so questions about values have no answer there; see ``_Guards``. The
image and the text are therefore run one after the other: what the image costs does not depend on the text,
and a tuned connector changes the text's part only by asking for a gradient of its input. That the sum equals
the whole graph is tested on models with values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from peftbench.models.arch import decoder_layers

if TYPE_CHECKING:
    from peftbench.spec import ModelNames

PRODUCTS = ("mm", "mv", "dot", "conv", "linear", "attention")
"""Parts of the names of operators that multiply matrices; one that torch has no count for is an error."""


class Flops(msgspec.Struct, frozen=True):
    """Operations by part of the model; ``attention`` (scores and weighted values) is part of ``language``."""

    vision: int = 0
    connector: int = 0
    language: int = 0
    """The decoder layers, with what a method put into them."""
    head: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.vision + self.connector + self.language + self.head

    def __add__(self, other: Flops) -> Flops:
        return weighted([(1, self), (1, other)])


def weighted(terms: Sequence[tuple[int, Flops]]) -> Flops:
    """Weighted sum, part by part."""
    names = Flops.__struct_fields__
    return Flops(*(sum(weight * getattr(flops, name) for weight, flops in terms) for name in names))


class ImageCosts(msgspec.Struct, frozen=True):
    """What one image costs in vision tower and connector; all zero for text alone."""

    tokens: int = 0
    """That it becomes in the language model."""
    forward: Flops = Flops()
    training: Flops = Flops()
    """Forward, and backward to what is trainable."""
    differentiable: bool = False
    """Whether the backward pass has to come back to the image's tokens: a tuned connector."""


class Costs(msgspec.Struct, frozen=True):
    """What one example costs: ``prompt`` tokens (those of the image too) and ``answer`` tokens.

    Logits are computed where the loop and the generation of this package compute them: for the answer, and
    for the next token.
    """

    prompt: int
    answer: int
    forward: Flops
    """Forward pass in training."""
    training: Flops
    """Forward and backward pass, gradients only for what is trainable."""
    recomputed: Flops
    """The same with gradient checkpointing: the decoder layers' forward pass runs twice."""
    prefill: Flops
    """Generation: the pass over the prompt, which gives the first token of the answer."""
    decoding: Flops
    """Generation: the passes for the other tokens of the answer, with a cache."""

    @property
    def per_token(self) -> float:
        """Operations of one decoding pass, averaged over the answer; 0 where one token is all of it."""
        return self.decoding.total / (self.answer - 1) if self.answer > 1 else 0.0


class _Guards(TorchDispatchMode):
    """Answers yes to questions about values, and refuses matrix products that would go uncounted.

    The only such question that a text without padding raises is transformers' "is this one sequence?".
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            if args[0].dtype is not torch.bool:
                raise RuntimeError("the model asks for a value of a tensor that has none on the meta device")
            return True
        packet = func.overloadpacket
        name = packet.__name__
        if (
            any(part in name for part in PRODUCTS)
            and packet not in flop_registry
            and not func._can_decompose()
        ):
            raise RuntimeError(f"torch.utils.flop_counter does not count aten.{name}")
        return func(*args, **(kwargs or {}))


class _Root(nn.Module):
    """Runs a function as the forward of a module above the model.

    Torch names modules from the outermost one that is called; the paths of a vision tower that is called by
    itself would else begin with its own class.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, run: Callable[[], object]) -> None:
        run()


def count(model: nn.Module, names: ModelNames, run: Callable[[], object]) -> Flops:
    """Operations of ``run()``, which calls ``model`` (the base model, with whatever was put into it).

    Attention runs as plain matrix products, whatever kernel the device would take: torch counts those of the
    CPU's kernel as nothing. Raises ``RuntimeError`` for an operator that cannot be counted.
    """
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter, _Guards():
        _Root(model)(run)
    counts = counter.get_flop_counts()

    def of(prefix: str) -> dict[Any, int]:
        return counts.get(f"{_Root.__name__}.model.{prefix}", {})

    def under(prefixes: Sequence[str]) -> int:
        return sum(sum(of(prefix).values()) for prefix in prefixes)

    # A connector may lie inside the vision tower (Qwen-VL's resampler).
    inside = [path for path in names.connector if any(path.startswith(v + ".") for v in names.vision)]
    vision, connector, head = (
        under(names.vision) - under(inside),
        under(names.connector),
        under(names.embeddings),
    )
    products = {torch.ops.aten.bmm, torch.ops.aten.baddbmm}
    attention = sum(
        n for path in decoder_layers(model, names) for op, n in of(path).items() if op in products
    )
    total = sum(counts.get("Global", {}).values())
    return Flops(vision, connector, total - vision - connector - head, head, attention)


def image_costs(model: Any, names: ModelNames, pixels: Sequence[int]) -> ImageCosts:
    """What one image with ``pixel_values`` of shape ``pixels`` costs ``model`` as it is set to train."""
    parameter = next(model.parameters())
    values = torch.empty(tuple(pixels), dtype=parameter.dtype, device=parameter.device)
    features: list[torch.Tensor] = []

    def forward() -> None:
        found = model.get_image_features(pixel_values=values)
        found = getattr(found, "pooler_output", found)
        features[:] = [found] if isinstance(found, torch.Tensor) else list(found)

    def backward() -> None:
        forward()
        if any(tensor.requires_grad for tensor in features):
            sum(tensor.sum() for tensor in features).backward()  # type: ignore[union-attr]

    both = count(model, names, backward)
    differentiable = any(tensor.requires_grad for tensor in features)
    once = both
    if differentiable:
        with torch.no_grad():
            once = count(model, names, forward)
    _forget_gradients(model)
    tokens = sum(tensor.numel() // tensor.shape[-1] for tensor in features)
    return ImageCosts(tokens, once, both, differentiable)


def training_pass(
    model: Any, names: ModelNames, length: int, answer: int, through: bool, recompute: bool = False
) -> Flops:
    """Forward and backward pass over ``length`` tokens with logits for ``answer`` of them, without the image.

    ``through``: gradients flow on through the input embeddings, to a tuned connector. ``recompute``: with
    gradient checkpointing of the decoder layers.
    """
    device = next(model.parameters()).device
    ids = torch.zeros((1, length), dtype=torch.long, device=device)
    keep = torch.arange(length - answer, length, device=device)

    def open_gate(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        output.requires_grad_(True)

    def run() -> None:
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits
        if logits.requires_grad:
            logits.sum().backward()

    model.train()
    if recompute:
        model.activation_checkpointing_enable({"use_reentrant": False})
        # transformers makes all embeddings differentiable, the vision tower's patches too, which would send
        # the backward pass through the frozen tower.
        model.disable_input_require_grads()
    gate = model.get_input_embeddings().register_forward_hook(open_gate) if through else None
    try:
        return count(model, names, run)
    finally:
        if gate is not None:
            gate.remove()
        if recompute:
            model.activation_checkpointing_disable()
        _forget_gradients(model.eval())


def forward_pass(model: Any, names: ModelNames, length: int, answer: int) -> Flops:
    """The forward pass of ``training_pass`` alone."""
    device = next(model.parameters()).device
    ids = torch.zeros((1, length), dtype=torch.long, device=device)
    keep = torch.arange(length - answer, length, device=device)
    with torch.no_grad():
        return count(model, names, lambda: model(input_ids=ids, use_cache=False, logits_to_keep=keep))


def generation(model: Any, names: ModelNames, prompt: int, steps: int) -> list[Flops]:
    """Greedy generation with a cache: the prompt's pass, then ``steps`` passes of one token each."""
    device = next(model.parameters()).device
    ids = torch.zeros((1, prompt), dtype=torch.long, device=device)
    cache: list[Any] = []

    def fill() -> None:
        cache.append(model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values)

    def step() -> None:
        model(input_ids=ids[:, :1], use_cache=True, past_key_values=cache[0], logits_to_keep=1)

    with torch.no_grad():
        return [count(model, names, fill), *(count(model, names, step) for _ in range(steps))]


def keep_layers(model: nn.Module, names: ModelNames, kept: int) -> None:
    """Drop all but the first ``kept`` decoder layers, in place."""
    first = next(iter(decoder_layers(model, names)))
    stack: Any = model.get_submodule(first.rpartition(".")[0])
    del stack[kept:]


def _forget_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = None


def measure(
    model: Any,
    names: ModelNames,
    image: ImageCosts,
    text: int,
    answer: int,
    whole: bool = False,
) -> Costs:
    """What one example with one image costs ``model``, which a method may have been put into.

    ``image`` is from ``image_costs`` of the same model and connector setting, ``text`` the tokens of the
    prompt besides the image's. Layers after the first are alike, so the model is cut to two layers and to
    one, in place, and the rest is arithmetic; ``whole`` runs all of them instead, slower, to the same result.
    """
    prompt = image.tokens + text
    length = prompt + answer
    layers = len(decoder_layers(model, names))

    def run() -> list[Flops]:
        return [
            forward_pass(model, names, length, answer),
            training_pass(model, names, length, answer, image.differentiable),
            training_pass(model, names, length, answer, image.differentiable, recompute=True),
            *generation(model, names, prompt, 2),
        ]

    if whole or layers < 3:
        results = run()
    else:
        keep_layers(model, names, 2)
        two = run()
        keep_layers(model, names, 1)
        one = run()
        results = [weighted([(layers - 1, b), (2 - layers, a)]) for a, b in zip(one, two, strict=True)]
    forward, training, recomputed, prefill, first, second = results
    # Each pass sees one token more than the one before: an arithmetic series.
    passes = answer - 1
    pairs = passes * (passes - 1) // 2
    return Costs(
        prompt=prompt,
        answer=answer,
        forward=forward + image.forward,
        training=training + image.training,
        recomputed=recomputed + image.training,
        prefill=prefill + image.forward,
        decoding=weighted([(passes - pairs, first), (pairs, second)]),
    )
