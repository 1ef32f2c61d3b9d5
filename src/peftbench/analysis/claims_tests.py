"""Evaluating one claim on one source of numbers: comparisons, then a verdict."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peftbench.analysis.claims_data import Data, Entry, Level, in_words, matches, order
from peftbench.analysis.claims_result import Comparison, Finding, Verdict
from peftbench.analysis.claims_samples import blocks_of, even, mean, note_of, sample_of, settle
from peftbench.analysis.statistics.blocks import page_trend, share
from peftbench.analysis.statistics.ranks import Ranking, holm, rank_methods, signed_rank
from peftbench.analysis.statistics.result import NotComputable
from peftbench.analysis.statistics.seeds import spread_contrast
from peftbench.claims_types import Best, Claim, Claims, Difference, Select, ShareOf, Spread, Test, Trend

NOTHING = "no block has a number on both sides"


def evaluate(name: str, claim: Claim, test: Test, data: Data, claims: Claims) -> Finding:
    """The verdict of a claim on one source."""
    entries = [entry for entry in data.entries if matches(entry, test.where, claims.levels)]
    missing = sum(len(entry.missing) for entry in entries)
    runs = sum(len(entry.outcomes) or 1 for entry in entries)
    common: dict[str, Any] = {"claim": name, "source": data.source, "runs": runs, "missing": missing}
    if not entries:
        wanted = in_words({k: str(v) for k, v in test.where.items()}) or "anything"
        reason = f"no run of the study is {wanted}" if data.source == "ours" else f"no row is {wanted}"
        return Finding(verdict="not run", reason=reason, **common)
    gone = [axis for axis in _axes(test) if not any(axis in entry.coords for entry in entries)]
    if gone:
        return Finding(verdict="not run", reason=f"its runs have no axis {' or '.join(gone)}", **common)
    groups: dict[tuple[Level | None, ...], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(tuple(entry.coords.get(axis) for axis in test.each), []).append(entry)
    compare: Callable[..., Comparison] = _COMPARE[type(test)]
    found = []
    for key in sorted(groups, key=lambda key: [order("" if v is None else v) for v in key]):
        label = in_words({a: v for a, v in zip(test.each, key, strict=True) if v is not None})
        found.append(compare(label, test, groups[key], data, claims, claim.alpha))
    verdict = _verdict(found, test.quantifier, claim.alpha)
    reason = ""
    if verdict == "not run":
        reason = next((c.reason for c in found if c.reason), "")
        if missing:
            first = next(entry.missing[0] for entry in entries if entry.missing)
            reason = f"{missing} of {runs} runs are missing ({first})"
    return Finding(verdict=verdict, comparisons=found, reason=reason, scope=_scope(entries), **common)


def _verdict(found: Sequence[Comparison], quantifier: str, alpha: float) -> Verdict:
    """All comparisons have to support it; one that is refuted after Holm's correction refutes it.

    ``most``: more than half have to, each after Holm's correction, or half of them refute it.
    """
    tested = [c for c in found if c.p is not None]
    if not tested:
        return "undecided" if any(c.outcome == "undecided" for c in found) else "not run"
    corrected = dict(zip(map(id, tested), holm([c.p or 0.0 for c in tested]), strict=True))
    refuted = sum(c.outcome == "refuted" and corrected[id(c)] < alpha for c in tested)
    if quantifier == "most":
        supported = sum(c.outcome == "supported" and corrected[id(c)] < alpha for c in tested)
        if 2 * supported > len(found):
            return "supported"
        return "refuted" if 2 * refuted >= len(found) else "undecided"
    if refuted:
        return "refuted"
    return "supported" if all(c.outcome == "supported" for c in found) else "undecided"


def _axes(test: Test) -> set[str]:
    named = {*test.blocks, *test.each, *test.average}
    if isinstance(test, Best):
        named |= set(test.over)
    if isinstance(test, Trend | Spread) and test.along:
        named.add(test.along)
    return named


def _scope(entries: Sequence[Entry]) -> str:
    """Models and data sets by name, or how many where there are more than three."""
    parts = []
    for axis, word in (("model", "models"), ("dataset", "data sets")):
        names = sorted({str(entry.coords[axis]) for entry in entries if axis in entry.coords})
        if names:
            parts.append(f"{len(names)} {word}" if len(names) > 3 else ", ".join(names))
    return "; ".join(parts)


def _sided(
    test: Difference | ShareOf, entries: Sequence[Entry], claims: Claims
) -> tuple[list[tuple[list[Entry], list[Entry]]], int]:
    """Complete blocks as (left, right), and how many blocks were left out."""
    complete, dropped = [], 0
    for block in blocks_of(entries, test.blocks).values():
        left = [entry for entry in block if matches(entry, test.left, claims.levels)]
        right = [entry for entry in block if matches(entry, test.right, claims.levels)]
        if not left and not right:
            continue
        if mean(left) is None or mean(right) is None or not _same_averages(test, left, right):
            dropped += 1
        else:
            complete.append((left, right))
    return complete, dropped


def _same_averages(test: Difference | ShareOf, left: Sequence[Entry], right: Sequence[Entry]) -> bool:
    """Whether both sides are averaged over the same values, of axes that do not tell the sides apart."""
    axes = [axis for axis in test.average if axis not in test.left and axis not in test.right]
    ours, theirs = ({tuple(e.coords.get(a) for a in axes) for e in side} for side in (left, right))
    return ours == theirs


def _difference(
    name: str, test: Difference, entries: list[Entry], data: Data, claims: Claims, alpha: float
) -> Comparison:
    pairs, dropped = _sided(test, entries, claims)
    if not pairs:
        return Comparison(name=name, outcome="not run", dropped=dropped, reason=NOTHING)
    lefts, rights = ([mean(side) or 0.0 for side in sides] for sides in zip(*pairs, strict=True))
    left, right = sum(lefts) / len(lefts), sum(rights) / len(rights)
    sign = 1.0 if data.higher_is_better else -1.0
    ratio, unit, scale = 1.0, "points", 1.0
    effect = left - right
    if test.relative:
        if right == 0:
            return Comparison(name=name, outcome="undecided", reason="the right side is 0", blocks=len(pairs))
        ratio, unit, scale = left / right, "%", 100 / right
        effect = 100 * (ratio - 1)
    weights = [even(a, b, ratio) for a, b in pairs]
    # With the observed ratio the contrast is 0 by construction: what it leaves is the ratio's error (delta method).
    sample = sample_of(test, weights, data, [a - ratio * b for a, b in zip(lefts, rights, strict=True)])
    shift = effect if test.relative else 0.0
    common: dict[str, Any] = {
        "name": name,
        "effect": effect,
        "unit": unit,
        "dropped": dropped,
        "blocks": len(pairs),
    }
    threshold = sign * test.margin * (1 if test.direction == "greater" else -1)
    holds = _holds(test, effect, sign)
    if isinstance(sample, NotComputable):
        return Comparison(outcome="undecided", holds=holds, reason=sample.reason, **common)
    low, high = sorted(shift + scale * end for end in sample.interval(1 - alpha))

    def p(at: float) -> float:
        return float(sample.p((at - shift) / scale))

    if test.direction == "same":
        ends = (p(-test.margin), p(test.margin))
        inside = abs(effect) < test.margin
        value = max(ends) / 2 if inside else max(ends)  # of the nearer end
        done = value < alpha
        outcome: Verdict = ("supported" if inside else "refuted") if done else "undecided"
    else:
        value = p(threshold)
        outcome = "undecided" if value >= alpha else "supported" if holds else "refuted"
    todo = settle(test, weights, data, sample, effect - threshold) if outcome == "undecided" else ""
    return Comparison(
        outcome=outcome,
        holds=holds,
        low=low,
        high=high,
        p=value,
        settle=todo if not test.relative else "",
        reason=note_of(sample),
        **common,
    )


def _holds(test: Difference, effect: float, sign: float) -> bool:
    if test.direction == "same":
        return abs(effect) <= test.margin
    good = sign * effect * (1 if test.direction == "greater" else -1)
    return good > test.margin if test.margin else good > 1e-9


def _best(
    name: str, test: Best, entries: list[Entry], data: Data, claims: Claims, alpha: float
) -> Comparison:
    alternatives = blocks_of(entries, test.over)
    labels = {key: in_words(dict(zip(test.over, key, strict=True))) for key in alternatives}
    targets = [k for k, here in alternatives.items() if any(_is(here[0], t, claims) for t in test.target)]
    others = [key for key in alternatives if key not in targets]
    if len(targets) < len(test.target) or not others:
        return Comparison(name=name, outcome="not run", reason="the alternatives to compare are not there")
    blocks = list(blocks_of(entries, test.blocks))
    by_block = {key: blocks_of(here, test.blocks) for key, here in alternatives.items()}
    table = {key: [mean(by_block[key].get(block, [])) for block in blocks] for key in alternatives}
    complete = [i for i in range(len(blocks)) if all(values[i] is not None for values in table.values())]
    dropped = len(blocks) - len(complete)
    if not complete:
        return Comparison(name=name, outcome="not run", dropped=dropped, reason=NOTHING)
    sign = 1.0 if data.higher_is_better else -1.0
    scores = {key: [float(values[i] or 0.0) for i in complete] for key, values in table.items()}
    means = {key: sum(values) / len(values) for key, values in scores.items()}
    worst = min(targets, key=lambda key: sign * means[key])
    rival = max(others, key=lambda key: sign * means[key])
    holds = sign * (means[worst] - means[rival]) > 1e-9
    named = {labels[key].removeprefix(f"{test.over[0]} "): values for key, values in scores.items()}
    ranked = rank_methods(named, higher_is_better=data.higher_is_better, alpha=alpha, pairwise=False)
    ranking = ranked if isinstance(ranked, Ranking) else None
    pairs = [(target, other) for target in targets for other in others]
    samples, raw, favours = [], [], []
    for target, other in pairs:
        d = [a - b for a, b in zip(scores[target], scores[other], strict=True)]
        weights = [even(by_block[target][blocks[i]], by_block[other][blocks[i]]) for i in complete]
        sample = sample_of(test, weights, data, d)
        samples.append((sample, weights, sum(d) / len(d)))
        if isinstance(sample, NotComputable):
            continue
        raw.append(signed_rank(d) if test.by == "blocks" else sample.p())
        favours.append(sign * (_signed_ranks(d) if test.by == "blocks" else sum(d)))
    shown = pairs.index((worst, rival))
    sample, weights, effect = samples[shown]
    common: dict[str, Any] = {"name": name, "effect": effect, "dropped": dropped, "blocks": len(complete)}
    common |= {"ranking": ranking if test.by == "blocks" else None, "holds": holds}
    bad = next((s for s, _, _ in samples if isinstance(s, NotComputable)), None)
    if bad is not None:
        return Comparison(outcome="undecided", reason=bad.reason, **common)
    corrected = holm(raw)
    worse = [p for p, f in zip(corrected, favours, strict=True) if f < 0 and p < alpha]
    gate = 0.0
    if ranking is not None and test.by == "blocks" and not isinstance(ranking.friedman, NotComputable):
        gate = ranking.friedman.p
    outcome: Verdict = "undecided"
    if gate < alpha and worse:
        outcome = "refuted"
    elif gate < alpha and all(f > 0 and p < alpha for p, f in zip(corrected, favours, strict=True)):
        outcome = "supported"
    low, high = sample.interval(1 - alpha)
    against = f"{labels[worst]} against {labels[rival]}"
    reason = f"{against}; Friedman p = {gate:.2g}" if gate else against
    note = note_of(sample)
    return Comparison(
        outcome=outcome,
        low=low,
        high=high,
        p=max(gate, min(worse) if outcome == "refuted" else max(corrected)),
        reason=f"{reason}; {note}" if note else reason,
        settle=settle(test, weights, data, sample, effect) if outcome == "undecided" else "",
        **common,
    )


def _is(entry: Entry, target: Select, claims: Claims) -> bool:
    return matches(entry, target, claims.levels)


def _signed_ranks(differences: Sequence[float]) -> float:
    """Wilcoxon's sum of signed ranks: which side the test favours."""
    from scipy.stats import rankdata

    ranks = rankdata([abs(round(d, 9)) for d in differences])
    return float(sum(r * ((d > 0) - (d < 0)) for r, d in zip(ranks, differences, strict=True)))


