"""What a result depends on, as types: one frozen struct per stage of the workflow.

A spec holds only what can change the result. Devices, micro-batches, paths and wall times are *execution*
and live in ``Execution``, which no digest ever sees. Specs travel as canonical JSON (``peftbench.canonical``)
inside the ticket that a job gets, so a job never reads the configuration files.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

FINGERPRINT_EXEMPT = "only types: what a job is given stands in its spec in full, defaults written out"

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""A name that is also part of a path: letters, digits, dot, underscore, hyphen."""
PositiveInt = Annotated[int, Meta(ge=1)]
NonNegativeInt = Annotated[int, Meta(ge=0)]
NonNegativeFloat = Annotated[float, Meta(ge=0.0)]
Connector = Literal["tuned", "frozen"]
Location = Literal["attn", "mlp", "both", "default"]
Precision = Literal["fp32", "bf16"]
Schedule = Literal["cosine", "constant", "linear"]
TrainSize = PositiveInt | Literal["full"]


class Spec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all specs: immutable, keyword-only, no unknown fields."""


class Prompt(Spec, frozen=True, kw_only=True):
    """How an example becomes the user's turn: ``{question}``, ``{choices}``, ``{lettered}`` are filled in."""

    templates: Annotated[list[str], Meta(min_length=1)]
    """With several, one is drawn per example by ``sha256(id) mod n``."""


class Decoding(Spec, frozen=True, kw_only=True):
    """Greedy decoding. The batch size counts as part of the result: half-precision outputs depend on it."""

    max_new_tokens: PositiveInt
    batch_size: PositiveInt


class ModelNames(Spec, frozen=True, kw_only=True):
    """Where the parts of a model are, as module paths of the ``transformers`` class; never leaf names."""

    layers: str
    """Regular expression that matches the path of each decoder layer."""
    attention: list[str]
    """Linear layers of attention, as paths inside a decoder layer."""
    mlp: list[str]
    """Linear layers of the MLP, as paths inside a decoder layer."""
    attention_module: str
    """The attention module, as a path inside a decoder layer."""
    connector: list[str]
    """Module prefixes of the connector (projector, resampler)."""
    vision: list[str]
    """Module prefixes of the vision tower."""
    embeddings: list[str]
    """Module prefixes of the token embeddings and the output head."""
    template: str
    """Chat template: a file of src/peftbench/models/templates/, no suffix."""


class Optim(Spec, frozen=True, kw_only=True):
    """AdamW and its schedule. Learning rates are peaks after warm-up."""

    learning_rate: NonNegativeFloat
    connector_learning_rate: NonNegativeFloat
    weight_decay: NonNegativeFloat = 0.0
    beta1: NonNegativeFloat = 0.9
    beta2: NonNegativeFloat = 0.999
    eps: NonNegativeFloat = 1e-8
    schedule: Schedule = "cosine"
    warmup_ratio: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.03
    max_grad_norm: NonNegativeFloat | None = None


class PrepareSpec(Spec, frozen=True, kw_only=True):
    """One data set in the normalised form, one parquet file per split."""

    dataset: Name
    source: dict[str, Any]
    """``kind`` and the settings of that kind."""
    splits: dict[str, NonNegativeInt]
    """Examples per split."""


class SubsetSpec(Spec, frozen=True, kw_only=True):
    """A nested draw of training examples: a smaller one is the beginning of every larger one of its seed."""

    size: TrainSize
    seed: int


class BaseSpec(Spec, frozen=True, kw_only=True):
    """A base model as a folder in the layout of the Hugging Face hub."""

    model: Name
    source: dict[str, Any]


class TrainSpec(Spec, frozen=True, kw_only=True):
    """One fine-tuning run."""

    model: ModelNames
    prompt: Prompt
    method: Name
    settings: dict[str, Any]
    """The method's full configuration, defaults written out."""
    connector: Connector
    location: Location
    optim: Optim
    epochs: PositiveInt
    global_batch: PositiveInt
    max_length: PositiveInt
    seed: int
    precision: Precision
    eval_loss: bool
    """Whether the loss on the test split is measured after each epoch."""


class PredictSpec(Spec, frozen=True, kw_only=True):
    """Greedy answers of one tuned (or untuned: ``method="base"``) model to one test split."""

    model: ModelNames
    prompt: Prompt
    decoding: Decoding
    method: Name
    settings: dict[str, Any]
    connector: Connector
    location: Location
    precision: Precision
    merge: Literal["auto", "never"] = "auto"
    """Whether methods that merge exactly are merged before generation."""


class ScoreSpec(Spec, frozen=True, kw_only=True):
    """One metric over one set of predictions."""

    metric: Name
    settings: dict[str, Any]


class Execution(Spec, frozen=True, kw_only=True):
    """How a job runs. Nothing here may change a result beyond rounding, so no digest sees any of it."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models run; auto: the GPU where there is one."""
    micro_batch: PositiveInt | None = None
    """Examples per forward pass; null: as many as the global batch, halved when memory runs out."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    workers: NonNegativeInt = 0
    """Data loader processes per job."""
    threads: PositiveInt = 1
    """CPU threads of the numerical libraries per job."""
    worker: Literal["shared", "none"] = "shared"
    """shared: CPU jobs are forks of one process that imported torch once; none: each job imports it."""
    results: str = "results"
    """Folder of all results; relative paths start at the working directory."""
    cache_dir: str | None = None
    """Folder for features of frozen vision towers; null: ``cache`` in the results, if the model allows it."""


SPECS: dict[str, type[Spec]] = {
    "prepare": PrepareSpec,
    "subset": SubsetSpec,
    "build": BaseSpec,
    "train": TrainSpec,
    "predict": PredictSpec,
    "score": ScoreSpec,
}
"""Stage -> type of its spec, for stages with a digest in their path (``peftbench.views`` has the rest)."""
