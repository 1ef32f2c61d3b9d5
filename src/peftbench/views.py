"""What the tables, figures and pages are made from: views over runs.

They are kept apart from ``peftbench.spec``: they change with the layout of a table, never with a result.
"""

from typing import Any, Literal

from msgspec import field

from peftbench.claims_types import Claims
from peftbench.spec import Connector, Location, ModelNames, Name, NonNegativeInt, Spec, TrainSize

FINGERPRINT_EXEMPT = "only types: what a job is given stands in its spec in full, defaults written out"


Choice = Literal["random", "base_right_others_wrong"]
"""Which test examples a gallery shows: drawn by the hash of their ids, of all or of those that only the untuned model
gets right."""


class ModelInfo(Spec, frozen=True, kw_only=True):
    """What a table or page says about a model."""

    name: Name
    title: str
    stands_for: str = ""
    """What the paper's tables call it."""
    parameters: dict[str, int]
    """Published parameter counts by component, where the model's file gives them."""


class DatasetInfo(Spec, frozen=True, kw_only=True):
    """What a table or page says about a data set."""

    name: Name
    title: str
    label: str
    """Column heading."""
    stands_for: str
    """Column of the paper's tables that this set is or imitates."""
    seen: bool
    """Whether the base models saw this task before fine-tuning."""
    metric: Name


class Cell(Spec, frozen=True, kw_only=True):
    """One scored run of a study: its coordinates and where its scores are."""

    model: Name
    dataset: Name
    """What the run was tuned on."""
    target: Name
    """What it was tested on."""
    method: Name
    connector: Connector
    location: Location
    train_size: TrainSize
    seed: int
    axes: dict[str, Any]
    """Values of the study's further axes (hyperparameters), in the study's order."""
    measure: str = ""
    """Which number of the scores; empty: the metric's value."""
    scores: str
    """Folder of the scores, relative to the results; its parent holds the predictions, the next the run."""


class PeopleCount(Spec, frozen=True, kw_only=True):
    """What people counted in the answers of one method at one epoch."""

    method: Name
    epoch: str
    """Its number; "" where the study has no epochs."""
    answers: str
    """Digest of the predictions that they read."""
    hallucinated: int
    n: int
    low: float
    high: float
    """Bounds of the 95 % interval of the rate, 0-100."""


class People(Spec, frozen=True, kw_only=True):
    """People's counts beside a metric's values; none yet where ``annotators`` is 0."""

    annotators: int = 0
    agreement: str = ""
    """Kappa with its interval, or why there is none."""
    counts: list[PeopleCount] = field(default_factory=list)


class Summary(Spec, frozen=True, kw_only=True):
    """A further column of a table: what follows from others, or what a row's runs cost."""

    title: str
    """Heading."""
    over: list[str] = field(default_factory=list)
    """Columns, or summaries that stand before this one, that it is over; ``own`` is the data set tuned on."""
    by: Literal["mean", "harmonic"] = "mean"
    """Arithmetic or harmonic mean of them, all with the same weight."""
    change: bool = False
    """The same minus that of the untuned base on the same data sets."""
    cost: Literal["", "parameters", "memory", "seconds"] = ""
    """Instead of ``over``: trainable parameters (the connector's too), peak memory of training in GiB, or seconds of
    training, from the records of the runs; means over a row's runs."""


class TabulateSpec(Spec, frozen=True, kw_only=True):
    """A table as a view over runs."""

    study: Name
    title: str
    columns: str
    """The axis across the table."""
    rows: list[str]
    """The axes down the table, outermost first."""
    averages: list[str]
    """Which averages over the columns are added: ``all``, ``seen``, ``unseen``."""
    measures: dict[str, str] = field(default_factory=dict)
    """Name of a measure -> path into the facts of a scores' record."""
    summaries: list[tuple[str, Summary]] = field(default_factory=list)
    """Further columns with their names, in order, data sets by the names that they have here."""
    base: Literal["once", "each"] = "once"
    """Whether the untuned base stands there once, or for each data set that is tuned on."""
    published: str | None
    """Name of the file of published values, without folder and suffix."""
    published_rows: list[dict[str, str]]
    """The published values themselves, one mapping per line of that file: axes by our names, and ``score``."""
    models: list[ModelInfo]
    datasets: list[DatasetInfo]
    cells: list[Cell]
    people: People | None = None
    """Of a table whose numbers people may count too: what they counted. Then it says the source of each number."""
    metric: str = ""
    """The metric that its values are from, where it is not that of each data set."""


