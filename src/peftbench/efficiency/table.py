"""The efficiency table: trainable parameters and FLOPs of methods on models, beside what the paper printed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from peftbench.efficiency.architecture import image_shape, instantiate
from peftbench.efficiency.formulas import implied_tokens, inference_flops, training_flops
from peftbench.efficiency.parameters import (
    Counts,
    EfficiencyModel,
    Setting,
    attach_on_meta,
    count_parameters,
    counts_of,
)
from peftbench.errors import UserError
from peftbench.training.adapt import load_method

if TYPE_CHECKING:
    from peftbench.efficiency.flops import Costs, ImageCosts

DIGITS = 3
"""Decimals of the paper's percentages."""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths of a data set's examples, each with one image: means, in tokens.

    ``text`` is the prompt without the image's tokens; the model says how many those are. FLOPs at the mean
    lengths are those of the data set but for the spread's part of attention, far below a percent.
    """

    title: str
    text: int
    answer: int
    """With the end token."""


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the paper's table."""

    percent: float
    train_flops: float
    inference_flops: float


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One method on one model. FLOPs are per example of ``prompt + answer`` tokens, or per generated token."""

    model: str
    model_title: str
    method: str
    method_title: str
    location: str
    connector: str
    settings: str
    """As JSON; those that differ from the method's defaults."""
    layers: int
    width: int
    added: int
    """Parameters of the method."""
    connector_parameters: int
    """Trainable ones."""
    trainable: int
    total: int
    """Vision tower, connector and method included."""
    percent: float
    """Trainable of all."""
    percent_published_vocabulary: float
    """The same with the vocabulary that the published counts refer to."""
    published_percent: float | None
    difference: float | None
    """Ours (published vocabulary) minus published."""
    remark: str
    prompt: int
    """Tokens, the image's included."""
    answer: int
    train_formula: float
    train_measured: int
    train_ratio: float
    """Measured by formula."""
    train_recomputed: int
    """Measured, with gradient checkpointing."""
    forward: int
    """Part of ``train_measured``."""
    backward: int
    """The other part; the formula charges ``2 P_t N`` for it."""
    backward_formula: float
    vision: int
    """Part of ``train_measured``, as are the next three."""
    connector_flops: int
    language: int
    head: int
    attention: int
    """Part of ``language``; half of it are masked scores."""
    token_formula: float
    """Equation 6 with this example's length for ``N_t``: one generated token."""
    token_measured: float
    token_ratio: float
    token_merged: float | None
    """Measured after the method was merged into the weights; None where it cannot be."""
    prefill_measured: int
    """The pass over the prompt, with the image."""
    answer_measured: int
    """The pass over the prompt and all tokens of the answer."""
    answer_merged: int | None
    published_train: float | None
    published_inference: float | None
    implied_tokens: float | None
    """``N_t`` at which the formula gives the published training FLOPs."""
    inference_at_implied: float | None
    inference_deviation: float | None
    """Of that from the published inference FLOPs, in percent."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One row to be made."""

    model: EfficiencyModel
    setting: Setting


def read_published(rows: Iterable[Mapping[str, str]]) -> dict[tuple[str, str, str], Published]:
    """The rows of ``paper/tables/table15_efficiency.csv`` by model, method and connector.

    Raises ``UserError`` for a missing column or a value that is no number.
    """
    found = {}
    for row in rows:
        try:
            found[row["model"], row["method"], row["connector"]] = Published(
                percent=float(row["trainable_percent"]),
                train_flops=float(row["train_flops"]),
                inference_flops=float(row["inference_flops"]),
            )
        except (KeyError, ValueError) as error:
            raise UserError(
                f"published efficiency: {error}: see paper/tables/table15_efficiency.csv"
            ) from None
    return found


class _Model:
    """What the rows of one model share: image costs by connector setting, costs of the base model."""

    def __init__(self, model: EfficiencyModel, workload: Workload) -> None:
        self.model, self.workload = model, workload
        self.images: dict[str, ImageCosts] = {}
        self.base: Costs | None = None

    def measured(self, setting: Setting) -> tuple[Counts, Costs]:
        """Parameters and operations with the architecture's own vocabulary."""
        names = self.model.names
        bare = instantiate(self.model.architecture, names.code)
        embedding = bare.get_input_embeddings().weight.numel()
        # get_peft_model puts its layers into the model itself, so `bare` is the tuned model from here on.
        tuned, dims = attach_on_meta(bare, names, setting)
        counts = counts_of(tuned, dims, embedding)
        # What such a method trains may lie in the last layers alone: those are not like the first.
        return counts, self._costs(bare, setting.connector, whole=tuned.in_place)

    def base_costs(self) -> Costs:
        """Operations of the model as it is."""
        if self.base is None:
            self.base = self._costs(instantiate(self.model.architecture, self.model.names.code), "frozen")
        return self.base

    def _costs(self, model: Any, connector: str, whole: bool = False) -> Costs:
        from peftbench.efficiency.flops import image_costs, measure

        names, workload = self.model.names, self.workload
        if connector not in self.images:
            pixels = self.model.pixels or image_shape(model.config)
            self.images[connector] = image_costs(model, names, pixels)
        return measure(model, names, self.images[connector], workload.text, workload.answer, whole)


