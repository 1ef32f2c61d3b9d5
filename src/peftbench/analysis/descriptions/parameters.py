"""Trainable parameters of each method at each place and size, counted on the real architectures without weights."""

from __future__ import annotations

from pathlib import Path

from peftbench.analysis.plain import PlainTable
from peftbench.analysis.style import method_title, variant_title
from peftbench.errors import UserError
from peftbench.views import DescribeSpec

NEEDS = ""
HEAD = ["Model", "Method", "Place", "Size", "Added", "Connector", "% of all, frozen", "% of all, tuned"]


def describe(spec: DescribeSpec, results: Path) -> PlainTable:
    """One row per combination of the study. ``UserError`` where no model of it has known sizes."""
    from peftbench.efficiency.parameters import EfficiencyModel, Setting, count_parameters

    models = {
        model.name: EfficiencyModel(
            name=model.name,
            title=model.title,
            names=model.names,
            architecture=model.architecture,
            vocabulary=model.vocabulary,
        )
        for model in spec.models
        if model.architecture
    }
    if not models:
        raise UserError(
            f"config/studies/{spec.study}.yaml: no model of it has an 'architecture' (config/architectures) to count in"
        )
    rows = []
    for variant in (v for name in models for v in spec.variants if v.model == name):
        model = models[variant.model]
        setting = Setting(
            method=variant.method,
            settings=variant.settings,
            location=variant.location,
            connector="tuned",
        )
        counts = count_parameters(model, setting, model.vocabulary)
        own = counts.added + counts.in_place
        rows.append(
            [
                model.title,
                method_title(variant.method),
                variant.location,
                variant_title(variant.given) or "default",
                f"{own:,}",
                f"{counts.connector:,}",
                f"{100 * own / counts.total:.3f}",
                f"{counts.percent:.3f}",
            ]
        )
    notes = [
        "Added: parameters of the method. All: vision tower, connector and the method's own included; with the "
        "vocabulary that published counts refer to. Frozen, tuned: the connector.",
        *([spec.note] if spec.note else []),
    ]
    return PlainTable(title=spec.title, head=HEAD, rows=rows, right=[4, 5, 6, 7], notes=notes)
