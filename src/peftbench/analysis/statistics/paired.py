"""Paired bootstrap over test items: is one run better than another on the same test set?

The statistic is a linear contrast of runs, per item: for two runs their difference, for the mean of two
methods against a third the weights 1/2, 1/2, -1. Resampled are items, or images where items share one, so
what the runs have in common cancels. Several test sets are strata: each is resampled on its own, and the
effect is the plain mean over them.

Where every run of the contrast has several seeds, the spread between seeds is part of the interval (Student's
t with Satterthwaite's degrees of freedom, added to the item draws). With one seed it is unknown, not zero:
``seed_stderr`` is None, and the interval is about these trained models only.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from peftbench.analysis.statistics.items import Items
from peftbench.analysis.statistics.result import NotComputable

if TYPE_CHECKING:
    import numpy as np

REPLICATES = 10_000
CHUNK = 4_000_000
"""Draws held in memory at once."""
Weighted = Sequence[tuple[float, Items]]
"""The runs of one contrast on one test set with their weights."""


class Bootstrap(Struct, frozen=True, kw_only=True):
    """The bootstrap distribution of a contrast; intervals and p values are read from it."""

    effect: float
    draws: "np.ndarray"
    """Of the effect, sorted, [replicates]."""
    stderr: float
    items: int
    clusters: int
    seeds: int
    """Fewest seeds of any run in the contrast."""
    seed_stderr: float | None
    """The part of ``stderr`` that comes from seeds; None: unknown, because a run has one seed only."""
    seed_df: float | None = None
    acceleration: float = 0.0
    """Of BCa intervals."""
    method: Literal["percentile", "bca"] = "percentile"

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Ends of the interval."""
        import numpy as np
        from scipy.stats import norm

        tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
        if self.method == "bca" and self.draws[0] < self.draws[-1]:
            z0, z = self._bias(), norm.ppf(tails)
            tails = norm.cdf(z0 + (z0 + z) / (1 - self.acceleration * (z0 + z)))
        low, high = np.quantile(self.draws, tails)
        return float(low), float(high)

    def p(self, threshold: float = 0.0) -> float:
        """Two-sided: twice the smaller share of draws on either side of ``threshold``.

        It is the level at which the interval just reaches the threshold, and never below what flipping the
        signs of so few clusters could give (2 / 2**clusters).
        """
        import numpy as np
        from scipy.stats import norm

        count = len(self.draws)
        slack = 1e-12 * max(1.0, abs(threshold), abs(self.effect))
        below = (1 + int(np.searchsorted(self.draws, threshold + slack, side="right"))) / (count + 1)
        above = (1 + count - int(np.searchsorted(self.draws, threshold - slack, side="left"))) / (count + 1)
        p = 2 * min(below, above)
        if self.method == "bca" and self.draws[0] < self.draws[-1] and max(below, above) < 1:
            z0 = self._bias()
            w = float(norm.ppf((below + 1 - above) / 2)) - z0
            z = w / (1 + self.acceleration * w) - z0
            p = float(2 * norm.sf(abs(z)))
        return min(1.0, max(p, 2.0 ** (1 - self.clusters) if self.clusters < 64 else 0.0))

    def _bias(self) -> float:
        """z0 of BCa; draws equal to the effect count half."""
        import numpy as np
        from scipy.stats import norm

        left = np.searchsorted(self.draws, self.effect, side="left")
        right = np.searchsorted(self.draws, self.effect, side="right")
        share = (left + right) / 2 / len(self.draws)
        edge = 1 / (len(self.draws) + 1)
        return float(norm.ppf(min(max(share, edge), 1 - edge)))


def paired_bootstrap(
    left: Items,
    right: Items,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
    method: Literal["percentile", "bca"] = "percentile",
) -> Bootstrap | NotComputable:
    """The difference ``left`` minus ``right`` of two configurations on one test set."""
    return contrast([[(1.0, left), (-1.0, right)]], replicates=replicates, seed=seed, method=method)


