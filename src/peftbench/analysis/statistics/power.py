"""What would settle an undecided comparison: more seeds, more test items, or neither.

The variance of an effect has a part that shrinks with items, a part that shrinks with seeds, and one that
shrinks with both: ``(item + rest / seeds) / items + seed / seeds``. Power is that of a two-sided t test with
Satterthwaite's degrees of freedom.
"""

import math
from collections.abc import Callable, Sequence

from msgspec import Struct

from peftbench.analysis.statistics.items import Items
from peftbench.analysis.statistics.paired import Weighted, cluster_sums, item_contrast
from peftbench.analysis.statistics.result import ALPHA, NotComputable
from peftbench.analysis.statistics.seeds import variance_components

POWER = 0.8
MOST_SEEDS = 1000
MOST_FACTOR = 1e6
"""Beyond this many seeds, or times the test items, the answer is: none."""


class Part(Struct, frozen=True, kw_only=True):
    """Variances of the contrast on one test set, weights of its runs and strata included."""

    items: int
    item: float
    """Variance of one item's contrast, inflated where items share images; with one seed it holds ``rest`` too."""
    rest: float
    """Part of one item's contrast that changes from seed to seed."""
    seed: float | None
    """Variance of the contrast of whole runs from seed to seed; None: unknown."""
    df: float
    """Degrees of freedom of ``seed`` per further seed."""


class Plan(Struct, frozen=True, kw_only=True):
    """What would show ``difference`` with the target power."""

    difference: float
    power_now: float
    """With the items and seeds there are; where ``seed_known`` is False, for these trained models only."""
    seeds_now: int
    items_now: int
    seeds_needed: int | None
    """Seeds per run with the items there are; None: no number is enough, or it is unknown."""
    items_needed: int | None
    """Test items in all with the seeds there are; None: no number is enough."""
    seed_known: bool
    hours_per_seed: float | None
    """Machine hours that one more seed of all runs costs, from their records; None: not recorded."""
    unit: str = "machine hours"

    @property
    def hours(self) -> float | None:
        """What the seeds that are missing cost."""
        if self.seeds_needed is None or self.hours_per_seed is None:
            return None
        return max(0, self.seeds_needed - self.seeds_now) * self.hours_per_seed

    def __str__(self) -> str:
        head = f"power {self.power_now:.2f} for a difference of {self.difference:.2g}"
        if not self.seed_known:
            head += " between these trained models (seed variance unknown: run a second seed before planning more)"
        parts = [head]
        if self.items_needed is None:
            why = "seed variance dominates" if self.seed_known else "the difference is too small"
            parts.append(f"no number of test items can settle it: {why}")
        elif self.items_needed > self.items_now:
            parts.append(f"{self.items_needed:,} test items would settle it (there are {self.items_now:,})")
        if self.seed_known:
            if self.seeds_needed is None:
                parts.append("no number of seeds can settle it with these test items")
            elif self.seeds_needed > self.seeds_now:
                cost = "" if self.hours is None else f", about {self.hours:.3g} more {self.unit}"
                parts.append(f"{self.seeds_needed} seeds would settle it (there are {self.seeds_now}{cost})")
        return "; ".join(parts)


def parts_of(strata: Sequence[Weighted]) -> list[Part] | NotComputable:
    """Variance parts of a contrast, one per test set, estimated from its runs."""
    if not strata:
        return NotComputable("no test set")
    share = 1 / len(strata)
    found = []
    for runs in strata:
        sums, counts = cluster_sums(item_contrast(runs), runs[0][1].clusters)
        if len(sums) < 2:
            return NotComputable("one test item (or image) only")
        n = int(counts.sum())
        deviation = sums - sums.sum() / n * counts
        item = float((deviation**2).sum()) * len(sums) / (len(sums) - 1) / n
        components = [(weight, run, variance_components(run)) for weight, run in runs]
        if any(isinstance(c, NotComputable) or c.seed is None for _, _, c in components):
            found.append(Part(items=n, item=share**2 * item, rest=0.0, seed=None, df=0))
            continue
        rest = sum(w**2 * (c.rest or 0.0) for w, _, c in components if not isinstance(c, NotComputable))
        seed = sum(w**2 * (c.seed or 0.0) for w, _, c in components if not isinstance(c, NotComputable))
        seeds = min(len(run.scores) for _, run in runs)
        alone = max(0.0, item - rest / seeds)
        found.append(
            Part(items=n, item=share**2 * alone, rest=share**2 * rest, seed=share**2 * seed, df=len(runs))
        )
    return found


