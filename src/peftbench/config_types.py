"""The configuration files as types. ``config/README.md`` and the schemas say what stands below each field."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from peftbench.spec import (
    Connector,
    Execution,
    ModelNames,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Precision,
    Prompt,
    Schedule,
    Seed,
    Share,
)
from peftbench.views import Choice, Summary

StudyName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]*$")]
"""Also the name of a Snakemake target: lower-case letters, digits, underscores."""
Average = Literal["all", "seen", "unseen"]


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all configuration types."""


class Lineup(Config, frozen=True, kw_only=True):
    """The models and data sets that ``lineup`` stands for in a study's axes."""

    models: list[Name]
    """Files of ``config/models``, without suffix."""
    datasets: list[Name]
    """Files of ``config/datasets``, without suffix, in the order of the tables' columns."""


class Training(Config, frozen=True, kw_only=True):
    """How every run trains, unless a study says otherwise. PEFT learning rates belong to the methods."""

    epochs: PositiveInt = 3
    """Passes over the training examples."""
    global_batch: PositiveInt = 128
    """Examples per optimiser step, whatever the number of devices and the micro-batch."""
    max_length: PositiveInt = 2048
    """Longest sequence in tokens, image patches included."""
    precision: Precision | None = None
    """Type of the frozen weights in training and prediction: fp32 or bf16; null: as the model's file says."""
    eval_loss: bool = False
    """Measure the loss on the test split after each epoch."""
    connector_learning_rate: NonNegativeFloat = 2e-5
    """Peak learning rate of the connector, where it is tuned."""
    weight_decay: NonNegativeFloat = 0.0
    """Of AdamW."""
    beta1: Share = 0.9
    """Of AdamW."""
    beta2: Share = 0.999
    """Of AdamW."""
    eps: NonNegativeFloat = 1e-8
    """Of AdamW."""
    schedule: Schedule = "cosine"
    """Learning rate after warm-up: cosine (to 0), linear (to 0) or constant."""
    warmup_ratio: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.03
    """Share of the steps in which the learning rate rises from 0."""
    max_grad_norm: NonNegativeFloat | None = None
    """Gradients are clipped to this norm; null: not clipped, as in the paper's LLaVA runs."""


class Evaluation(Config, frozen=True, kw_only=True):
    """How answers are generated."""

    batch_size: PositiveInt = 16
    """Examples generated together. Part of a result's identity: half-precision outputs depend on it."""
    merge: Literal["auto", "never", "always"] = "auto"
    """auto: methods that merge exactly (LoRA, IA3) are merged into the weights before generation, in fp32; always: in
    bf16 too, and a method that cannot be merged is an error."""


class Identity(Config, frozen=True, kw_only=True):
    """Which installed packages are part of a result's identity."""

    packages: list[str] = field(default_factory=lambda: ["torch", "transformers", "peft", "tokenizers"])
    """Packages that can change results; each counts in the stages whose code imports it."""
    granularity: Literal["major", "minor", "patch", "none"] = "minor"
    """Part of the version that counts: with minor, 2.13.0 and 2.13.1 are the same, 2.14.0 is not."""


class Exposure(Config, frozen=True, kw_only=True):
    """The full fine-tune on the seen data sets that the paper describes (A.2), for runs with ``exposure: true``.

    Its released scripts start from the public checkpoints instead, and so do runs here unless a study says otherwise.
    """

    datasets: list[Name] | Literal["seen"] = "seen"
    """What the base model is shown: data sets, or all of the lineup that are ``seen``."""
    learning_rate: NonNegativeFloat = 2e-5
    """Peak learning rate of all that learns (the paper's)."""
    epochs: PositiveInt = 1
    """Passes over the mix; the paper does not say how many, LLaVA-1.5's own fine-tuning makes one."""
    global_batch: PositiveInt = 128
    """Examples per optimiser step (the paper's)."""
    seed: Seed = 42
    """Of the order of examples."""


