"""The stages of the workflow: their scripts, and the modules that each job loads by name.

Planning and jobs both come here, so the code that a ticket was made with and the code that a job finds are listed by
the same rules.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.fingerprint import Code, Fingerprinter, default_fingerprinter

FINGERPRINT_EXEMPT = "names results; does not compute them"

Components = tuple[tuple[str, ...], tuple[str, ...]]
"""Modules by full name, and data files relative to the package's folder."""
Locate = Callable[[str], Any]

RULES = {
    "prepare": "prepare_dataset",
    "subset": "draw_subset",
    "build": "build_base_model",
    "train": "train_adapter",
    "predict": "generate_predictions",
    "score": "score_predictions",
    "tabulate": "tabulate_study",
    "plot": "plot_study",
    "report": "build_report",
}
"""Stage -> name of its rule and of its script in ``workflow/scripts``."""


def components(stage: str, spec: dict[str, Any], locate: Locate) -> Components:
    """What a job of ``stage`` with this spec (plain data) loads by name; ``UserError`` for a name without a module."""
    if stage == "prepare":
        return _source("data", spec["source"], locate), ()
    if stage == "build":
        return _source("models", spec["source"], locate), ()
    if stage in ("train", "predict"):
        template = f"models/templates/{spec['model']['template']}.jinja"
        return (_module("method", f"peftbench.methods.{spec['method']}", locate),), (template,)
    if stage == "score":
        return (_module("metric", f"peftbench.metrics.{spec['metric']}", locate),), ()
    return (), ()


def live_code(
    stage: str, spec: dict[str, Any], script: Path, fingerprinter: Fingerprinter | None = None
) -> tuple[Code, frozenset[str]]:
    """The code of a job as it is on disk, without versions, and the other packages that it imports."""
    printer = fingerprinter or default_fingerprinter()
    modules, files = components(stage, spec, printer.locate)
    return printer.code(script, modules, files), printer.packages(script, modules, files)


def _module(what: str, name: str, locate: Locate) -> str:
    if locate(name) is None:
        raise UserError(f"{what} {name.rpartition('.')[2]!r} has no module {name}")
    return name


def _source(area: str, source: dict[str, Any], locate: Locate) -> tuple[str, ...]:
    """Modules of a source: of its kind, and of its generator where it names one.

    A kind is ``peftbench.<area>.sources.<kind>`` or ``peftbench.<area>.<kind>``; a generator is a module of the package
    ``peftbench.<area>.<kind>``.
    """
    kind = str(source.get("kind", ""))
    places = [f"peftbench.{area}.sources.{kind}", f"peftbench.{area}.{kind}"]
    found = [name for name in places if kind and locate(name) is not None]
    if not found:
        raise UserError(f"source kind {kind!r} has no module {places[1]}")
    generator = source.get("generator")
    if isinstance(generator, str):
        found.append(_module("generator", f"{places[1]}.{generator}", locate))
    return tuple(found)
