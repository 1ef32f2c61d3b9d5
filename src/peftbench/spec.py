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
Share = Annotated[float, Meta(ge=0.0, lt=1.0)]
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]
"""What every random generator in use takes."""
Connector = Literal["tuned", "frozen"]
Location = Literal["attn", "mlp", "both", "default"]
Precision = Literal["fp32", "bf16"]
Schedule = Literal["cosine", "constant", "linear"]
TrainSize = PositiveInt | Literal["full"]
Merge = Literal["auto", "never", "always"]
"""Whether a method is merged into the weights before it answers; auto: where that rounds nothing, with fp32 weights."""
Epoch = PositiveInt | Literal["last", "best", "near1", "near2", "near3", "near4"]
"""Whose weights answer: ``best`` has the lowest evaluation loss, ``near1`` to ``near4`` are the epochs nearest to it
in time (the paper's "overfitting epochs", section 5.5); of two equally near the later one comes first."""


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
    constant: list[str] = []
    """Parameters that no run trains, whatever part they are in: fixed position codes."""
    code: str = ""
    """Module of ``peftbench.models`` that registers the architecture, where transformers has none."""
    labels: Literal["answer", "chat_marks"] = "answer"
    """What carries loss: the answer and its end token; or, as in Qwen-VL's official fine-tuning, the marks and
    line ends of all turns too."""


class Optim(Spec, frozen=True, kw_only=True):
    """AdamW and its schedule. Learning rates are peaks after warm-up."""

    learning_rate: NonNegativeFloat
    connector_learning_rate: NonNegativeFloat
    weight_decay: NonNegativeFloat = 0.0
    beta1: Share = 0.9
    beta2: Share = 0.999
    eps: NonNegativeFloat = 1e-8
    schedule: Schedule = "cosine"
    warmup_ratio: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.03
    max_grad_norm: NonNegativeFloat | None = None


class RetrieveSpec(Spec, frozen=True, kw_only=True):
    """One thing to fetch, as it is: a repository of the hub, a file of the web, or local files."""

    hub: str = ""
    """``owner/name`` on the Hugging Face hub."""
    repo_type: Literal["model", "dataset"] = "model"
    """Of a repository on the hub."""
    revision: str = ""
    """Commit, branch or tag of a repository on the hub."""
    files: list[str] = []
    """Glob patterns of the files wanted from the repository; none: all."""
    url: str = ""
    """Address of a single file."""
    sha256: str = ""
    """Of that file; empty: not known, recorded at the first retrieval."""
    content: str = ""
    """Of a local file or folder: the digest of its names and bytes. Where it lies is no part of the identity."""


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
    names: ModelNames | None = None
    """Where its parts are, for the count below."""
    parameters: dict[str, NonNegativeInt] = {}
    """Published parameter counts by component; another count is an error."""


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
    validation: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.0
    """Share of the drawn examples that is not trained on; the loss is measured on them instead of the test split."""
    vision: Connector = "frozen"
    """Whether the vision tower is tuned too (the paper's appendix C), at the connector's learning rate."""
    keep_epochs: bool = False
    """Whether the weights of every epoch are kept, and not the last one's alone."""


class ChooseSpec(Spec, frozen=True, kw_only=True):
    """The best of some trial runs, by the lowest loss on their validation examples after the last epoch."""

    trials: Annotated[list[float], Meta(min_length=1)]
    """Learning rate of each trial; inputs ``trial.0``, ``trial.1`` ... in this order."""


class Exposed(Spec, frozen=True, kw_only=True):
    """One data set of an exposure."""

    dataset: Name
    """Also the name of the input that holds it."""
    prompt: Prompt


class ExposeSpec(Spec, frozen=True, kw_only=True):
    """A full fine-tune of a base model on a mix of data sets, before any method (the paper's appendix A.2).

    Language model, embeddings and connector learn at one rate; the vision tower is frozen.
    """

    model: ModelNames
    mix: Annotated[list[Exposed], Meta(min_length=1)]
    """In this order, each whole; examples are shuffled over all of them."""
    optim: Optim
    epochs: PositiveInt
    global_batch: PositiveInt
    max_length: PositiveInt
    seed: int
    precision: Precision


class PredictSpec(Spec, frozen=True, kw_only=True):
    """Greedy answers of one tuned (or untuned: ``method="base"``) model to one test split, or its losses there."""

    model: ModelNames
    prompt: Prompt
    decoding: Decoding
    method: Name
    settings: dict[str, Any]
    connector: Connector
    location: Location
    precision: Precision
    vision: Connector = "frozen"
    epoch: Epoch = "last"
    """Which of the run's weights."""
    merge: Merge = "auto"
    """Whether the method is merged into the weights before generation."""
    what: Literal["answers", "losses"] = "answers"
    """Answers, or the loss on the reference answers: then nothing is generated."""