class Judge(Config, frozen=True, kw_only=True):
    """Who rates the answers that no rule can score (MMHal-Bench). Its key is no setting: see ``execution``."""

    kind: Name = "endpoint"
    """A module of ``peftbench.judging``: ``endpoint``, a chat-completions service; ``local``, a model of ours;
    ``facts``, a rule for pictures whose contents are known."""
    base_url: str = "https://api.openai.com/v1"
    """Of an endpoint: the address before ``/chat/completions``."""
    model: str = "gpt-4o-2024-11-20"
    """Of an endpoint: its model, a dated one. Of a local judge: a file of ``config/models``, without suffix."""
    temperature: NonNegativeFloat | None = 0.0
    """Of an endpoint; null: not sent."""
    parameters: dict[str, Any] = {}
    """Of an endpoint: further fields of its requests, such as ``seed``."""
    prompt_file: str = ""
    """A text file with the judge's prompt; empty: our own, ``src/peftbench/metrics/scales/<metric>.txt``."""
    max_tokens: PositiveInt = 512
    """Of one reply."""
    tolerated: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.05
    """Share of judgements that may fail; they never get a score."""


class Report(Config, frozen=True, kw_only=True):
    """What the page of a study shows."""

    gallery: NonNegativeInt = 4
    """Test images per data set, with the answer of each method."""


class MainConfig(Config, frozen=True, kw_only=True):
    """``config/config.yaml``: what to run, and how."""

    lineup: Lineup
    """What ``lineup`` stands for in studies."""
    studies: list[StudyName]
    """The studies that a plain ``snakemake`` makes."""
    seeds: Annotated[list[Seed], Meta(min_length=1)] = field(default_factory=lambda: [42])
    """Seeds of training (initialisation, data order, dropout) and of subsets; studies may name their own."""
    training: Training = Training()
    """Settings of training."""
    methods: dict[Name, dict[str, Any]] = {}
    """Settings per method that differ from its defaults (``src/peftbench/methods/<method>.py``)."""
    stand_ins: dict[Name, Name] = {}
    """Models and data sets to use in the place of those that studies name: a tiny model for a large one."""
    reduce: dict[StudyName, dict[str, Any]] = {}
    """Changes of studies, key by key: the same studies with fewer seeds, epochs or rows."""
    evaluation: Evaluation = Evaluation()
    """Settings of prediction."""
    identity: Identity = Identity()
    """Which package versions make another result."""
    report: Report = Report()
    """Contents of the page."""
    exposure: Exposure = Exposure()
    """The full fine-tune before the methods, where a study has the axis ``exposure``."""
    judge: Judge = Judge()
    """Who rates answers where a metric needs a judge."""
    execution: Execution = Execution()
    """How jobs run: nothing here changes a result's identity, so nothing here causes reruns."""


class ModelConfig(Config, frozen=True, kw_only=True):
    """``config/models/<name>.yaml``: one base model."""

    title: str
    """Name in tables and figures."""
    stands_for: str = ""
    """What the paper's tables call it; empty: its own name."""
    extends: Name | None = None
    """Another model whose file this one changes: what is not given here is as there, mappings key by key. Unless
    ``source`` is given, both are one base model on disk."""
    source: dict[str, Any]
    """``kind`` (a module of ``peftbench.models.sources``), the settings of that kind, and ``from``: what is fetched."""
    names: ModelNames
    """Where its parts are."""
    parameters: dict[str, NonNegativeInt] = {}
    """Published parameter counts by component; checked against the built model where given."""
    architecture: Literal[""] | Name = ""
    """File of ``config/architectures``, without suffix: the full-size configuration, for counting parameters and
    operations without the weights."""
    published_vocabulary: PositiveInt | None = None
    """Rows of the embeddings that published parameter counts refer to, where the checkpoint has others."""
    seen_data: dict[str, list[str]] = {}
    """What it was trained on before: phase -> names of data sets (``stands_for`` of those of this benchmark)."""
    cache_vision: bool = False
    """Whether features of the frozen vision tower may be kept between runs: saves time, costs disk."""
    precision: Precision = "bf16"
    """Type of the frozen weights, unless the training settings name one."""
    training: dict[str, Any] = {}
    """Training settings of this model that differ from those of ``config.yaml``; a study's come last."""
    methods: dict[Name, dict[str, Any]] = {}
    """Settings per method that suit this model better than the method's own defaults; those of
    ``config.yaml``, of a study and of its axes count more."""


