"""Base models of kind ``tiny``: unpack the shipped weights, or train them again by their recipe.

``weights: shipped`` (the default) copies the folder that ships with the package after checking every file's
sha256; ``weights: train`` runs the recipe (minutes on a GPU, hours on two CPU cores). Both end in the same layout:
a hub folder that the Auto classes load.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any, Literal

import msgspec

from peftbench.errors import UserError
from peftbench.models.tiny.architecture import Sizes
from peftbench.models.tiny.exposure import ExposureRecipe
from peftbench.models.tiny.vision import VisionRecipe
from peftbench.spec import BaseSpec

SHIPPED = Path(__file__).parent.parent / "shipped" / "tiny-llava"


class TinySource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ``source:`` block of a tiny model's file."""

    kind: Literal["tiny"]
    weights: Literal["shipped", "train"] = "shipped"
    sha256: str = ""  # of the shipped model.safetensors: the identity of shipped weights
    sizes: Sizes = Sizes()
    vision: VisionRecipe = VisionRecipe()
    exposure: ExposureRecipe = ExposureRecipe()
    seed: int = 5


def parse(source: dict[str, Any]) -> TinySource:
    """Return the typed block.

    Raises ``UserError`` on an unknown or mistyped key.
    """
    try:
        return msgspec.convert(source, TinySource)
    except msgspec.ValidationError as error:
        raise UserError(f"model source of kind 'tiny': {error}") from None


def components(source: dict[str, Any]) -> list[str]:
    """Return the modules that decide the weights: none beyond the copy for shipped ones."""
    if parse(source).weights == "shipped":
        return []
    return [
        "peftbench.models.tiny.vision",
        "peftbench.models.tiny.exposure",
        *(f"peftbench.data.embedded.{g}" for g in sorted(parse(source).exposure.mix)),
    ]


def build(spec: BaseSpec, out_dir: Path) -> dict[str, Any]:
    """Make the model folder ``out_dir``; return facts for the record."""
    source = parse(spec.source)
    return _copy_shipped(source, out_dir) if source.weights == "shipped" else train(source, out_dir)


def sha256_of(path: Path) -> str:
    """Return the sha256 (hex) of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _copy_shipped(source: TinySource, out_dir: Path) -> dict[str, Any]:
    out_dir.mkdir(parents=True, exist_ok=True)
    shipped = msgspec.json.decode((SHIPPED / "recipe.json").read_bytes())
    for name, digest in shipped["files"].items():
        if sha256_of(SHIPPED / name) != digest:
            raise UserError(
                f"{SHIPPED / name} is not the file that was shipped: restore it with git checkout"
            )
        shutil.copyfile(SHIPPED / name, out_dir / name)
    if source.sha256 and source.sha256 != shipped["files"]["model.safetensors"]:
        raise UserError(
            f"the shipped weights have sha256 {shipped['files']['model.safetensors']}, the model file names "
            f"{source.sha256}: correct source.sha256, or set weights: train"
        )
    return {
        "weights": "shipped",
        "files": shipped["files"],
        "probe": shipped["probe"],
        "trained_on": shipped["device"],
    }


def train(
    source: TinySource,
    out_dir: Path,
    device: str = "auto",
    workers: int = 0,
    limit: int | None = None,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Run the recipe and save the folder.

    ``limit`` stops both phases early (to check a recipe's beginning). ``keep`` is a folder where the tower is kept
    by the digest of what made it, so that a change of the exposure alone does not train the tower again.
    """
    import platform

    import torch
    from safetensors.torch import save_file

    from peftbench.models.tiny.architecture import build_model, build_processor, train_tokenizer
    from peftbench.models.tiny.exposure import corpus, expose
    from peftbench.models.tiny.vision import pretrain_tower

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = train_tokenizer(corpus(source.exposure), source.sizes.vocabulary)
    processor = build_processor(source.sizes, tokenizer)
    model = build_model(source.sizes, tokenizer, source.seed)
    tower = model.model.vision_tower
    made_by = hashlib.sha256(msgspec.json.encode([source.sizes, source.vision, source.seed, limit])).hexdigest()[:16]
    kept = keep / f"tower-{made_by}.pt" if keep else None
    if kept and kept.exists():
        saved = torch.load(kept, weights_only=True)
        tower.load_state_dict(saved["tower"])
        vision = saved["facts"]
    else:
        vision = pretrain_tower(tower, model.config.vision_feature_layer, source.vision, device, workers, limit)
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"tower": tower.state_dict(), "facts": vision}, kept)
    exposure = expose(model, processor, source.exposure, device, workers, limit)

    out_dir.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(out_dir)
    model.generation_config.save_pretrained(out_dir)
    processor.save_pretrained(out_dir)
    # Half precision halves what the repository carries; loaded in fp32 it gives exactly these rounded values.
    weights = {name: tensor.to(torch.float16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, out_dir / "model.safetensors", metadata={"format": "pt"})
    files = {p.name: sha256_of(p) for p in sorted(out_dir.iterdir()) if p.name != "recipe.json"}
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {
        "weights": "train",
        "recipe": msgspec.to_builtins(source),
        "device": name,
        "torch": torch.__version__,
        "files": files,
        "probe": vision["probe"],
        "vision_log": vision["log"],
        "exposure_log": exposure["log"],
        "examples": exposure["examples"],
    }