def contrast(
    strata: Sequence[Weighted],
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
    method: Literal["percentile", "bca"] = "percentile",
) -> Bootstrap | NotComputable:
    """The mean over test sets of a weighted sum of runs, with its bootstrap distribution.

    ``seed`` fixes the draws. BCa is for one seed per run: with seed noise the distribution is symmetrised anyway,
    and the percentiles are used.
    """
    import numpy as np

    if not strata:
        return NotComputable("no test set")
    rng = np.random.default_rng(seed)
    draws = np.zeros(replicates)
    effect, cubes, squares, items, clusters = 0.0, 0.0, 0.0, 0, 0
    for runs in strata:
        if any(run.ids != runs[0][1].ids for _, run in runs):
            return NotComputable("the runs were scored on different test items")
        sums, counts = cluster_sums(item_contrast(runs), runs[0][1].clusters)
        if len(sums) < 2:
            return NotComputable("one test item (or image) only")
        mean = float(sums.sum() / counts.sum())
        influence = (sums - mean * counts) / counts.sum() / len(strata)
        effect += mean / len(strata)
        squares += float((influence**2).sum()) * len(sums) / (len(sums) - 1)
        cubes += float((influence**3).sum())
        items += int(counts.sum())
        clusters += len(sums)
        draws += resampled_means(sums, counts, replicates, rng) / len(strata)
    variance, df = _seed_variance(strata)
    if variance is not None and df is not None and variance > 0:
        draws = draws + np.sqrt(variance) * rng.standard_t(df, size=replicates)
        method = "percentile"
    draws.sort()
    return Bootstrap(
        effect=effect,
        draws=draws,
        stderr=float(np.sqrt(squares + (variance or 0.0))),
        items=items,
        clusters=clusters,
        seeds=min(len(run.scores) for runs in strata for _, run in runs),
        seed_stderr=None if variance is None else float(np.sqrt(variance)),
        seed_df=df,
        acceleration=cubes / (6 * squares**1.5) if squares > 0 else 0.0,
        method=method,
    )


def item_contrast(runs: Weighted) -> "np.ndarray":
    """The weighted sum of runs per item, [items]; NaN where one of them has no score."""
    import numpy as np

    return np.asarray(sum(weight * run.scores.mean(axis=0) for weight, run in runs))


def cluster_sums(scores: "np.ndarray", clusters: "np.ndarray | None") -> tuple["np.ndarray", "np.ndarray"]:
    """Sum and number of items per cluster, [clusters] each; items that are NaN do not count."""
    import numpy as np

    there = ~np.isnan(scores)
    scores = scores[there]
    if clusters is None:
        return scores, np.ones(len(scores))
    _, own = np.unique(clusters[there], return_inverse=True)
    return np.bincount(own, weights=scores), np.bincount(own).astype(np.float64)


def resampled_means(sums: "np.ndarray", counts: "np.ndarray", replicates: int, rng: Any) -> "np.ndarray":
    """Means over resamples of clusters, [replicates].

    A resample depends only on how often each distinct (sum, count) is drawn. Differences of scores take few
    values, so these multinomial counts are drawn instead: the same bootstrap at a fraction of the cost.
    """
    import numpy as np

    groups = len(sums)
    distinct, multiplicity = np.unique(np.round(sums, 9) + 1j * counts, return_counts=True)
    if len(distinct) * 8 < groups:
        drawn = rng.multinomial(groups, multiplicity / groups, size=replicates)
        return np.asarray((drawn @ distinct.real) / (drawn @ distinct.imag))
    means = np.empty(replicates)
    step = max(1, CHUNK // groups)
    for start in range(0, replicates, step):
        picked = rng.integers(0, groups, size=(min(step, replicates - start), groups), dtype=np.int32)
        means[start : start + len(picked)] = sums[picked].sum(axis=1) / counts[picked].sum(axis=1)
    return means


def _seed_variance(strata: Sequence[Weighted]) -> tuple[float | None, float | None]:
    """Variance of the effect from seeds, and its degrees of freedom; None where a run has one seed."""
    import numpy as np

    parts = []
    for runs in strata:
        for weight, run in runs:
            seeds = len(run.scores)
            if seeds < 2:
                return None, None
            spread = float(np.var(np.nanmean(run.scores, axis=1), ddof=1))
            parts.append(((weight / len(strata)) ** 2 * spread / seeds, seeds - 1))
    total = sum(part for part, _ in parts)
    if total == 0:
        return 0.0, float(sum(df for _, df in parts))
    return total, float(total**2 / sum(part**2 / df for part, df in parts))