def _trend(
    name: str, test: Trend, entries: list[Entry], data: Data, claims: Claims, alpha: float
) -> Comparison:
    levels = sorted({e.coords[test.along] for e in entries if test.along in e.coords}, key=order)
    rows, weights, dropped = [], [], 0
    slope = [2 * i - (len(levels) - 1) for i in range(len(levels))]
    total = sum(s * s for s in slope) or 1
    for block in blocks_of(entries, test.blocks).values():
        steps = blocks_of(block, [test.along])
        values = [mean(steps.get((step,), [])) for step in levels]
        if any(value is None for value in values):
            dropped += 1
            continue
        rows.append([value or 0.0 for value in values])
        # The change from the first to the last level on the line through all of them.
        factor = 2 * (len(levels) - 1) / total
        weights.append(
            [
                (factor * s / len(steps[(x,)]), e)
                for s, x in zip(slope, levels, strict=True)
                for e in steps[(x,)]
            ]
        )
    if not rows:
        return Comparison(name=name, outcome="not run", dropped=dropped, reason=NOTHING)
    factor = 2 * (len(levels) - 1) / total
    changes = [factor * sum(s * v for s, v in zip(slope, row, strict=True)) for row in rows]
    effect = sum(changes) / len(changes)
    sign = (1.0 if data.higher_is_better else -1.0) * (1 if test.direction == "rising" else -1)
    means = [sign * sum(column) / len(rows) for column in zip(*rows, strict=True)]
    holds = all(b - a > 1e-9 for a, b in itertools.pairwise(means))
    common: dict[str, Any] = {
        "name": name,
        "effect": effect,
        "dropped": dropped,
        "blocks": len(rows),
        "holds": holds,
    }
    sample = sample_of(test, weights, data, changes)
    if isinstance(sample, NotComputable):
        return Comparison(outcome="undecided", reason=sample.reason, **common)
    if test.by == "blocks":
        page = page_trend(rows)
        if isinstance(page, NotComputable):
            return Comparison(outcome="undecided", reason=page.reason, **common)
        p, favours = page.p, sign * (page.falling - page.rising)
    else:
        p, favours = sample.p(), sign * effect
    low, high = sample.interval(1 - alpha)
    outcome: Verdict = "undecided" if p >= alpha else "supported" if favours > 0 else "refuted"
    open_ = outcome == "undecided" and test.by == "items"
    todo = settle(test, weights, data, sample, effect) if open_ else ""
    return Comparison(outcome=outcome, low=low, high=high, p=p, reason=note_of(sample), settle=todo, **common)


