"""Standard errors and bootstrap intervals of a mean, clustered where rows share an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from peftbench.metrics.base import MetricSettings

if TYPE_CHECKING:
    import numpy as np

Z95 = 1.959963984540054
"""Normal quantile, for the interval where no bootstrap is asked for."""


class Uncertainty(msgspec.Struct):
    """Standard error and interval, and how they were computed."""

    stderr: float
    interval: list[float]
    facts: dict[str, Any]


def cluster_codes(keys: Sequence[str]) -> np.ndarray | None:
    """Integer cluster of each row; None where no two rows share a key. "" is a cluster of its own."""
    import numpy as np

    shared = [key for key in keys if key]
    if len(set(shared)) == len(shared):
        return None
    codes: dict[str | tuple[str, int], int] = {}
    out = np.empty(len(keys), dtype=np.int64)
    for row, key in enumerate(keys):
        # A tuple cannot collide with a string: a row without an image never shares its cluster.
        out[row] = codes.setdefault(key or ("", row), len(codes))
    return out


def mean_uncertainty(
    scores: Sequence[float] | np.ndarray, clusters: np.ndarray | None, settings: MetricSettings
) -> Uncertainty:
    """Uncertainty of the mean of ``scores`` [n] over clusters (rows, where ``clusters`` is None).

    Standard error: sqrt(G/(G-1) * sum_g (sum of deviations in g)^2) / n, the cluster-robust form that
    lmms-eval uses (Miller, "Adding Error Bars to Evals", 2024) with the usual factor for few clusters; for
    clusters of one it is the textbook s/sqrt(n). Interval: percentiles of the ratio sum/count over resampled
    clusters.
    """
    import numpy as np

    x = np.asarray(scores, dtype=np.float64)
    n = len(x)
    mean = float(x.mean())
    own = np.arange(n) if clusters is None else clusters
    sums = np.bincount(own, weights=x)
    counts = np.bincount(own, weights=np.ones(n))
    groups = len(sums)
    deviation = sums - mean * counts
    stderr = float(np.sqrt(groups / (groups - 1) * np.dot(deviation, deviation)) / n) if groups > 1 else 0.0
    facts: dict[str, Any] = {
        "clusters": groups,
        "replicates": settings.replicates,
        "seed": settings.seed,
        "confidence": settings.confidence,
    }
    if not settings.replicates or groups == 1:
        facts["replicates"] = 0
        return Uncertainty(stderr, [mean - Z95 * stderr, mean + Z95 * stderr], facts)
    means = _bootstrap_means(sums, counts, settings.replicates, settings.seed)
    tail = (1.0 - settings.confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Uncertainty(stderr, [float(low), float(high)], facts)


def _bootstrap_means(sums: np.ndarray, counts: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """Means over ``replicates`` resamples of clusters, [replicates]."""
    import numpy as np

    rng = np.random.default_rng(seed)
    groups = len(sums)
    # A resample depends only on how often each distinct (sum, count) is drawn, and scores take few values:
    # drawing these multinomial counts is the same bootstrap at a fraction of the cost.
    pairs = np.round(sums, 9) + 1j * counts
    distinct, multiplicity = np.unique(pairs, return_counts=True)
    if len(distinct) * 20 < groups:
        drawn = rng.multinomial(groups, multiplicity / groups, size=replicates)
        return np.asarray((drawn @ distinct.real) / (drawn @ distinct.imag))
    means = np.empty(replicates)
    even = bool((counts == counts[0]).all())
    for row in range(replicates):
        picked = rng.integers(0, groups, size=groups, dtype=np.int32)
        total = sums[picked].sum()
        means[row] = total / (groups * counts[0]) if even else total / counts[picked].sum()
    return means