def plan(
    parts: Sequence[Part],
    difference: float,
    seeds: int,
    *,
    hours_per_seed: float | None = None,
    unit: str = "machine hours",
    power: float = POWER,
    alpha: float = ALPHA,
) -> Plan | NotComputable:
    """Seeds, or test items, that would show ``difference`` with ``power`` at level ``alpha``."""
    if not parts:
        return NotComputable("no test set")
    if difference == 0 or not math.isfinite(difference):
        return NotComputable("no difference to look for: name the smallest one that matters")
    known = all(part.seed is not None for part in parts)

    def reached(seeds: int, factor: float) -> float:
        return _power(parts, abs(difference), seeds, factor, alpha)

    items_now = sum(part.items for part in parts)
    factor = _least(lambda f: reached(seeds, f) >= power, 1.0, MOST_FACTOR)
    most = _least_int(lambda s: reached(s, 1.0) >= power, seeds, MOST_SEEDS) if known else None
    return Plan(
        difference=abs(difference),
        power_now=reached(seeds, 1.0),
        seeds_now=seeds,
        items_now=items_now,
        seeds_needed=most,
        items_needed=None if factor is None else math.ceil(items_now * factor - 1e-9),
        seed_known=known,
        hours_per_seed=hours_per_seed,
        unit=unit,
    )


def _power(parts: Sequence[Part], difference: float, seeds: int, factor: float, alpha: float) -> float:
    from scipy.stats import nct, norm, t

    by_items = sum((part.item + part.rest / seeds) / (part.items * factor) for part in parts)
    by_seeds = sum((part.seed or 0.0) / seeds for part in parts)
    variance = by_items + by_seeds
    if variance == 0:
        return 1.0
    shift = difference / math.sqrt(variance)
    freedom = sum(part.df for part in parts) * (seeds - 1)
    df = variance**2 / (by_seeds**2 / freedom) if by_seeds > 0 and freedom > 0 else math.inf
    if df > 500:
        z = float(norm.ppf(1 - alpha / 2))
        return float(norm.sf(z - shift) + norm.cdf(-z - shift))
    z = float(t.ppf(1 - alpha / 2, df))
    if shift > 30:
        return 1.0
    return float(nct.sf(z, df, shift) + nct.cdf(-z, df, shift))


def _least(enough: Callable[[float], bool], low: float, high: float) -> float | None:
    """Least factor in [low, high] by bisection on its logarithm; None where even ``high`` is not enough."""
    if enough(low):
        return low
    if not enough(high):
        return None
    while high / low > 1.0005:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _least_int(enough: Callable[[int], bool], low: int, high: int) -> int | None:
    if enough(low):
        return low
    if not enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def plan_comparison(
    left: Items, right: Items, difference: float | None = None, *, hours_per_seed: float | None = None
) -> Plan | NotComputable:
    """Plan for two configurations on one test set; the observed difference unless one is wished for."""
    if left.ids != right.ids:
        return NotComputable("the runs were scored on different test items")
    parts = parts_of([[(1.0, left), (-1.0, right)]])
    if isinstance(parts, NotComputable):
        return parts
    wanted = left.value - right.value if difference is None else difference
    return plan(parts, wanted, min(len(left.scores), len(right.scores)), hours_per_seed=hours_per_seed)


def blocks_needed(
    effect: float, deviation: float, *, power: float = POWER, alpha: float = ALPHA
) -> int | None:
    """Blocks (data sets) in all that would show a mean difference with this deviation between blocks."""
    from scipy.stats import norm
    from statsmodels.stats.power import TTestPower

    if effect == 0 or not math.isfinite(effect) or not math.isfinite(deviation):
        return None
    if deviation == 0:
        return 2
    size = abs(effect) / deviation
    z = float(norm.ppf(1 - alpha / 2))
    about = ((z + float(norm.ppf(power))) / size) ** 2 + z**2 / 2  # the last term: t instead of normal
    if about > 200:
        return math.ceil(about) if about < MOST_FACTOR else None
    found = TTestPower()
    return _least_int(lambda n: float(found.power(size, n, alpha)) >= power, 2, 250)
