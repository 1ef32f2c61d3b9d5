"""Base models of kind ``llava_original``: a checkpoint in the layout of LLaVA's own code, and its vision tower.

Such a repository holds the language model and the projector (``model.mm_projector``); the CLIP tower lies in one of
its own, which may be a tuned one: ShareGPT4V's is not OpenAI's, and with the wrong one everything still runs, only
worse. Both are joined into one folder in the hub's LLaVA layout.

    source:
      kind: llava_original
      from:
        llm: {hub: Lin-Chen/ShareGPT4V-7B, revision: main}
        tower: {hub: Lin-Chen/ShareGPT4V-7B_Pretrained_vit-large336-l12, revision: main}
        tokenizer: {hub: llava-hf/llava-1.5-7b-hf, revision: main, files: ["tokenizer*", "special_tokens_map.json"]}

``tokenizer`` may be left out where the checkpoint has a ``tokenizer.json``. Key names, the vocabulary's size and the
draw of its new rows are those of transformers' converter of LLaVA.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from peftbench.errors import UserError
from peftbench.spec import BaseSpec

if TYPE_CHECKING:
    import torch

RETRIEVES = True
ORIGINS = ("llm", "tower", "tokenizer")
RENAMED = (
    (r"^model\.mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
    (r"^model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1."),
)
"""Names in LLaVA's own layout and in transformers'; ``lm_head`` is the same in both."""
TOWER = "model.vision_tower."
VOCABULARY = ("model.language_model.embed_tokens.weight", "lm_head.weight")
"""Weights with a row per token."""
BUFFERS = re.compile(r".*\.(inv_freq|position_ids)")
"""What old checkpoints store although it follows from the configuration."""
IMAGE_TOKEN, PAD_TOKEN = "<image>", "<pad>"
ROWS_MULTIPLE = 64
"""The vocabulary is padded to a multiple of this, as that of the converted LLaVA-1.5 is."""
NEW_ROWS_SEED = 0


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """The ``source:`` block."""

    kind: Literal["llava_original"]
    from_: list[str]
    other_tower: bool = False
    """Take a tower that is not the one which the checkpoint's configuration names, such as OpenAI's."""
    image_processor: dict[str, Any] = {}
    """Settings of ``LlavaImageProcessor`` that differ from LLaVA's: padding to a square, the tower's own sizes."""


def parse(source: dict[str, Any]) -> Source:
    """The typed block; ``UserError`` for unknown keys and origins."""
    try:
        parsed = msgspec.convert(source, Source)
    except msgspec.ValidationError as error:
        raise UserError(f"model source of kind 'llava_original': {error}") from None
    if not {"llm", "tower"} <= set(parsed.from_) <= set(ORIGINS):
        raise UserError(
            "model source of kind 'llava_original': from: name llm and tower, and tokenizer where needed; "
            f"there is {', '.join(parsed.from_) or 'nothing'}"
        )
    return parsed


def build(spec: BaseSpec, out_dir: Path, files: dict[str, Path]) -> dict[str, Any]:
    """Make the model folder ``out_dir`` of checkpoint and tower; return facts for the record.

    Raises ``UserError`` where the tower is not the checkpoint's, and where weights are missing or left over.
    """
    import torch
    from transformers import GenerationConfig, LlavaForConditionalGeneration

    parsed = parse(spec.source)
    llm, tower = files["llm"], files["tower"]
    original = _json(llm / "config.json")
    tower_name = _check_tower(spec.model, original, tower, parsed.other_tower)
    processor = _processor(files.get("tokenizer", llm), tower, original, parsed.image_processor)
    image_id = processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    rows = -(-max(len(processor.tokenizer), original["vocab_size"]) // ROWS_MULTIPLE) * ROWS_MULTIPLE
    if image_id < original["vocab_size"]:
        raise UserError(
            f"model {spec.model}: {IMAGE_TOKEN} has id {image_id}, which is a token of the checkpoint "
            f"(vocabulary {original['vocab_size']}): from.tokenizer belongs to another model"
        )
    config = _config(original, _json(tower / "config.json"), rows, image_id, processor)
    out_dir.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        expected = {name: p.shape for name, p in LlavaForConditionalGeneration(config).named_parameters()}
    sizes, dtype = _write_weights(spec.model, llm, tower, out_dir, expected, original["vocab_size"])
    config.dtype = dtype
    config.save_pretrained(out_dir)
    GenerationConfig(
        eos_token_id=processor.tokenizer.eos_token_id,
        bos_token_id=processor.tokenizer.bos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
    ).save_pretrained(out_dir)
    processor.save_pretrained(out_dir)
    return {"weights": sizes, "tower": tower_name, "vocabulary": rows}


def _check_tower(model: str, original: dict[str, Any], tower: Path, other: bool) -> str:
    """Name of the tower; ``UserError`` if it is not the one that the checkpoint was trained with."""
    named = str(original.get("mm_vision_tower", ""))
    record = _json(tower / "record.json") if (tower / "record.json").is_file() else {}
    given = str(record.get("spec", {}).get("hub") or _json(tower / "config.json").get("_name_or_path") or "")
    same = bool(named) and _last(named) == _last(given)
    if not same and not other:
        raise UserError(
            f"model {model}: from.tower is {given or 'of unknown origin'}, but the checkpoint was trained with "
            f"{named or 'a tower that it does not name'}: take that one, or say other_tower: true"
        )
    return given


def _last(name: str) -> str:
    """The last part of a repository's or a folder's name."""
    return name.rstrip("/").rpartition("/")[2].lower()


def _processor(folder: Path, tower: Path, original: dict[str, Any], settings: dict[str, Any]) -> Any:
    """Tokenizer with the two tokens that the original lacks, and an image processor that pads to a square."""
    from transformers import AutoTokenizer, LlavaProcessor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    from peftbench.models.processors import change_image_processor, images_only

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(
            f"base model: {folder} holds no tokenizer that can be read without sentencepiece ({line}): name one "
            "with a tokenizer.json as from.tokenizer, such as llava-hf/llava-1.5-7b-hf"
        ) from None
    for token in (IMAGE_TOKEN, PAD_TOKEN):
        if token not in tokenizer.get_vocab():
            tokenizer.add_tokens([token], special_tokens=True)
    tokenizer.pad_token = PAD_TOKEN
    vision = _vision(_json(tower / "config.json"))
    side = vision["image_size"]
    image_processor = LlavaImageProcessorPil(
        do_pad=original.get("image_aspect_ratio", "pad") == "pad",
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
    )
    if settings:
        image_processor = change_image_processor(image_processor, settings)
    whole = original.get("mm_vision_select_feature", "patch") != "patch"
    return images_only(LlavaProcessor)(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=vision["patch_size"],
        vision_feature_select_strategy="full" if whole else "default",
        num_additional_image_tokens=1,
    )


def _vision(config: dict[str, Any]) -> dict[str, Any]:
    """The vision part of a tower's configuration, which may be that of a whole CLIP."""
    found: dict[str, Any] = config.get("vision_config", config)
    if "image_size" not in found or "patch_size" not in found:
        raise UserError("base model: from.tower has no configuration of a CLIP vision tower")
    return found


