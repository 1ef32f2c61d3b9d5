"""The stages of the workflow: their scripts, and the modules that each job loads by name.

Planning and jobs both come here, so the code that a ticket was made with and the code that a job finds are
listed by the same rules.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peftbench.errors import UserError, did_you_mean
from peftbench.fingerprint import Code, Fingerprinter, default_fingerprinter

FINGERPRINT_EXEMPT = "names results; does not compute them"

Components = tuple[tuple[str, ...], tuple[str, ...]]
"""Modules by full name, and data files relative to the package's folder."""
Locate = Callable[[str], Any]

RULES = {
    "retrieve": "retrieve_source",
    "prepare": "prepare_dataset",
    "subset": "draw_subset",
    "build": "build_base_model",
    "expose": "expose_base_model",
    "train": "train_adapter",
    "choose": "choose_run",
    "predict": "generate_predictions",
    "judge": "judge_predictions",
    "score": "score_predictions",
    "tabulate": "tabulate_study",
    "plot": "plot_study",
    "report": "build_report",
    "describe": "describe_study",
    "claims": "test_claims",
}
"""Stage -> name of its rule and of its script in ``workflow/scripts``."""
TOLERANT = ("choose",)
"""Stages that can do with inputs that failed."""


def components(stage: str, spec: dict[str, Any], locate: Locate) -> Components:
    """What a job of ``stage`` with this spec (plain data) loads by name; ``UserError`` for unknown names."""
    if stage == "prepare":
        return _source("data", spec["source"], locate), ()
    if stage == "build":
        return (*_source("models", spec["source"], locate), *_model_code(spec.get("names"), locate)), ()
    if stage == "expose":
        template = f"models/templates/{spec['model']['template']}.jinja"
        return _model_code(spec["model"], locate), (template,)
    if stage in ("train", "predict"):
        template = f"models/templates/{spec['model']['template']}.jinja"
        method = _module("method", f"peftbench.methods.{spec['method']}", locate)
        return (method, *_model_code(spec["model"], locate)), (template,)
    if stage == "judge":
        judge = _module("judge", f"peftbench.judging.{spec['kind']}", locate)
        scale = _module("scale", f"peftbench.metrics.scales.{spec['scale']}", locate)
        names = spec.get("names")
        templates = (f"models/templates/{names['template']}.jinja",) if names else ()
        return (judge, scale, *_model_code(names, locate)), templates
    if stage == "plot":
        return (_module("kind of figure", f"peftbench.analysis.figures.{spec['kind']}", locate),), ()
    if stage == "describe":
        return (_module("kind of study", f"peftbench.analysis.descriptions.{spec['kind']}", locate),), ()
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


def _model_code(names: dict[str, Any] | None, locate: Locate) -> tuple[str, ...]:
    """The module that registers an architecture which transformers lacks."""
    code = names.get("code") if names else None
    return (_module("model code", f"peftbench.models.{code}", locate),) if code else ()


def _module(what: str, name: str, locate: Locate) -> str:
    if locate(name) is None:
        package, _, last = name.rpartition(".")
        found = locate(package) if not package.endswith(".") else None
        known = [p.stem for p in Path(found[0]).parent.glob("*.py") if p.stem != "__init__"] if found else []
        raise UserError(f"unknown {what} {last!r}: there is no module {name}{did_you_mean(last, known)}")
    return name


def _source(area: str, source: dict[str, Any], locate: Locate) -> tuple[str, ...]:
    """Modules of a source: of its kind, of its generator if it names one, and those that the kind lists.

    A kind is ``peftbench.<area>.sources.<kind>``; it may have ``components(source) -> list[str]``. A
    generator is a module of ``peftbench.<area>.<kind>``.
    """
    found = [source_module(area, source, locate)]
    generator = source.get("generator")
    if isinstance(generator, str):
        found.append(_module("generator", f"peftbench.{area}.{source['kind']}.{generator}", locate))
    listed = getattr(importlib.import_module(found[0]), "components", None)
    if listed is not None:
        found.extend(_module("component", name, locate) for name in listed(source))
    return tuple(dict.fromkeys(found))


def source_module(area: str, source: dict[str, Any], locate: Locate) -> str:
    """Full name of the module of a source's kind; ``UserError`` where the kind is missing or unknown."""
    kind = source.get("kind")
    if not kind:
        raise UserError("source: key 'kind' is missing")
    name = f"peftbench.{area}.sources.{kind}"
    if locate(name) is None:
        folder = Path(locate(f"peftbench.{area}")[0]).parent / "sources"
        known = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
        raise UserError(f"source: unknown kind {kind!r}{did_you_mean(kind, known)}")
    return name
