"""The claims file (``config/claims.yaml``) as types: sentences of the paper, and the comparison each one is."""

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, field

from peftbench.spec import Spec

FINGERPRINT_EXEMPT = "only types: what a job is given stands in its spec in full, defaults written out"

Scalar = str | int | float | bool
Select = dict[str, Scalar | list[Scalar]]
"""Axis -> the value or values that are meant."""


class Published(Spec, frozen=True, kw_only=True):
    """The published numbers of a claim."""

    table: str
    """File of ``paper/tables``, without suffix."""
    value: str = ""
    """Its column of values; empty: the first of score, mean, value."""
    better: Literal["higher", "lower"] = "higher"
    """Which values of that column are better."""
    where: Select = field(default_factory=dict)
    """Which rows are meant, besides what the test says."""
    seeds: Annotated[int, Meta(ge=1)] = 1
    """Runs behind each row."""
    items: int | dict[str, int] = 0
    """Test items behind each value, or that by data set; 0: unknown. With them, the error of a mean of scores
    between 0 and ``scale`` is at most that of a share."""
    scale: float = 100.0
    """Score of a test item that is all right."""
    fixed: Select = field(default_factory=dict)
    """Coordinates that all rows of the file have and no column says."""


class Ours(Spec, frozen=True, kw_only=True):
    """Which numbers of our runs a claim is about, where it is not their score."""

    column: str = "score"
    """Column of ``examples.parquet``."""
    fact: str = ""
    """A number of the training record's facts instead, as a dotted path."""
    better: Literal["", "higher", "lower"] = ""
    """Which values are better; empty: as the score's record says."""


class _Test(Spec, frozen=True, kw_only=True):
    """What all tests have."""

    where: Select = field(default_factory=dict)
    """Runs that it is about."""
    blocks: list[str] = field(default_factory=list)
    """Axes whose values make the blocks (data sets): the two sides are compared within each."""
    average: list[str] = field(default_factory=list)
    """Axes that are averaged over before comparing."""
    each: list[str] = field(default_factory=list)
    """Axes: one comparison for each of their values."""
    quantifier: Literal["all", "most"] = "all"
    """How many of these comparisons have to hold."""
    by: Literal["blocks", "items"] = "blocks"
    """The sample: blocks (would it hold on other data sets?) or test items (does it hold on these?)."""


class Difference(_Test, frozen=True, kw_only=True):
    """One side scores better than the other, on average."""

    statistic: ClassVar[str] = "difference"
    left: Select
    right: Select
    """The two sides."""
    direction: Literal["greater", "less", "same"] = "greater"
    """What the claim says of left against right: better, worse, or within ``margin``."""
    margin: Annotated[float, Meta(ge=0)] = 0.0
    """By how much, in points of the metric; with ``relative`` in percent of the right side."""
    relative: bool = False
    """Compare in percent of the right side."""


class Best(_Test, frozen=True, kw_only=True):
    """Some of the alternatives are the best ones."""

    statistic: ClassVar[str] = "best"
    over: list[str]
    """Axes whose combinations are the alternatives."""
    target: list[Select]
    """Those said to be best: each is compared with every other one."""
    figure: bool = False
    """Draw the critical-difference diagram."""


class Trend(_Test, frozen=True, kw_only=True):
    """Scores rise, or fall, along an axis."""

    statistic: ClassVar[str] = "trend"
    along: str
    """The axis, in numerical order."""
    direction: Literal["rising", "falling"] = "rising"
    """Of how good the scores are."""


class ShareOf(_Test, frozen=True, kw_only=True):
    """One side is better than the other in most blocks, however much."""

    statistic: ClassVar[str] = "share"
    left: Select
    right: Select
    """The two sides."""
    direction: Literal["greater", "less"] = "greater"
    """What the claim says of left against right."""


class Spread(_Test, frozen=True, kw_only=True):
    """Scores of different seeds are spread more on one side, or more with growing values of an axis."""

    statistic: ClassVar[str] = "spread"
    left: Select = field(default_factory=dict)
    right: Select = field(default_factory=dict)
    """The two sides, or:"""
    along: str = ""
    """the axis, in numerical order."""
    direction: Literal["greater", "less", "rising", "falling"] = "greater"
    """Of the spread: left against right, or along the axis."""


Test = Difference | Best | Trend | ShareOf | Spread
TESTS: dict[str, type[Test]] = {kind.statistic: kind for kind in (Difference, Best, Trend, ShareOf, Spread)}
"""Value of ``statistic`` -> type of the test."""


class Claim(Spec, frozen=True, kw_only=True):
    """One sentence of the paper."""

    quote: str
    """The sentence, shortened."""
    place: str
    """Where it stands."""
    study: str = ""
    """The study of ours that it is about; empty: none."""
    published: Published | None = None
    """The published numbers that it is about."""
    ours: Ours = Ours()
    """Which of our numbers."""
    test: dict[str, Any]
    """``statistic``, and the settings of that test."""
    note: str = ""
    """What to keep in mind."""
    alpha: Annotated[float, Meta(gt=0, lt=1)] = 0.05
    """Level of the test."""


class Claims(Spec, frozen=True, kw_only=True):
    """The whole file."""

    title: str
    """Heading of the page."""
    familiarity: dict[str, list[str]] = field(default_factory=dict)
    """Value of the derived axis ``familiarity`` -> columns of the paper's tables."""
    aliases: dict[str, list[str]] = field(default_factory=dict)
    """Derived axis -> axes that it may stand under, the first one that a run has counts; ``method.axis`` is for
    runs of that method."""
    levels: dict[str, Scalar] = field(default_factory=dict)
    """Other spellings of values."""
    claims: dict[str, Claim]
    """By id."""