class PlotSpec(Spec, frozen=True, kw_only=True):
    """The figure of a study, drawn from its table."""

    study: Name
    title: str
    kind: str = "dots"
    """A module of ``peftbench.analysis.figures``."""
    gallery: NonNegativeInt = 0
    """Test examples shown per data set, where it is a gallery."""
    choose: Choice = "random"
    """Which ones."""
    runs: TabulateSpec | None = None
    """The runs whose answers a gallery shows."""
    columns: str = "dataset"
    """The axis across the study's table."""
    summaries: list[tuple[str, Summary]] = field(default_factory=list)
    """Those of the table."""
    labels: dict[str, str] = field(default_factory=dict)
    """What data sets are called that runs are tuned on."""
    pairs: list[tuple[str, str]] = field(default_factory=list)
    """Summaries that a figure of two dimensions shows: across, and up."""


class BlessedCode(Spec, frozen=True, kw_only=True):
    """Code of a stage whose results count as those of older code, as somebody proved (``peftbench bless``)."""

    stage: str
    date: str
    changes: list[str]
    """Modules that differ."""
    proofs: list[str]
    """How the results were compared, and of which runs."""


class ReportSpec(Spec, frozen=True, kw_only=True):
    """The page of a study: table, figure, training curves, gallery."""

    study: Name
    title: str
    note: str
    """What the numbers of this study do and do not tell."""
    gallery: NonNegativeInt
    """Test images shown per data set."""
    choose: Choice = "random"
    """Which ones."""
    table: TabulateSpec
    blessed: list[BlessedCode]
    """Of the stages that its results come from."""


class ClaimsSpec(Spec, frozen=True, kw_only=True):
    """What the paper claims, and the numbers to hold against it."""

    claims: Claims
    """As read from ``config/claims.yaml``."""
    studies: list[TabulateSpec]
    """The studies that exist of those that the claims name."""
    published: dict[str, list[dict[str, str]]]
    """The published tables that the claims name, by file name without suffix: one mapping per line."""


class DescribedModel(Spec, frozen=True, kw_only=True):
    """A model as tables describe it."""

    name: Name
    title: str
    stands_for: str
    seen_data: dict[str, list[str]]
    """Phase of its making -> data sets."""
    template: str
    precision: str
    training: dict[str, Any]
    """Settings of training of its runs."""
    methods: dict[str, dict[str, Any]]
    """Settings of each method on it."""
    names: ModelNames
    architecture: dict[str, Any]
    """Content of its ``config.json`` at full size; empty: not known."""
    vocabulary: int | None
    """Rows of the embeddings that published counts refer to."""


class DescribedDataset(Spec, frozen=True, kw_only=True):
    """A data set as tables describe it."""

    name: Name
    label: str
    stands_for: str
    seen: bool
    metric: Name
    templates: list[str]
    max_new_tokens: int
    data: str
    """Folder of the prepared data, relative to the results."""


class DescribedVariant(Spec, frozen=True, kw_only=True):
    """A method on a model with settings and a place, of a study that describes several of them."""

    model: Name
    method: Name
    location: Location
    settings: dict[str, Any]
    """All of the method's."""
    given: dict[str, Any]
    """Those that the study's axes name."""


class DescribeSpec(Spec, frozen=True, kw_only=True):
    """A table that describes a study; its rows come from the module of its kind."""

    study: Name
    title: str
    kind: Name
    note: str
    models: list[DescribedModel]
    datasets: list[DescribedDataset]
    published_rows: list[dict[str, str]]
    variants: list[DescribedVariant] = field(default_factory=list)
    """Every combination of a study with the axis ``location`` or several grids."""
    runs: TabulateSpec | None = None
    """Another study, whose runs a table may show beside what it describes."""


VIEWS: dict[str, type[Spec]] = {
    "tabulate": TabulateSpec,
    "plot": PlotSpec,
    "report": ReportSpec,
    "describe": DescribeSpec,
    "claims": ClaimsSpec,
}
"""Stage -> type of its spec."""