class Metric(Config, frozen=True, kw_only=True):
    """Which metric scores a data set."""

    name: Name
    """A module of ``peftbench.metrics``."""
    settings: dict[str, Any] = {}
    """Settings of that metric."""


class DatasetDecoding(Config, frozen=True, kw_only=True):
    """How long answers get."""

    max_new_tokens: PositiveInt
    """Most tokens generated per answer."""


class DatasetConfig(Config, frozen=True, kw_only=True):
    """``config/datasets/<name>.yaml``: one data set."""

    title: str
    """Name in figures and on the page."""
    table_label: str
    """Column heading in tables."""
    stands_for: str
    """Column of the paper's tables that it is or imitates."""
    seen: bool
    """Whether the base models were trained on this task before."""
    source: dict[str, Any]
    """``kind`` (a module of ``peftbench.data.sources``), the settings of that kind, and ``from``: what is fetched."""
    evaluation_only: bool = False
    """There is no training split: models tuned on other data sets are tested here."""
    splits: dict[Name, NonNegativeInt]
    """Examples per split: train (unless ``evaluation_only``) and test."""
    prompt: Prompt
    """Wording of the user's turn."""
    metric: Metric
    """How answers are scored."""
    decoding: DatasetDecoding
    """Length of answers."""


class Published(Config, frozen=True, kw_only=True):
    """Which published values stand beside ours: a file, and what its columns are called here."""

    file: Name
    """File of ``paper/tables``, without suffix."""
    value: str = "score"
    """Its column with the values."""
    columns: dict[str, str] = {}
    """Axis -> text with the file's columns in braces, such as ``"{hyperparameter} {value}"``. A column that is
    called as its axis needs no entry."""
    values: dict[str, dict[str, Any]] = {}
    """Column of the file -> word there -> word here."""
    scale: dict[str, float] = {}
    """Word of a row -> factor on its value, where the file counts otherwise (0.7 for our 70)."""
    where: dict[str, str] = {}
    """Axes that all values of the file share: the model of a table about one model."""


class Tuning(Config, frozen=True, kw_only=True):
    """The same number of trials of the learning rate for every method; the best on validation examples counts."""

    factors: Annotated[list[NonNegativeFloat], Meta(min_length=1)]
    """Learning rates tried, as multiples of each method's own."""
    validation: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.1
    """Share of the training examples that the trials are compared on, and that nobody trains on."""


class Gallery(Config, frozen=True, kw_only=True):
    """Test examples with the answers of a study's runs: on its page and, of the kind ``gallery``, as its figure."""

    examples: PositiveInt = 1
    """How many of each data set."""
    choose: Choice = "random"
    """Which ones: ``random``, drawn by the hash of their ids; ``base_right_others_wrong``, the same of those that only
    the untuned model gets right."""


