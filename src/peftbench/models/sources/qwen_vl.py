"""Base models of kind ``qwen_vl``: the published Qwen-VL-Chat, made into a folder that the Auto classes load.

    source:
      kind: qwen_vl
      from:
        model: {hub: Qwen/Qwen-VL-Chat, files: [...]}

Of the repository only data is used: configuration, weights (every tensor must be there, with its shape, and no
other) and ``qwen.tiktoken``. Its Python files are neither needed nor run.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from peftbench.errors import UserError
from peftbench.spec import BaseSpec

if TYPE_CHECKING:
    from peftbench.models.qwen_vl.configuration import QwenVLConfig

RETRIEVES = True
CODE = "peftbench.models.qwen_vl"
ORIGIN = "model"
"""The one origin: the repository's files."""
TIKTOKEN = "qwen.tiktoken"


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """The ``source:`` block."""

    kind: Literal["qwen_vl"]
    from_: list[str]


def parse(source: dict[str, Any]) -> Source:
    """The typed block; ``UserError`` on unknown keys and on other origins than ``model``."""
    try:
        parsed = msgspec.convert(source, Source)
    except msgspec.ValidationError as error:
        raise UserError(f"model source of kind 'qwen_vl': {error}") from None
    if parsed.from_ != [ORIGIN]:
        raise UserError(
            f"model source of kind 'qwen_vl': from: needs the one origin {ORIGIN!r}, the repository of the model; "
            f"there is {', '.join(parsed.from_) or 'none'}"
        )
    return parsed


def components(source: dict[str, Any]) -> list[str]:
    """Modules that decide the result besides this one: those of the architecture."""
    return [CODE]


def build(spec: BaseSpec, out_dir: Path, files: dict[str, Path]) -> dict[str, Any]:
    """Make the model folder ``out_dir`` from the repository in ``files["model"]``; return facts for the record.

    Weights in safetensors are linked (copied where the disk cannot link), pickled ones are converted one shard
    at a time. Raises ``UserError`` where a file is missing or does not fit.
    """
    from peftbench.models.qwen_vl import QwenVLProcessor
    from peftbench.models.qwen_vl.processing import clip_image_processor
    from peftbench.models.qwen_vl.tokenization import build_tokenizer
    from peftbench.models.weights import link_weights

    parse(spec.source)
    folder = files[ORIGIN]
    config = read_config(folder / "config.json")
    tokenizer = build_tokenizer(folder / TIKTOKEN)
    _check_tokenizer(config, tokenizer, folder)
    tensors, dtype = check_weights(folder, config)
    config.dtype = dtype

    out_dir.mkdir(parents=True, exist_ok=True)
    sizes = link_weights(folder, out_dir)
    config.save_pretrained(out_dir)
    generation_settings(tokenizer).save_pretrained(out_dir)
    processor = QwenVLProcessor(
        clip_image_processor(config.vision.image_size),
        tokenizer,
        num_image_tokens=config.vision.n_queries,
    )
    processor.save_pretrained(out_dir)
    return {
        "tensors": tensors,
        "dtype": str(dtype).removeprefix("torch."),
        "vocabulary": len(tokenizer),
        "files": {name: _sha256(out_dir / name) for name in sorted(sizes)},
    }


def read_config(path: Path) -> QwenVLConfig:
    """The configuration of a Qwen-VL repository, without what only its own code reads (``auto_map``).

    Raises ``UserError`` for another model's configuration and for settings that the port does not compute.
    """
    import dataclasses

    from peftbench.models.qwen_vl.configuration import QwenVLConfig

    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"base model: {path}: not a configuration ({error}): fetch it again") from None
    if raw.get("model_type") != QwenVLConfig.model_type or not isinstance(raw.get("visual"), dict):
        raise UserError(
            f"base model: {path}: not a Qwen-VL checkpoint: model_type qwen with a visual block is"
        )
    known = {field.name for field in dataclasses.fields(QwenVLConfig)}
    # Names of older versions of transformers, and settings of how rather than what.
    ignored = {"transformers_version", "dtype", "architectures"}
    try:
        return QwenVLConfig(**{key: raw[key] for key in raw if key in known - ignored})
    except (TypeError, ValueError) as error:
        raise UserError(f"base model: {path}: {' '.join(str(error).split())}") from None


def check_weights(folder: Path, config: QwenVLConfig) -> tuple[int, Any]:
    """Number and type of the tensors of a repository, which must be those of the model by name and shape.

    Tensors are mapped, not read. Raises ``UserError`` for a missing, unexpected or wrongly shaped tensor, and for
    tensors of different types.
    """
    import torch

    from peftbench.models.qwen_vl import QwenVLForConditionalGeneration
    from peftbench.models.weights import read_weights

    with torch.device("meta"):
        model = QwenVLForConditionalGeneration(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found: dict[str, tuple[int, ...]] = {}
    dtypes = set()
    for name, tensor in read_weights(folder):
        if name in found:
            raise UserError(f"base model: {folder}: {name} is stored twice: fetch it again")
        found[name] = tuple(tensor.shape)
        dtypes.add(tensor.dtype)
    for what, names in (
        ("misses", expected.keys() - found.keys()),
        ("has unexpected", found.keys() - expected.keys()),
        ("has wrongly shaped", {n for n in found.keys() & expected.keys() if found[n] != expected[n]}),
    ):
        if names:
            first = min(names)
            shapes = f" {found[first]} instead of {expected[first]}" if "shaped" in what else ""
            raise UserError(
                f"base model: {folder} {what} {'tensor' if len(names) == 1 else 'tensors'} {first}{shapes}"
                + (f" and {len(names) - 1} more" if len(names) > 1 else "")
                + ": not the weights of this configuration"
            )
    if len(dtypes) != 1:
        raise UserError(
            f"base model: {folder}: tensors of several types: {', '.join(sorted(map(str, dtypes)))}"
        )
    return len(found), dtypes.pop()


def generation_settings(tokenizer: Any) -> Any:
    """Greedy generation that ends at the end of a turn, at the beginning of another one or of the text.

    The repository's own settings sample, and do not end at ``<|im_end|>``.
    """
    from transformers import GenerationConfig

    from peftbench.models.qwen_vl.tokenization import END_OF_TEXT, TURN_END, TURN_START

    ends = tokenizer.convert_tokens_to_ids([TURN_END, TURN_START, END_OF_TEXT])
    return GenerationConfig(
        do_sample=False, max_new_tokens=512, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )


def _check_tokenizer(config: QwenVLConfig, tokenizer: Any, folder: Path) -> None:
    """Vocabulary and configuration must agree on where an image begins."""
    from peftbench.models.qwen_vl.tokenization import IMAGE_END, IMAGE_PAD, IMAGE_START

    start = config.vision.image_start_id
    ids = tokenizer.convert_tokens_to_ids([IMAGE_START, IMAGE_END, IMAGE_PAD])
    if ids != [start, start + 1, start + 2]:
        raise UserError(
            f"base model: {folder}: {TIKTOKEN} puts {IMAGE_START} at id {ids[0]}, config.json at {start}: "
            "they belong to different models"
        )
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"base model: {folder}: {TIKTOKEN} has {len(tokenizer)} tokens, config.json {config.vocab_size}"
        )
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
