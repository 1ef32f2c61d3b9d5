"""Effects over blocks: the mean of differences, one per data set, and what a sign test of them says."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from peftbench.analysis.statistics.result import NotComputable

if TYPE_CHECKING:
    import numpy as np

EXACT = 14
"""Up to this many blocks all sign flips are tried, beyond as many random ones."""
FEWEST = 6
"""Fewer blocks cannot reach 5 % by sign flips."""


class BlockMean(Struct, frozen=True, kw_only=True):
    """The mean of one difference per block, blocks as a sample."""

    differences: list[float]
    effect: float
    stderr: float

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The thresholds that the sign-flip test does not reject; Student's t with too few blocks for that."""
        from scipy.stats import t

        half = float(t.ppf((1 + confidence) / 2, len(self.differences) - 1)) * self.stderr
        if 2.0 ** (1 - len(self.differences)) >= 1 - confidence or half == 0:
            return self.effect - half, self.effect + half
        return self._end(-half, 1 - confidence), self._end(half, 1 - confidence)

    def _end(self, step: float, alpha: float) -> float:
        """Where, from the effect in the direction of ``step``, the test begins to reject."""
        inside, outside = self.effect, self.effect + step
        while self.p(outside) >= alpha:
            inside, outside = outside, self.effect + 2 * (outside - self.effect)
        for _ in range(24):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if self.p(middle) < alpha else (middle, outside)
        return (inside + outside) / 2

    def p(self, threshold: float = 0.0) -> float:
        """Two-sided sign-flip permutation test of the mean against ``threshold``.

        Exact for few blocks (as ``scipy.stats.permutation_test``), with fixed random flips for many.
        """
        import numpy as np

        d = np.round(np.asarray(self.differences) - threshold, 9)
        sums = _flips(len(d)) @ d
        return float(np.mean(np.abs(sums) >= abs(d.sum()) - 1e-9))


@functools.lru_cache(maxsize=32)
def _flips(blocks: int) -> "np.ndarray":
    """Sign patterns, [patterns, blocks], the observed one among them."""
    import numpy as np

    if blocks <= EXACT:
        bits = np.arange(2**blocks)[:, np.newaxis] >> np.arange(blocks)
        return np.asarray(1.0 - 2.0 * (bits & 1))
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(2**EXACT, blocks))
    signs[0] = 1.0
    return signs


def block_mean(differences: Sequence[float]) -> BlockMean | NotComputable:
    """Mean and its standard error; needs two blocks."""
    import numpy as np

    if len(differences) < 2:
        return NotComputable(f"{len(differences)} complete block{'' if len(differences) == 1 else 's'} only")
    d = np.asarray(differences, dtype=np.float64)
    return BlockMean(
        differences=[float(x) for x in d],
        effect=float(d.mean()),
        stderr=float(d.std(ddof=1) / np.sqrt(len(d))),
    )


class Normal(Struct, frozen=True, kw_only=True):
    """An effect with a known standard error: published shares of a known number of items."""

    effect: float
    stderr: float

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Normal interval."""
        from scipy.stats import norm

        half = float(norm.ppf((1 + confidence) / 2)) * self.stderr
        return self.effect - half, self.effect + half

    def p(self, threshold: float = 0.0) -> float:
        """Two-sided."""
        from scipy.stats import norm

        if self.stderr == 0:
            return 1.0 if self.effect == threshold else 0.0
        return float(2 * norm.sf(abs(self.effect - threshold) / self.stderr))


class Share(Struct, frozen=True, kw_only=True):
    """In how many blocks a difference is on the expected side; ties count half."""

    wins: float
    blocks: int
    low: float
    high: float
    """Clopper-Pearson, 95 %."""
    p: float
    """Two-sided binomial test."""


def share(differences: Sequence[float], expected: float = 0.5) -> Share | NotComputable:
    """The share of positive differences against ``expected``; half of the ties count as positive."""
    from scipy.stats import binomtest

    if not differences:
        return NotComputable("no complete block")
    wins = sum(1.0 if round(d, 9) > 0 else 0.5 if round(d, 9) == 0 else 0.0 for d in differences)
    found: Any = binomtest(round(wins), len(differences), expected)
    interval = found.proportion_ci(0.95)
    return Share(
        wins=wins,
        blocks=len(differences),
        low=float(interval.low),
        high=float(interval.high),
        p=float(found.pvalue),
    )


class Trend(Struct, frozen=True, kw_only=True):
    """Page's test for a monotone order of the levels."""

    rising: float
    falling: float
    """One-sided p for each direction."""

    @property
    def p(self) -> float:
        """Two-sided."""
        return min(1.0, 2 * min(self.rising, self.falling))


def page_trend(matrix: Sequence[Sequence[float]]) -> Trend | NotComputable:
    """Page's L over [blocks, levels in order]; needs two blocks and three levels."""
    import numpy as np
    from scipy.stats import page_trend_test, rankdata

    values = np.round(np.asarray(matrix, dtype=np.float64), 9)
    if values.ndim != 2 or len(values) < 2:
        return NotComputable("one complete block only" if len(matrix) else "no complete block")
    if values.shape[1] < 3:
        return NotComputable("fewer than three levels: no trend")
    if (values == values[:, :1]).all():
        return Trend(rising=1.0, falling=1.0)
    ranks = rankdata(values, axis=1)
    up = page_trend_test(ranks, ranked=True)
    down = page_trend_test(ranks[:, ::-1], ranked=True)
    return Trend(rising=float(up.pvalue), falling=float(down.pvalue))