class StudyConfig(Config, frozen=True, kw_only=True):
    """``config/studies/<name>.yaml``: one table, its figure and its page, as a view over runs."""

    title: str
    """Heading of the table, the figure and the page."""
    extends: StudyName | None = None
    """Another study whose file this one changes: what is not given here is as there, mappings key by key."""
    group: Literal[""] | StudyName = ""
    """Target that makes all studies of the same group."""
    axes: dict[str, Any]
    """The grid: ``model``, ``dataset``, ``method`` (required), ``target`` (data sets to test on, where they are not
    the ones tuned on), ``connector``, ``vision``, ``exposure`` (false, true), ``location``, ``train_size``, ``seed``,
    ``epoch`` (whose weights answer), ``merge`` (auto, never, always: into the weights, before answering), any key of
    ``training``, any setting of a method (``rank``, or ``lora.rank`` for one method). Each is a value or a list;
    ``model`` and ``dataset`` also take ``lineup``, ``dataset`` and ``target`` take ``seen`` and ``unseen``."""
    grids: list[dict[str, Any]] = []
    """Several grids in one study: each entry holds axes that come on top of ``axes``, or in the place of some."""
    kind: Name = "table"
    """What is made: ``table``, of scored runs with its figure and its page; or a table that describes, a module of
    ``peftbench.analysis.descriptions``, which needs of the axes only those that it shows."""
    runs_of: Literal[""] | StudyName = ""
    """Of a table that describes: the study whose runs it shows too (their memory, time and scores). Empty: none."""
    figure: Name = "dots"
    """Kind of the figure: a module of ``peftbench.analysis.figures``."""
    gallery: Gallery | None = None
    """Examples that the study shows; None: on its page those of ``report.gallery``."""
    metric: Metric | None = None
    """Metric instead of the data sets' own."""
    measures: dict[str, str] = {}
    """Several numbers of each scored run: name -> path into the facts of its record, such as ``extra.rate``. They are
    the axis ``measure``; none: the metric's value alone."""
    people: str | None = None
    """Of a study whose answers people mark (``peftbench annotate``): the ``hallucination.json`` that ``annotate count``
    wrote, relative to the project's folder. Its counts stand beside the metric's values, each with its source. Empty:
    nobody has counted yet, which the table says."""
    short: Literal["refuse", "all"] = "refuse"
    """What ``train_size`` means where a data set has fewer examples: a mistake, or all of them."""
    exclude: list[dict[str, Any]] = []
    """Combinations to leave out: each entry maps axes to a value or a list of values; ``target: same`` is the data set
    itself."""
    include_base: bool | Literal["each"] = False
    """Add the untuned base model as a row; ``each``: as a row for each data set tuned on, tested on what that one's
    runs are tested on."""
    summaries: dict[Name, Summary | None] = {}
    """Further columns: name -> ``title`` and either ``over``, the columns (or summaries before it; ``own``: the data
    set tuned on) that it is the mean of (``by: harmonic``: the harmonic mean; ``change: true``: minus the same of the
    untuned base), or ``cost``: ``parameters``, ``memory`` or ``seconds`` of training. null: not this one
    of a study that is extended."""
    pairs: list[tuple[str, str]] = []
    """Of the figure ``pareto``: the summaries of each panel, across and up."""
    tuning: Tuning | None = None
    """Equal tuning budget: each method gets the same number of trials of its learning rate. None: each method's rate is
    taken as it is, as in the paper."""
    training: dict[str, Any] = {}
    """Training settings of this study that differ from those of ``config.yaml``."""
    methods: dict[Name, dict[str, Any]] = {}
    """Settings per method that differ from those of ``config.yaml``."""
    columns: str = "dataset"
    """The axis across the table."""
    rows: list[str] = field(default_factory=lambda: ["model", "method", "connector"])
    """The axes down the table, outermost first."""
    averages: list[Average] = []
    """Averages over the columns: all, seen, unseen."""
    published: Published | None = None
    """Published values to stand beside ours."""
    note: str = ""
    """What these numbers do and do not tell; one line on the page."""


class Defaults(Config, frozen=True, kw_only=True):
    """Values of the axes that a study does not name."""

    connector: Connector = "tuned"
    location: Literal["default"] = "default"
    train_size: Literal["full"] = "full"


FILES: dict[str, type[Config]] = {
    "config": MainConfig,
    "model": ModelConfig,
    "dataset": DatasetConfig,
    "study": StudyConfig,
}
"""Name of a schema -> type of the files it describes."""