def efficiency_rows(
    cells: Sequence[Cell],
    workload: Workload,
    published: Mapping[tuple[str, str, str], Published] | None = None,
) -> list[Row]:
    """One row per cell, in order. A second or less per row, whatever the size of the model.

    ``published`` stands beside rows at the method's default location with as many parameters as its default
    settings add. Raises ``UserError`` for architectures, settings and names that do not fit.
    """
    models: dict[str, _Model] = {}
    rows = []
    for cell in cells:
        shared = models.setdefault(cell.model.name, _Model(cell.model, workload))
        rows.append(_row(shared, cell.setting, published or {}))
    return rows


def _row(shared: _Model, setting: Setting, published: Mapping[tuple[str, str, str], Published]) -> Row:
    model = shared.model
    method = load_method(setting.method)
    counts, costs = shared.measured(setting)
    own = counts if model.vocabulary is None else count_parameters(model, setting, model.vocabulary)
    paper = published.get((model.stands_for or model.name, setting.method, setting.connector))
    if paper is not None and not _is_default(shared, setting, own):
        paper = None
    tokens = costs.prompt + costs.answer
    frozen = counts.total - counts.trainable
    train = training_flops(frozen, counts.trainable, tokens)
    token = inference_flops(counts.total - counts.embedding, counts.layers, counts.width, tokens)
    merged = shared.base_costs() if method.MERGEABLE else None
    answer = costs.prefill + costs.decoding
    return Row(
        model=model.name,
        model_title=model.title,
        method=setting.method,
        method_title=str(getattr(method, "TITLE", setting.method)),
        location=setting.location,
        connector=setting.connector,
        settings=json.dumps(_changed(method, setting), sort_keys=True),
        layers=counts.layers,
        width=counts.width,
        added=counts.added,
        connector_parameters=counts.connector,
        trainable=counts.trainable,
        total=counts.total,
        percent=counts.percent,
        percent_published_vocabulary=own.percent,
        published_percent=paper.percent if paper else None,
        difference=own.percent - paper.percent if paper else None,
        remark=remark(own.percent, paper.percent) if paper else "",
        prompt=costs.prompt,
        answer=costs.answer,
        train_formula=train,
        train_measured=costs.training.total,
        train_ratio=costs.training.total / train,
        train_recomputed=costs.recomputed.total,
        forward=costs.forward.total,
        backward=costs.training.total - costs.forward.total,
        backward_formula=2 * counts.trainable * tokens,
        vision=costs.training.vision,
        connector_flops=costs.training.connector,
        language=costs.training.language,
        head=costs.training.head,
        attention=costs.training.attention,
        token_formula=token,
        token_measured=costs.per_token,
        token_ratio=costs.per_token / token,
        token_merged=merged.per_token if merged else None,
        prefill_measured=costs.prefill.total,
        answer_measured=answer.total,
        answer_merged=(merged.prefill + merged.decoding).total if merged else None,
        **_reproduced(own, paper),
    )


def _reproduced(counts: Counts, paper: Published | None) -> dict[str, float | None]:
    """The published FLOPs, the tokens that equation 5 needs for them, and what equation 6 then gives."""
    names = (
        "published_train",
        "published_inference",
        "implied_tokens",
        "inference_at_implied",
        "inference_deviation",
    )
    if paper is None:
        return dict.fromkeys(names)
    tokens = implied_tokens(paper.train_flops, counts.total - counts.trainable, counts.trainable)
    found = inference_flops(counts.total - counts.embedding, counts.layers, counts.width, tokens)
    deviation = 100 * (found / paper.inference_flops - 1)
    values = (paper.train_flops, paper.inference_flops, tokens, found, deviation)
    return dict(zip(names, values, strict=True))


def remark(percent: float, published: float) -> str:
    """What is to be said of a published percentage: "" where ours rounds to it."""
    if round(percent, DIGITS) == published:
        return ""
    scale = 10**DIGITS
    said = f"{percent:.{DIGITS + 2}f} rounds to {percent:.{DIGITS}f}"
    if math.floor(percent * scale) / scale == published:
        return f"{said}; the published {published:.{DIGITS}f} is it cut off, not rounded"
    return f"{said}; published is {published:.{DIGITS}f}"


def _changed(method: Any, setting: Setting) -> dict[str, Any]:
    """Settings that differ from the method's defaults and can change a count."""
    defaults = msgspec.to_builtins(method.Config())
    return {
        name: value
        for name, value in setting.settings.items()
        if value != defaults.get(name) and name != "learning_rate"
    }


def _is_default(shared: _Model, setting: Setting, counts: Counts) -> bool:
    """Whether as many parameters are added as the method adds by default."""
    if setting.location == "default" and not _changed(load_method(setting.method), setting):
        return True
    default = Setting(method=setting.method, connector=setting.connector)
    return count_parameters(shared.model, default, shared.model.vocabulary).trainable == counts.trainable
