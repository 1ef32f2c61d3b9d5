"""Base models of kind ``tiny``: unpack the shipped weights, or train them again by their recipe.

``weights: shipped`` (the default) copies the folder that ships with the package after checking every file's sha256;
``weights: train`` runs the recipe (``peftbench.models.tiny``; an hour or two on two CPU cores). Both end in the same
layout: a hub folder that the Auto classes load.
"""

from __future__ import annotations

import hashlib
import importlib
import shutil
from pathlib import Path
from typing import Any, Literal

import msgspec

from peftbench.errors import UserError
from peftbench.models.tiny.recipe import Recipe
from peftbench.spec import BaseSpec

SHIPPED = Path(__file__).parent.parent / "shipped" / "tiny-llava"
TRAINER = "peftbench.models.tiny.train"


class Shipped(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ``source:`` block of the tiny model that ships."""

    kind: Literal["tiny"]
    weights: Literal["shipped"] = "shipped"
    sha256: str = (
        ""  # of model.safetensors: names the weights in the model's file, and so in every digest below
    )


def parse(source: dict[str, Any]) -> Shipped | Recipe:
    """Return the typed block.

    Raises ``UserError`` on an unknown or mistyped key.
    """
    try:
        if source.get("weights") == "train":
            return msgspec.convert(source, Recipe)
        return msgspec.convert(source, Shipped)
    except msgspec.ValidationError as error:
        raise UserError(f"model source of kind 'tiny': {error}") from None


def components(source: dict[str, Any]) -> list[str]:
    """Return the modules that decide the weights: none beyond the copy for shipped ones."""
    parsed = parse(source)
    if isinstance(parsed, Shipped):
        return []
    return [TRAINER, *(f"peftbench.data.embedded.{g}" for g in sorted(parsed.exposure.mix))]


def build(spec: BaseSpec, out_dir: Path, files: dict[str, Path]) -> dict[str, Any]:
    """Make the model folder ``out_dir``; return facts for the record."""
    parsed = parse(spec.source)
    if isinstance(parsed, Shipped):
        return _copy_shipped(parsed, out_dir)
    # by name: the training's code is part of a digest only where it runs
    facts: dict[str, Any] = importlib.import_module(TRAINER).train(parsed, out_dir)
    return facts


def _copy_shipped(source: Shipped, out_dir: Path) -> dict[str, Any]:
    out_dir.mkdir(parents=True, exist_ok=True)
    shipped = msgspec.json.decode((SHIPPED / "recipe.json").read_bytes())
    for name, digest in shipped["files"].items():
        data = (SHIPPED / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise UserError(
                f"{SHIPPED / name} is not the file that was shipped: restore it with git checkout"
            )
        shutil.copyfile(SHIPPED / name, out_dir / name)
    weights = shipped["files"]["model.safetensors"]
    if source.sha256 and source.sha256 != weights:
        raise UserError(
            f"the shipped weights have sha256 {weights}, the model file names {source.sha256}: correct "
            "source.sha256, or set weights: train"
        )
    return {
        "weights": "shipped",
        "files": shipped["files"],
        "probe": shipped["probe"],
        "trained_on": shipped["device"],
    }