class ScoreSpec(Spec, frozen=True, kw_only=True):
    """One metric over one set of predictions."""

    metric: Name
    settings: dict[str, Any]


class JudgeSpec(Spec, frozen=True, kw_only=True):
    """The judgements of another model on one set of predictions."""

    kind: Literal["endpoint", "local", "facts"]
    """endpoint: a chat-completions service; local: a model in a folder, the input ``judge``; facts: a rule, for
    pictures whose contents are known."""
    scale: Name
    """Module of ``peftbench.metrics.scales`` that reads a rating from a reply."""
    prompt: Annotated[str, Meta(min_length=1)]
    """The whole text that the judge gets, with its places to fill in (``peftbench.judging.prompt``)."""
    max_tokens: PositiveInt = 512
    """Of one reply."""
    tolerated: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.05
    """Share of judgements that may fail; with more of them the run has failed. They never get a score."""
    base_url: str = ""
    """Of an endpoint: the address before ``/chat/completions``."""
    model: str = ""
    """Of an endpoint: the model's name there; a dated one, as what an undated one means changes."""
    temperature: NonNegativeFloat | None = 0.0
    """Of an endpoint; null: not sent, for models that refuse it."""
    parameters: dict[str, Any] = {}
    """Of an endpoint: further fields of the request, such as ``seed``."""
    precision: Precision = "fp32"
    """Of a local model. It decodes greedily, one item at a time."""
    names: ModelNames | None = None
    """Of a local model that has a model file: its template is used; null: the template of its tokenizer."""


class Execution(Spec, frozen=True, kw_only=True):
    """How a job runs. Nothing here may change a result beyond rounding, so no digest sees any of it."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models run; auto: the GPU where there is one."""
    micro_batch: PositiveInt | None = None
    """Examples per forward pass; null: as many as the global batch, halved when memory runs out."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    processes: PositiveInt = 1
    """Processes per node that share a training, each with a GPU of its own; they split the global batch."""
    nodes: PositiveInt = 1
    """Nodes that share a training, in a SLURM job with as many."""
    zero_stage: Literal[0, 1, 2, 3, "auto"] | None = None
    """DeepSpeed's ZeRO with several processes: 1 splits the optimizer's state, 2 gradients too, 3 weights too; 0 splits
    nothing. null: plain DDP; auto: the least that fits the GPUs' memory."""
    zero_offload: bool = False
    """With ZeRO: keep the optimizer's state in the CPU's memory, at stage 3 the weights too."""
    checkpoint_interval: NonNegativeFloat = 300.0
    """Seconds between checkpoints of a training; more where writing one takes over a twentieth of that."""
    workers: NonNegativeInt = 0
    """Data loader processes per job."""
    threads: PositiveInt = 1
    """CPU threads of the numerical libraries per job."""
    worker: Literal["shared", "none"] = "shared"
    """shared: CPU jobs are forks of one process that imported torch once; none: each job imports it."""
    results: Annotated[str, Meta(min_length=1)] = "results"
    """Folder of all results; relative paths start at the working directory."""
    mirrors: dict[str, str] = {}
    """Beginnings of web addresses and what to fetch instead, such as an institute's copy of COCO."""
    local: str = ""
    """Where the local files of a retrieval lie; set by the plan."""
    judge_key_variable: Annotated[str, Meta(pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")] = ""
    """Name of the environment variable that holds the key of a judge's endpoint; empty: no key is sent."""
    judge_concurrency: PositiveInt = 4
    """Requests to a judge's endpoint at a time."""
    judge_timeout: Annotated[float, Meta(gt=0.0)] = 120.0
    """Seconds until a request to a judge's endpoint is given up and tried again."""
    judge_attempts: PositiveInt = 6
    """Times that a request to a judge's endpoint is sent before its judgement counts as failed."""
    cache_dir: str | None = None
    """Folder for features of frozen vision towers; null: ``cache`` in the results, if the model allows it."""


SPECS: dict[str, type[Spec]] = {
    "retrieve": RetrieveSpec,
    "prepare": PrepareSpec,
    "subset": SubsetSpec,
    "build": BaseSpec,
    "expose": ExposeSpec,
    "train": TrainSpec,
    "choose": ChooseSpec,
    "predict": PredictSpec,
    "judge": JudgeSpec,
    "score": ScoreSpec,
}
"""Stage -> type of its spec, for stages with a digest in their path (``peftbench.views`` has the rest)."""