def _config(original: dict[str, Any], tower: dict[str, Any], rows: int, image_id: int, processor: Any) -> Any:
    """The configuration in transformers' form."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    projector = original.get("mm_projector_type", "mlp2x_gelu")
    if projector != "mlp2x_gelu":
        raise UserError(f"base model: mm_projector_type {projector} is not LLaVA-1.5's mlp2x_gelu")
    known = {*LlamaConfig.__annotations__, "rope_theta", "rope_scaling"}
    text = {name: value for name, value in original.items() if name in known}
    text |= {"vocab_size": rows, "pad_token_id": processor.tokenizer.pad_token_id}
    vision = {
        name: value for name, value in _vision(tower).items() if name in CLIPVisionConfig.__annotations__
    }
    return LlavaConfig(
        text_config=LlamaConfig(**text),
        vision_config=CLIPVisionConfig(**vision),
        image_token_index=image_id,
        projector_hidden_act="gelu",
        vision_feature_layer=original.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=processor.vision_feature_select_strategy,
        pad_token_id=processor.tokenizer.pad_token_id,
        architectures=["LlavaForConditionalGeneration"],
    )


def _write_weights(
    model: str, llm: Path, tower: Path, out_dir: Path, expected: dict[str, Any], old_rows: int
) -> tuple[dict[str, int], str]:
    """Write both parts under transformers' names, one tensor at a time; sizes of the files and the type.

    Raises ``UserError`` where the checkpoint lacks anything but the tower, or holds more.
    """
    from peftbench.models.weights import ShardWriter, read_weights

    seen: set[str] = set()
    dtype = ""
    with ShardWriter(out_dir) as writer:
        for part, folder in (("llm", llm), ("tower", tower)):
            wanted = {name for name in expected if name.startswith(TOWER) == (part == "tower")}
            for key, tensor in read_weights(folder):
                name = _renamed(key) if part == "llm" else _tower_name(key)
                if name is None or BUFFERS.fullmatch(name):
                    continue
                if name not in wanted:
                    raise UserError(
                        f"model {model}: from.{part} holds {key}, which is no part of it in a LLaVA"
                    )
                if name in VOCABULARY:
                    tensor = _more_rows(tensor[:old_rows], expected[name][0])
                if tensor.shape != expected[name]:
                    raise UserError(
                        f"model {model}: from.{part}: {key} is {tuple(tensor.shape)}, "
                        f"expected {tuple(expected[name])}"
                    )
                dtype = dtype or str(tensor.dtype).removeprefix("torch.")
                writer.add(name, tensor)
                seen.add(name)
            if missing := sorted(wanted - seen):
                raise UserError(
                    f"model {model}: from.{part} lacks {len(missing)} of {len(wanted)} weights "
                    f"(first: {missing[0]})"
                )
    return writer.sizes, dtype


def _renamed(key: str) -> str:
    for pattern, replacement in RENAMED:
        key = re.sub(pattern, replacement, key)
    return key


def _tower_name(key: str) -> str | None:
    """Name of a weight of CLIP's vision tower; None for what a whole CLIP has besides."""
    if key.startswith(("text_model.", "text_projection", "visual_projection", "logit_scale")):
        return None
    return TOWER + key.removeprefix("vision_model.")


def _more_rows(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Append rows drawn from N(mean, 1e-5 covariance) of the old ones, as transformers' converter does."""
    import torch

    old = rows.float()
    centred = old - old.mean(dim=0)
    generator = torch.Generator().manual_seed(NEW_ROWS_SEED)
    draw = torch.randn(count - len(old), len(old), generator=generator)
    # A sum of the centred rows with normal weights has their covariance, without forming it.
    new = old.mean(dim=0) + (1e-5 / len(old)) ** 0.5 * (draw @ centred)
    return torch.cat([rows, new.to(rows.dtype)])


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}): see 'files' of its origin") from None
