"""Which configurations cannot be told from the best one: for marks in tables, instead of the last digit."""

from collections.abc import Sequence

from msgspec import Struct

from peftbench.analysis.statistics.items import Items
from peftbench.analysis.statistics.paired import Bootstrap, contrast
from peftbench.analysis.statistics.ranks import holm
from peftbench.analysis.statistics.result import ALPHA, NotComputable

REPLICATES = 4_000


class Ties(Struct, frozen=True, kw_only=True):
    """The best of some configurations and what ties with it, in their order."""

    best: int
    tied: list[bool]
    """True for the best itself."""
    p: list[float]
    """Holm-corrected p of the difference to the best; 1 for the best itself."""


def tied_with_best(
    candidates: Sequence[Sequence[Items]],
    *,
    higher_is_better: bool = True,
    alpha: float = ALPHA,
    replicates: int = REPLICATES,
) -> Ties | NotComputable:
    """Compare each configuration with the best by the paired bootstrap, corrected over the comparisons.

    A candidate is a list of test sets (one for a cell of a table, several for an average over columns), the same
    ones in the same order for all.
    """
    if len(candidates) < 2:
        return NotComputable("fewer than two configurations")
    if not candidates[0] or len({len(candidate) for candidate in candidates}) > 1:
        return NotComputable("the configurations were scored on different test sets")
    values = [sum(items.value for items in candidate) / len(candidate) for candidate in candidates]
    best = max(range(len(values)), key=lambda i: values[i] if higher_is_better else -values[i])
    others = [i for i in range(len(candidates)) if i != best]
    raw = []
    for i in others:
        pairs = zip(candidates[best], candidates[i], strict=True)
        found = contrast([[(1.0, ours), (-1.0, theirs)] for ours, theirs in pairs], replicates=replicates)
        if not isinstance(found, Bootstrap):
            return found
        raw.append(found.p())
    p = [1.0] * len(candidates)
    for i, corrected in zip(others, holm(raw), strict=True):
        p[i] = corrected
    return Ties(best=best, tied=[value >= alpha for value in p], p=p)
