"""Run the recipe of the tiny base model: tokenizer, tower, exposure, and the folder that results."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from peftbench.models.tiny.recipe import Recipe


def sha256_of(path: Path) -> str:
    """Return the sha256 (hex) of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def train(
    source: Recipe,
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
    made_by = hashlib.sha256(
        msgspec.json.encode([source.sizes, source.vision, source.seed, limit])
    ).hexdigest()[:16]
    kept = keep / f"tower-{made_by}.pt" if keep else None
    if kept and kept.exists():
        saved = torch.load(kept, weights_only=True)
        tower.load_state_dict(saved["tower"])
        vision = saved["facts"]
    else:
        vision = pretrain_tower(
            tower, model.config.vision_feature_layer, source.vision, device, workers, limit
        )
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
        "torch": str(torch.__version__),
        "files": files,
        "probe": vision["probe"],
        "vision_log": vision["log"],
        "exposure_log": exposure["log"],
        "examples": exposure["examples"],
    }