def _share(
    name: str, test: ShareOf, entries: list[Entry], data: Data, claims: Claims, alpha: float
) -> Comparison:
    pairs, dropped = _sided(test, entries, claims)
    sign = 1.0 if data.higher_is_better else -1.0
    found = share([sign * ((mean(a) or 0.0) - (mean(b) or 0.0)) for a, b in pairs])
    if isinstance(found, NotComputable):
        return Comparison(name=name, outcome="not run", dropped=dropped, reason=found.reason)
    part = found.wins / found.blocks
    holds = part > 0.5 if test.direction == "greater" else part < 0.5
    return Comparison(
        name=name,
        outcome="undecided" if found.p >= alpha else "supported" if holds else "refuted",
        holds=holds,
        effect=100 * part,
        low=100 * found.low,
        high=100 * found.high,
        p=found.p,
        unit="% of blocks",
        blocks=found.blocks,
        dropped=dropped,
    )


def _spread(
    name: str, test: Spread, entries: list[Entry], data: Data, claims: Claims, alpha: float
) -> Comparison:
    chosen: list[tuple[float, Entry]] = []
    dropped = 0
    blocks = blocks_of(entries, test.blocks)
    for block in blocks.values():
        if test.along:
            weighted = _log_slope([e for e in block if test.along in e.coords], test.along)
        else:
            sides = [
                [e for e in block if matches(e, side, claims.levels)] for side in (test.left, test.right)
            ]
            weighted = even(sides[0], sides[1]) if all(sides) else []
        if not weighted or any(entry.missing for _, entry in weighted):
            dropped += 1
        else:
            chosen += [(weight, entry) for weight, entry in weighted]
    used = len(blocks) - dropped
    common: dict[str, Any] = {"name": name, "unit": "times", "blocks": used, "dropped": dropped}
    if not chosen:
        return Comparison(outcome="not run", reason=NOTHING, **common)
    if any(entry.spread is None for _, entry in chosen):
        return Comparison(outcome="undecided", reason="one seed: the spread over seeds is unknown", **common)
    found = spread_contrast(
        [entry.spread or 0.0 for _, entry in chosen],
        [entry.seeds for _, entry in chosen],
        [weight / used for weight, _ in chosen],
    )
    if isinstance(found, NotComputable):
        return Comparison(outcome="undecided", reason=found.reason, **common)
    more = test.direction in ("greater", "rising")
    holds = found.factor > 1 if more else found.factor < 1
    return Comparison(
        outcome="undecided" if found.p >= alpha else "supported" if holds else "refuted",
        holds=holds,
        effect=found.factor,
        low=found.low,
        high=found.high,
        p=found.p,
        reason=f"{found.cells} standard deviations of {min(e.seeds for _, e in chosen)} seeds",
        **common,
    )


def _log_slope(entries: Sequence[Entry], axis: str) -> list[tuple[float, Entry]]:
    """Weights of the least-squares slope on the logarithm of a level, times the range of these logarithms."""
    levels = [entry.coords[axis] for entry in entries]
    numbers = [value for value in levels if isinstance(value, float)]
    if len(set(levels)) < 2:
        return []
    logs = len(numbers) == len(levels) and all(value > 0 for value in numbers)
    ranks: Mapping[Level, int] = {value: i for i, value in enumerate(sorted(set(levels), key=order))}
    x = [math.log(v) for v in numbers] if logs else [float(ranks[v]) for v in levels]
    middle = sum(x) / len(x)
    total = sum((value - middle) ** 2 for value in x)
    return [((v - middle) / total * (max(x) - min(x)), e) for v, e in zip(x, entries, strict=True)]


_COMPARE: dict[type, Callable[..., Comparison]] = {
    Difference: _difference,
    Best: _best,
    Trend: _trend,
    ShareOf: _share,
    Spread: _spread,
}
