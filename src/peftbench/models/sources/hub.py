"""Base models of kind ``hub``: a repository of the Hugging Face hub in the layout of a class of transformers.

    source:
      kind: hub
      from:
        model: {hub: llava-hf/llava-1.5-7b-hf, revision: main, files: ["*.json", "*.safetensors"]}
      image_processor: {type: LlavaImageProcessor, do_pad: true}   # settings that differ from the repository's

Weights are linked as they are; the processor is saved anew, so that a run depends on what stands in the folder alone.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import msgspec

from peftbench.errors import UserError
from peftbench.spec import BaseSpec

RETRIEVES = True
ORIGIN = "model"
COPIED = ("config.json", "generation_config.json")
"""What is taken besides weights, tokenizer and processor, which have files of their own."""


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """The ``source:`` block."""

    kind: Literal["hub"]
    from_: list[str]
    image_processor: dict[str, Any] = {}
    """Settings of the image processor that differ from the repository's; ``type`` names another class."""


def parse(source: dict[str, Any]) -> Source:
    """The typed block; ``UserError`` for unknown keys and for anything but one origin ``model``."""
    try:
        parsed = msgspec.convert(source, Source)
    except msgspec.ValidationError as error:
        raise UserError(f"model source of kind 'hub': {error}") from None
    if parsed.from_ != [ORIGIN]:
        raise UserError(
            f"model source of kind 'hub': from: name one repository, {ORIGIN!r}; "
            f"there is {', '.join(parsed.from_) or 'nothing'}"
        )
    return parsed


def build(spec: BaseSpec, out_dir: Path, files: dict[str, Path]) -> dict[str, Any]:
    """Make the model folder ``out_dir`` from the retrieved repository; return facts for the record."""
    from peftbench.models.load import register_code
    from peftbench.models.weights import link_weights

    parsed = parse(spec.source)
    folder = files[ORIGIN]
    register_code(spec.names)
    if not (folder / "config.json").is_file():
        raise UserError(f"model {spec.model}: the repository has no config.json: see source.from.model.files")
    out_dir.mkdir(parents=True, exist_ok=True)
    weights = link_weights(folder, out_dir)
    for name in COPIED:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out_dir / name)
    save_processor(folder, out_dir, parsed.image_processor)
    return {"weights": weights}


def save_processor(folder: Path, out_dir: Path, settings: dict[str, Any]) -> None:
    """Write tokenizer and processor of a hub folder anew, with other settings of its image processor.

    Raises ``UserError`` for settings that the image processor does not have, and where files are missing.
    """
    from peftbench.models.processors import load_processor

    try:
        processor = load_processor(folder, settings)
    except (OSError, ValueError, TypeError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"base model: cannot load the processor of {folder}: {line}") from error
    processor.save_pretrained(out_dir)
