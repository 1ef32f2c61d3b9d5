"""What the error of an effect is read from: blocks, test items, or published counts of items."""

import math
from collections.abc import Sequence
from typing import Any

from peftbench.analysis.claims_data import Data, Entry, Level, order
from peftbench.analysis.statistics.blocks import FEWEST, BlockMean, Normal, block_mean
from peftbench.analysis.statistics.items import Items
from peftbench.analysis.statistics.paired import Bootstrap, contrast
from peftbench.analysis.statistics.power import blocks_needed, parts_of, plan
from peftbench.analysis.statistics.result import NotComputable
from peftbench.claims_types import Test

MOST_BLOCKS = 1000
"""Beyond this many data sets their number is not worth saying."""
Weights = list[list[tuple[float, Entry]]]
"""Per block, the entries of a contrast with their weights."""


def blocks_of(entries: Sequence[Entry], axes: Sequence[str]) -> dict[tuple[Level, ...], list[Entry]]:
    """Entries by the values of some axes, in the order of these values."""
    found: dict[tuple[Level, ...], list[Entry]] = {}
    for entry in entries:
        if all(axis in entry.coords for axis in axes):
            found.setdefault(tuple(entry.coords[axis] for axis in axes), []).append(entry)
    return {key: found[key] for key in sorted(found, key=lambda key: [order(v) for v in key])}


def mean(entries: Sequence[Entry]) -> float | None:
    """Mean of the entries' values; None where one is missing or there is none."""
    values = [entry.value for entry in entries]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def even(left: Sequence[Entry], right: Sequence[Entry], factor: float = 1.0) -> list[tuple[float, Entry]]:
    """Weights of the mean of one side minus ``factor`` times that of the other."""
    return [(1 / len(left), e) for e in left] + [(-factor / len(right), e) for e in right]


def sample_of(test: Test, weights: Weights, data: Data, differences: Sequence[float]) -> Any:
    """What an effect's error is read from: blocks, test items, or what published counts of items allow."""
    if test.by == "blocks":
        return block_mean(differences)
    effect = sum(differences) / len(differences)
    if data.items is not None:
        strata = item_strata(weights, data)
        return strata if isinstance(strata, NotComputable) else contrast(strata)
    if data.source == "paper":
        return binomial(weights, effect)
    return NotComputable("these numbers have no test items")


def item_strata(weights: Weights, data: Data) -> list[list[tuple[float, Items]]] | NotComputable:
    """A contrast over blocks as one over test sets: blocks that share a test set are resampled together."""
    assert data.items is not None
    sets: dict[tuple[str, ...], list[tuple[float, Items]]] = {}
    for block in weights:
        for weight, entry in block:
            items = data.items(entry)
            if isinstance(items, NotComputable):
                return items
            sets.setdefault(tuple(items.ids), []).append((weight, items))
    scale = len(sets) / len(weights)
    return [[(scale * weight, items) for weight, items in runs] for runs in sets.values()]


def binomial(weights: Weights, effect: float) -> Normal | NotComputable:
    """The most that the error of published means can be: that of shares, sides not paired.

    Numbers of one side that share their test items may be fully correlated, so their errors add up; numbers of
    different test sets are independent.
    """
    errors: dict[tuple[Level, bool], float] = {}
    for block in weights:
        for weight, entry in block:
            if not entry.share_items or entry.value is None:
                return NotComputable("the table says neither how many test items nor what error")
            bounded = min(max(entry.value, 0.0), entry.scale)
            error = math.sqrt(bounded * (entry.scale - bounded) / entry.share_items)
            key = (entry.test_set, weight > 0)
            errors[key] = errors.get(key, 0.0) + abs(weight) / len(weights) * error
    return Normal(effect=effect, stderr=math.sqrt(sum(error**2 for error in errors.values())))


def note_of(sample: Any) -> str:
    """What a reader has to know of where an error comes from."""
    if isinstance(sample, Bootstrap) and sample.seed_stderr is None:
        return "one seed: about these trained models only"
    if isinstance(sample, BlockMean) and len(sample.differences) < FEWEST:
        return f"fewer than {FEWEST} blocks cannot decide a sign test"
    return "error taken from the number of test items, at its most" if isinstance(sample, Normal) else ""


def settle(test: Test, weights: Weights, data: Data, sample: Any, distance: float) -> str:
    """What would settle a comparison whose effect is ``distance`` from its threshold."""
    if isinstance(sample, Bootstrap):
        strata = item_strata(weights, data)
        parts = strata if isinstance(strata, NotComputable) else parts_of(strata)
        if isinstance(parts, NotComputable):
            return ""
        cost = data.hours([entry for block in weights for _, entry in block]) if data.hours else None
        hours, unit = cost or (None, "machine hours")
        found = plan(parts, distance, sample.seeds, hours_per_seed=hours, unit=unit)
        return "" if isinstance(found, NotComputable) else str(found)
    if test.by == "blocks" and not isinstance(sample, Normal):
        spread = sample.stderr * math.sqrt(len(sample.differences))
        need = blocks_needed(distance, spread)
        if need is None or need > MOST_BLOCKS:
            return f"more than {MOST_BLOCKS:,} blocks would be needed to settle a difference this small"
        return f"about {max(need, len(weights) + 1):,} blocks would settle it (there are {len(weights)})"
    return ""
