"""How much of a score is luck of the seed: variance components of runs that differ in their seed only.

Every seed answers the same items, so scores are a crossed design without replication:
``y[s, i] = mean + item[i] + seed[s] + rest[s, i]``. The ANOVA (Henderson I) estimators are those of REML
where both are positive; negative ones are set to 0.
"""

from collections.abc import Sequence

from msgspec import Struct

from peftbench.analysis.statistics.items import Items
from peftbench.analysis.statistics.result import NotComputable


class Components(Struct, frozen=True, kw_only=True):
    """Variances on the squared scale of the metric."""

    items: int
    seeds: int
    item: float
    """Between items, what all seeds have in common; with one seed it holds ``rest`` too."""
    seed: float | None
    """Of a run's whole score from seed to seed, beyond what items explain; None: unknown (one seed)."""
    rest: float | None
    """Of one item's score from seed to seed; None: unknown (one seed)."""
    spread: float | None = None
    """Standard deviation of the score over seeds, as papers print it; None: unknown (one seed)."""
    spread_low: float | None = None
    spread_high: float | None = None
    """95 % interval of ``spread`` (chi-square, normal seeds)."""

    def __str__(self) -> str:
        if self.spread is None or self.spread_low is None or self.spread_high is None:
            return "spread over seeds unknown: one seed"
        return (
            f"spread over {self.seeds} seeds {self.spread:.2f} "
            f"(95 % interval {self.spread_low:.2f} to {self.spread_high:.2f})"
        )


def variance_components(run: Items) -> Components | NotComputable:
    """Item, seed and remaining variance of one configuration; needs two items, and two seeds for the seed part."""
    import numpy as np
    from scipy.stats import chi2

    y = np.asarray(run.scores, dtype=np.float64)
    y = y[:, ~np.isnan(y).any(axis=0)]
    seeds, items = y.shape
    if items < 2:
        return NotComputable("one test item only")
    if seeds == 1:
        total = float(np.var(y[0], ddof=1))
        return Components(items=items, seeds=1, item=total, seed=None, rest=None)
    by_item, by_seed, mean = y.mean(axis=0), y.mean(axis=1), y.mean()
    ms_item = seeds * float(((by_item - mean) ** 2).sum()) / (items - 1)
    ms_seed = items * float(((by_seed - mean) ** 2).sum()) / (seeds - 1)
    residual = y - by_item[np.newaxis, :] - by_seed[:, np.newaxis] + mean
    ms_rest = float((residual**2).sum()) / ((items - 1) * (seeds - 1))
    spread = float(np.sqrt(ms_seed / items))
    high, low = chi2.ppf([0.025, 0.975], seeds - 1)
    return Components(
        items=items,
        seeds=seeds,
        item=max(0.0, (ms_item - ms_rest) / seeds),
        seed=max(0.0, (ms_seed - ms_rest) / items),
        rest=ms_rest,
        spread=spread,
        spread_low=spread * float(np.sqrt((seeds - 1) / low)),
        spread_high=spread * float(np.sqrt((seeds - 1) / high)),
    )


class SpreadTest(Struct, frozen=True, kw_only=True):
    """A contrast of spreads over seeds."""

    factor: float
    """Ratio of standard deviations that the contrast amounts to."""
    low: float
    high: float
    """95 % interval of the factor."""
    p: float
    """Two-sided, against a factor of 1."""
    cells: int
    """Standard deviations that went into it."""


def spread_contrast(
    spreads: Sequence[float],
    seeds: Sequence[int],
    weights: Sequence[float],
    *,
    draws: int = 40_000,
    seed: int = 0,
) -> SpreadTest | NotComputable:
    """Test a weighted sum of log standard deviations against 0; ``factor`` is its exponential.

    Weights that sum to 0 make it independent of the level. Its distribution under equal spreads is that of
    logarithms of chi-squares over their degrees of freedom: exact for normal seeds, drawn by Monte Carlo.
    """
    import numpy as np

    s, n, w = (np.asarray(x, dtype=np.float64) for x in (spreads, seeds, weights))
    if len(s) < 2:
        return NotComputable("fewer than two spreads to compare")
    if (n < 2).any():
        return NotComputable("one seed: the spread over seeds is unknown")
    if (s <= 0).any():
        return NotComputable("the seeds of a configuration gave equal scores: no spread to take a ratio of")
    if abs(w.sum()) > 1e-9 * np.abs(w).sum() or not np.abs(w).sum():
        return NotComputable("no contrast of spreads: the axis has one level only")
    observed = float((w * np.log(s)).sum())
    rng = np.random.default_rng(seed)
    df = n - 1
    null = 0.5 * (np.log(rng.chisquare(df, size=(draws, len(df))) / df) @ w)
    below, above = ((1 + int(c)) / (draws + 1) for c in ((null >= observed).sum(), (null <= observed).sum()))
    low, high = np.quantile(null, [0.025, 0.975])
    return SpreadTest(
        factor=float(np.exp(observed)),
        low=float(np.exp(observed - high)),
        high=float(np.exp(observed - low)),
        p=min(1.0, 2 * min(below, above)),
        cells=len(s),
    )
