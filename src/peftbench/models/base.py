"""Build a base model: hand the work to the module of its source's kind."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.spec import BaseSpec


def build_base_model(spec: BaseSpec, out_dir: Path) -> dict[str, Any]:
    """Make the hub-layout folder of one base model in ``out_dir``; return facts for its record.

    Raises ``UserError`` for an unknown kind of source.
    """
    kind = str(spec.source.get("kind", ""))
    try:
        module = importlib.import_module(f"peftbench.models.sources.{kind}")
    except ModuleNotFoundError:
        raise UserError(
            f"model {spec.model}: unknown kind of source {kind!r}: see src/peftbench/models/sources/"
        ) from None
    facts: dict[str, Any] = module.build(spec, out_dir)
    return facts
