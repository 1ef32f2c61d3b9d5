"""Comparing methods over data sets: Friedman, Nemenyi, Holm-corrected Wilcoxon (after Demšar, 2006).

A block is one data set (or data set and model) on which every method has a score. Blocks where one is missing
are left out and counted. Data sets are the sample: the question is whether a difference would hold on other data
sets like these, not whether it holds on these.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from peftbench.analysis.statistics.result import ALPHA, NotComputable

if TYPE_CHECKING:
    import numpy as np

DECIMALS = 9
"""Scores are compared to this many decimals: means over seeds of equal scores have to tie."""


class Test(Struct, frozen=True, kw_only=True):
    """A test statistic and its p value."""

    __test__ = False  # no test class of pytest

    statistic: float
    p: float


class Pair(Struct, frozen=True, kw_only=True):
    """Two methods over the blocks; wins are of the first."""

    first: str
    second: str
    difference: float
    """Mean over blocks, first minus second, better is greater."""
    wins: int
    ties: int
    losses: int
    p: float
    """Wilcoxon signed-rank, two-sided, not corrected."""
    p_holm: float
    """Corrected over all pairs."""
    p_nemenyi: float | None
    """None with two methods."""


class Ranking(Struct, frozen=True, kw_only=True):
    """Methods over blocks."""

    methods: list[str]
    blocks: int
    """Complete ones."""
    dropped: int
    """Blocks left out because a method has no score there."""
    mean_ranks: list[float]
    """1 is best; tied methods share the mean of their ranks."""
    friedman: Test | NotComputable
    critical_difference: float | NotComputable
    """Of mean ranks, Nemenyi at ``alpha``."""
    pairs: list[Pair] | NotComputable
    alpha: float = ALPHA

    def rank(self, method: str) -> float:
        """Mean rank of a method."""
        return self.mean_ranks[self.methods.index(method)]

    def pair(self, first: str, second: str) -> Pair | None:
        """The comparison of two methods, in the direction asked for; None where there is none."""
        if isinstance(self.pairs, NotComputable):
            return None
        for pair in self.pairs:
            if (pair.first, pair.second) == (first, second):
                return pair
            if (pair.first, pair.second) == (second, first):
                return Pair(
                    first=first,
                    second=second,
                    difference=-pair.difference,
                    wins=pair.losses,
                    ties=pair.ties,
                    losses=pair.wins,
                    p=pair.p,
                    p_holm=pair.p_holm,
                    p_nemenyi=pair.p_nemenyi,
                )
        return None


def rank_methods(
    scores: Mapping[str, Sequence[float | None]],
    *,
    higher_is_better: bool = True,
    alpha: float = ALPHA,
    pairwise: bool = True,
) -> Ranking | NotComputable:
    """Compare methods over blocks; ``scores`` holds per method one score per block, None where there is none.

    ``pairwise``: whether to compare all pairs too.
    """
    import numpy as np

    methods = list(scores)
    if len(methods) < 2:
        return NotComputable("fewer than two methods")
    if len({len(values) for values in scores.values()}) > 1:
        raise ValueError("methods with different numbers of blocks")
    rows = list(zip(*scores.values(), strict=True))
    complete = [row for row in rows if all(value is not None and np.isfinite(value) for value in row)]
    if not complete:
        have = ", ".join(f"{m}: {sum(v is not None for v in scores[m])}" for m in methods)
        return NotComputable(f"no block has a score of every method ({have} of {len(rows)})")
    matrix = np.round(np.array(complete, dtype=np.float64), DECIMALS) * (1 if higher_is_better else -1)
    ranks = mean_ranks(matrix)
    enough = len(matrix) >= 2
    return Ranking(
        methods=methods,
        blocks=len(matrix),
        dropped=len(rows) - len(complete),
        mean_ranks=[float(rank) for rank in ranks],
        friedman=friedman(matrix),
        critical_difference=(
            critical_difference(len(methods), len(matrix), alpha)
            if enough
            else NotComputable("one block only")
        ),
        pairs=_pairs(methods, matrix) if enough and pairwise else _no_pairs(pairwise),
        alpha=alpha,
    )


def _no_pairs(pairwise: bool) -> NotComputable:
    return NotComputable("one block only" if pairwise else "not asked for")


def mean_ranks(matrix: "np.ndarray") -> "np.ndarray":
    """Mean rank of each column of [blocks, methods], the greatest value ranked 1; ties share their mean rank."""
    from scipy.stats import rankdata

    ranks: np.ndarray = rankdata(-matrix, axis=1).mean(axis=0)
    return ranks


def friedman(matrix: "np.ndarray") -> Test | NotComputable:
    """Friedman's chi-square with the correction for ties, of [blocks, methods]."""
    from scipy.stats import friedmanchisquare

    if len(matrix) < 2:
        return NotComputable("one block only")
    if matrix.shape[1] < 3:
        return NotComputable("two methods: their Wilcoxon test says it all")
    if (matrix == matrix[:, :1]).all():
        return Test(statistic=0.0, p=1.0)  # every block tied: 0 / 0 by the formula, and no difference in fact
    found = friedmanchisquare(*matrix.T)
    return Test(statistic=float(found.statistic), p=float(found.pvalue))


def critical_difference(methods: int, blocks: int, alpha: float = ALPHA) -> float:
    """Least difference of mean ranks that Nemenyi's test finds at ``alpha``."""
    import math

    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(1 - alpha, methods, math.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * blocks))


def signed_rank(differences: Any) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; zero differences are ranked and split (Demšar)."""
    import numpy as np
    from scipy.stats import wilcoxon

    d = np.round(np.asarray(differences, dtype=np.float64), DECIMALS)
    if not d.any():
        return 1.0
    return float(wilcoxon(d, zero_method="zsplit").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction.

    As ``statsmodels.stats.multitest.multipletests``, whose import takes longer than making a table.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, running = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        running = max(running, min(1.0, p_values[index] * (len(p_values) - place)))
        corrected[index] = running
    return corrected


def _pairs(methods: Sequence[str], matrix: "np.ndarray") -> list[Pair]:
    places = list(itertools.combinations(range(len(methods)), 2))
    raw = [signed_rank(matrix[:, i] - matrix[:, j]) for i, j in places]
    nemenyi = None
    if len(methods) > 2:
        from scikit_posthocs import posthoc_nemenyi_friedman

        nemenyi = posthoc_nemenyi_friedman(-matrix).to_numpy()
    found = []
    for (i, j), p, corrected in zip(places, raw, holm(raw), strict=True):
        d = matrix[:, i] - matrix[:, j]
        found.append(
            Pair(
                first=methods[i],
                second=methods[j],
                difference=float(d.mean()),
                wins=int((d > 0).sum()),
                ties=int((d == 0).sum()),
                losses=int((d < 0).sum()),
                p=p,
                p_holm=corrected,
                p_nemenyi=None if nemenyi is None else float(nemenyi[i, j]),
            )
        )
    return found
