"""What the efficiency table shows, in sentences made from its numbers."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from peftbench.efficiency.formulas import common_tokens
from peftbench.efficiency.table import Row, Workload

UNITS = ((1e12, "TFLOPs"), (1e9, "GFLOPs"), (1e6, "MFLOPs"))


def unit_of(values: Sequence[float]) -> tuple[float, str]:
    """The unit in which the smallest of these numbers of operations has two digits at least, and its name."""
    least = min(values, default=0.0)
    return next(((size, name) for size, name in UNITS if least >= 0.1 * size), UNITS[-1])


def amount(value: float) -> str:
    """A number of operations with its unit."""
    size, name = unit_of([value])
    return f"{value / size:.2f} {name}"


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """How well one number of tokens explains a published row. Deviations are ours from published, percent."""

    row: Row
    tokens: float
    """The common ``N_t``."""
    train_deviation: float
    inference_deviation: float


def fit_common(rows: Sequence[Row]) -> list[Fit]:
    """The published rows at the one ``N_t`` that fits their training FLOPs best; none where none is published."""
    there = [row for row in rows if row.implied_tokens and row.published_train and row.published_inference]
    if not there:
        return []
    tokens = common_tokens(
        [(row.published_train, row.published_train / row.implied_tokens) for row in there]  # type: ignore[misc, operator]
    )
    found = []
    for row in there:
        assert row.implied_tokens and row.inference_at_implied and row.published_inference
        inference = row.inference_at_implied + 2 * row.layers * row.width * (tokens - row.implied_tokens)
        found.append(
            Fit(
                row=row,
                tokens=tokens,
                train_deviation=100 * (tokens / row.implied_tokens - 1),
                inference_deviation=100 * (inference / row.published_inference - 1),
            )
        )
    return found


def label(row: Row) -> str:
    """Model, method and connector of a row."""
    return f"{row.model_title}, {row.method_title}, connector {row.connector}"


def explain(rows: Sequence[Row], workload: Workload) -> list[str]:
    """Paragraphs on the percentages, the published FLOPs, and counted against formula. ``rows`` is not empty."""
    return [*_percentages(rows), *_published_flops(rows), _training(rows, workload), _inference(rows)]


def _percentages(rows: Sequence[Row]) -> list[str]:
    there = [row for row in rows if row.published_percent is not None]
    if not there:
        return []
    odd = [f"{label(row)}: {row.remark}." for row in there if row.remark]
    text = (
        f"Trainable parameters in percent of all (vision tower and the method's own included): "
        f"{len(there) - len(odd)} of {len(there)} published values are met to their last digit."
    )
    return [" ".join([text, *odd])]


def _published_flops(rows: Sequence[Row]) -> list[str]:
    fits = fit_common(rows)
    if not fits:
        return []
    implied = [fit.row.implied_tokens or 0 for fit in fits]
    own = max(abs(fit.row.inference_deviation or 0) for fit in fits)
    near = sum(abs(fit.train_deviation) <= 3 for fit in fits)
    worst = max(fits, key=lambda fit: abs(fit.train_deviation))
    text = (
        f"Published FLOPs: equation 5 solved for N_t gives {min(implied):,.0f} to {max(implied):,.0f} tokens, another "
        f"number for each row, and with that N_t equation 6 meets the published inference FLOPs within {own:.2f} %: "
        f"these are the formulas that were used. One N_t for all rows, {fits[0].tokens:,.0f}, meets {near} of "
        f"{len(fits)} training values within 3 %; the farthest is {label(worst.row)} ({worst.train_deviation:+.1f} %)."
    )
    spreads = []
    for model in dict.fromkeys(fit.row.model_title for fit in fits):
        group = [fit.row for fit in fits if fit.row.model_title == model]
        tokens = [row.implied_tokens or 0 for row in group]
        charges = [row.train_formula for row in group]
        spreads.append(
            f"{model}: N_t differs by up to {100 * (max(tokens) / min(tokens) - 1):.0f} % between rows, the formula at "
            f"equal N_t by up to {100 * (max(charges) / min(charges) - 1):.0f} %"
        )
    return [f"{text} {'; '.join(spreads)}: what looks cheap was in part charged for fewer tokens."]


def _training(rows: Sequence[Row], workload: Workload) -> str:
    row = rows[0]
    ratios = [r.train_ratio for r in rows]
    halved = [(r.train_measured - r.attention / 2) / r.train_formula for r in rows]
    again = [r.train_recomputed / r.train_formula for r in rows]
    forward = row.train_formula - row.backward_formula
    tower = [r for r in rows if abs(r.forward / (r.train_formula - r.backward_formula) - 1) > 0.1]
    text = (
        f"Training, one example of {workload.title} ({row.prompt + row.answer} tokens): the formula is low by a "
        f"factor of {min(ratios):.2f} to {max(ratios):.2f} ({min(halved):.2f} to {max(halved):.2f} with a kernel "
        f"that skips the masked half of the attention scores). {label(row)}: forward {amount(forward)} by "
        f"formula, {amount(row.forward)} counted; backward {amount(row.backward_formula)} by formula, "
        f"{amount(row.backward)} counted. The formula charges a frozen weight "
        "with no backward pass at all. Its own gradient is indeed not needed, but that of its input is, to reach the "
        "trainable parameters of the layers before it: two more operations per weight and token. With gradient "
        f"checkpointing, which the paper trains with, the factor is {min(again):.2f} to {max(again):.2f}."
    )
    if tower:
        r = tower[0]
        formula = r.train_formula - r.backward_formula
        text += (
            f" {r.model_title}: here the forward pass differs too ({amount(formula)} by formula, {amount(r.forward)} "
            f"counted), since the formula charges the vision tower with the tokens of the sequence, and "
            f"{amount(r.vision)} are spent on the patches of the image."
        )
    return text


def _inference(rows: Sequence[Row]) -> str:
    row = rows[0]
    ratios = [r.token_ratio for r in rows]
    text = (
        f"Inference: one generated token costs {min(ratios):.2f} to {max(ratios):.2f} times what equation 6 says for "
        "this length, which charges vision tower and connector with every token (they run once per image). Of a whole "
        f"answer the prompt is {100 * row.prefill_measured / row.answer_measured:.0f} %: {label(row)}, "
        f"{amount(row.answer_measured)} for {row.prompt} + {row.answer} tokens."
    )
    merged = [r.token_measured / r.token_merged - 1 for r in rows if r.token_merged]
    if merged:
        names = " and ".join(dict.fromkeys(r.method_title for r in rows if r.token_merged))
        text += (
            f" {names} can be merged into the weights and then cost what the untuned model costs, which saves "
            f"{100 * min(merged):.1f} to {100 * max(merged):.1f} % per token."
        )
    return text
