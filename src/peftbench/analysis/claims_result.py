"""What a claim comes to: comparisons, and a verdict."""

from typing import Literal

from msgspec import Struct

from peftbench.analysis.statistics.ranks import Ranking

Verdict = Literal["supported", "refuted", "undecided", "not run"]


class Comparison(Struct, frozen=True, kw_only=True):
    """One comparison and what it says of the claim."""

    name: str
    """What tells it from the claim's other comparisons; empty where there is one only."""
    outcome: Verdict
    holds: bool | None = None
    """Whether the numbers as they stand agree with the claim, whatever their error."""
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    """95 % interval."""
    p: float | None = None
    """Two-sided, against the claim's threshold."""
    unit: str = "points"
    blocks: int = 0
    dropped: int = 0
    """Blocks left out because a number is missing."""
    reason: str = ""
    """Why it cannot be computed, or what else to know."""
    settle: str = ""
    """What would settle an undecided one."""
    ranking: Ranking | None = None


class Finding(Struct, frozen=True, kw_only=True):
    """A claim on one source of numbers."""

    claim: str
    source: Literal["ours", "paper"]
    verdict: Verdict
    comparisons: list[Comparison] = []
    runs: int = 0
    missing: int = 0
    """Runs of the study that the claim needs and that have no number."""
    reason: str = ""
    scope: str = ""
    """Models and data sets that it was tested on."""
    on_items: str = ""
    """Where blocks are the sample: the verdict with the test items as the sample, on these data sets alone."""

    @property
    def holding(self) -> int:
        """Comparisons whose numbers agree with the claim as they stand."""
        return sum(c.holds is True for c in self.comparisons)

    @property
    def decisive(self) -> Comparison | None:
        """The comparison that speaks least for the claim."""
        scored = [c for c in self.comparisons if c.p is not None] or [
            c for c in self.comparisons if c.effect is not None
        ]
        rank = {"refuted": 0, "undecided": 1, "supported": 2, "not run": 3}
        sign = {"refuted": 1, "undecided": -1, "supported": -1, "not run": 0}
        return min(
            scored,
            key=lambda c: (rank[c.outcome], c.holds is True, sign[c.outcome] * (c.p or 0.0)),
            default=None,
        )
