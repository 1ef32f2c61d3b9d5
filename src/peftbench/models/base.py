"""Build a base model: hand the work to the module of its source's kind, then compare it with its model file."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError
from peftbench.spec import BaseSpec

if TYPE_CHECKING:
    from peftbench.spec import ModelNames


def build_base_model(spec: BaseSpec, out_dir: Path, files: dict[str, Path]) -> dict[str, Any]:
    """Make the hub-layout folder of one base model in ``out_dir``; return facts for its record.

    ``files`` holds the folders of what was retrieved, by the names of the source's ``from:``. Raises ``UserError``
    for an unknown kind of source, for names that do not fit the model, and where its parameters are not as many as
    the model file says.
    """
    kind = str(spec.source.get("kind", ""))
    try:
        module = importlib.import_module(f"peftbench.models.sources.{kind}")
    except ModuleNotFoundError as error:
        if error.name != f"peftbench.models.sources.{kind}":
            raise
        raise UserError(
            f"model {spec.model}: unknown kind of source {kind!r}: see src/peftbench/models/sources/"
        ) from None
    facts: dict[str, Any] = module.build(spec, out_dir, files)
    if spec.names is not None and (files or spec.parameters):
        counts = count_parameters(out_dir, spec.names)
        wrong = {name: n for name, n in spec.parameters.items() if counts.get(name) != n}
        if wrong:
            said = ", ".join(f"{name} {counts.get(name, 0):,} instead of {n:,}" for name, n in wrong.items())
            raise UserError(
                f"model {spec.model}: parameters: the model has {said}: another model or revision was fetched, or "
                "the model file is wrong"
            )
        facts["parameters"] = counts
    return facts


def count_parameters(directory: Path, names: ModelNames) -> dict[str, int]:
    """Parameters per component of the model that a hub folder's configuration describes; no weights are read.

    Tied weights count once. Raises ``UserError`` where ``names`` do not fit.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from peftbench.models.arch import component_counts, measure_dims, partition
    from peftbench.models.load import register_code

    register_code(names)
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
    except (OSError, ValueError) as error:
        raise UserError(f"base model: cannot build {directory}: {' '.join(str(error).split())}") from error
    measure_dims(model, names)
    return component_counts(partition(model, names), model)
