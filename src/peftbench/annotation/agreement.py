"""How far annotators agree: Cohen's kappa for two, Fleiss' kappa for more, with a bootstrap over pictures."""

from __future__ import annotations

import warnings
from typing import Any

import msgspec
import numpy as np

from peftbench.annotation.collect import Annotations

REPLICATES = 1000
CONFIDENCE = 0.95
USABLE = 0.5
"""Share of replicates in which kappa must be computable for an interval."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """Agreement over all wordings of a sheet. Kappa is None where it cannot be computed; ``problem`` says why."""

    statistic: str
    """``Cohen's kappa``, ``Fleiss' kappa`` or "" for one annotator."""
    annotators: int
    answers: int
    """Wordings that all of them judged."""
    equal: float | None
    """Share of them (0-1) on which all agree."""
    kappa: float | None
    interval: list[float] | None
    """Percentile bootstrap over pictures, 95 %: answers about one picture go together."""
    asymptotic: list[float] | None
    """Of Cohen's kappa: statsmodels' 95 % interval, which takes all answers for independent."""
    undefined: float = 0.0
    """Share of bootstrap replicates in which kappa cannot be computed; they are left out."""
    problem: str = ""


def agreement(annotations: Annotations, seed: int = 0, replicates: int = REPLICATES) -> Agreement:
    """The agreement of a sheet's annotators on whether an answer contains a hallucination."""
    marks = annotations.marks
    n = len(annotations.people)
    if n < 2:
        return Agreement(
            statistic="",
            annotators=n,
            answers=len(marks),
            equal=None,
            kappa=None,
            interval=None,
            asymptotic=None,
            problem="not computable: one annotator",
        )
    flags = np.array([[person.flags[mark] for person in annotations.people] for mark in marks], dtype=int)
    name = "Cohen's kappa" if n == 2 else "Fleiss' kappa"
    equal = float((flags == flags[:, :1]).all(axis=1).mean())
    kappa = _kappa(flags)
    if kappa is None:
        word = "yes" if flags.any() else "no"
        return Agreement(
            statistic=name,
            annotators=n,
            answers=len(marks),
            equal=equal,
            kappa=None,
            interval=None,
            asymptotic=None,
            problem=f"not computable: all annotators said {word!r} every time",
        )
    interval, undefined = _bootstrap(flags, [item for item, _ in marks], seed, replicates)
    return Agreement(
        statistic=name,
        annotators=n,
        answers=len(marks),
        equal=equal,
        kappa=kappa,
        interval=interval,
        asymptotic=_asymptotic(flags) if n == 2 else None,
        undefined=undefined,
        problem="" if interval else "no interval: kappa is not computable in most bootstrap replicates",
    )


def _kappa(flags: np.ndarray) -> float | None:
    """Kappa of (answers, annotators) flags; None where all are of one category."""
    from statsmodels.stats.inter_rater import cohens_kappa, fleiss_kappa

    if flags.min() == flags.max():
        return None
    if flags.shape[1] == 2:
        value = cohens_kappa(_table(flags), return_results=False)
    else:
        yes = flags.sum(axis=1)
        value = fleiss_kappa(np.stack([flags.shape[1] - yes, yes], axis=1))
    return float(value)


def _table(flags: np.ndarray) -> np.ndarray:
    return np.bincount(2 * flags[:, 0] + flags[:, 1], minlength=4).reshape(2, 2)


def _asymptotic(flags: np.ndarray) -> list[float] | None:
    from statsmodels.stats.inter_rater import cohens_kappa

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        result: Any = cohens_kappa(_table(flags))
    bounds = [float(result.kappa_low), float(result.kappa_upp)]
    return bounds if np.isfinite(bounds).all() else None


def _bootstrap(
    flags: np.ndarray, items: list[str], seed: int, replicates: int
) -> tuple[list[float] | None, float]:
    """Percentile interval over resampled pictures, and the share of replicates without a kappa."""
    codes = np.unique(items, return_inverse=True)[1]
    rows = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(replicates):
        picked = draw.integers(len(rows), size=len(rows))
        kappa = _kappa(flags[np.concatenate([rows[place] for place in picked])])
        if kappa is not None:
            found.append(kappa)
    undefined = 1 - len(found) / replicates if replicates else 1.0
    if len(found) < USABLE * replicates or not found:
        return None, undefined
    tail = 100 * (1 - CONFIDENCE) / 2
    return [float(bound) for bound in np.percentile(found, [tail, 100 - tail])], undefined
