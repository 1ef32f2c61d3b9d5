"""The tiny checkpoints of ``model_zoo``, built and loaded as the workflow does it, and examples for them."""

from __future__ import annotations

import atexit
import copy
import io
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from model_zoo import CONFIG, model_names, retrieved, source
from peftbench.data.example import Example
from peftbench.spec import Execution, Optim, Prompt, TrainSpec

MODELS = sorted(path.stem for path in CONFIG.glob("*.yaml") if path.stem != "tiny-llava")
PROMPT = Prompt(templates=["{question}\nAnswer the question using a single word or phrase."])
SHAPES = ((60, 60), (100, 30), (28, 90), (64, 40))
"""Sizes of the pictures: wide, high, large, small; so models that cut into tiles cut them differently."""
ANSWERS = ("red", "green and yellow", "blue", "no")
CPU = Execution(device="cpu")
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4, "dropout": 0.0},
    "ia3": {},
    "adapter": {"bottleneck": 8, "dropout": 0.0},
    "prefix": {"tokens": 5},
}


@cache
def root() -> Path:
    """A folder of this process, removed at its end."""
    folder = tempfile.mkdtemp(prefix="model-zoo-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@cache
def built(name: str) -> Path:
    """The model's folder, built from its repositories."""
    from peftbench.models.base import build_base_model
    from peftbench.spec import BaseSpec

    out = root() / "built" / name
    # The published counts are those of the real sizes.
    spec = BaseSpec(model=name, source=source(name), names=model_names(name))
    build_base_model(spec, out, retrieved(name, root()))
    return out


@cache
def _loaded(name: str, precision: str) -> Any:
    import torch

    from peftbench.models.load import load_base

    return load_base(built(name), precision, torch.device("cpu"), model_names(name))


def load(name: str, seed: int = 0, precision: str = "fp32") -> Any:
    """A fresh copy of a base model; torch's generator starts at ``seed``."""
    import torch

    torch.set_num_threads(1)  # more threads make models of this size many times slower
    model = copy.deepcopy(_loaded(name, precision))
    torch.manual_seed(seed)
    return model


@cache
def examples() -> tuple[Example, ...]:
    """Four with pictures of different shape, and one of text alone."""
    import numpy as np
    from PIL import Image

    from peftbench.data.images import store_image

    rng = np.random.default_rng(0)
    rows = []
    for i, (shape, answer) in enumerate(zip([*SHAPES, None], [*ANSWERS, "yes"], strict=True)):
        sha = ""
        if shape is not None:
            base = rng.integers(0, 255, 3)
            pixels = np.clip(base + rng.integers(-60, 60, (shape[1], shape[0], 3)), 0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            sha = store_image(images_folder(), buffer.getvalue())
        rows.append(
            Example(
                id=f"train-{i}",
                image=sha,
                question=f"what colour is the square{' shown here' * (i % 2)}?",
                choices=[],
                answer_index=-1,
                answers=[answer],
                target=answer,
                question_type="",
                answer_type="",
                split="train",
                source="{}",
            )
        )
    return tuple(rows)


def images_folder() -> Path:
    """Where the pictures are kept."""
    return root() / "images"


def encoded(base: Any, name: str, answers: bool = True, which: slice = slice(None)) -> tuple[Any, list[Any]]:
    """The source of images and the items (with their tensors) of the examples."""
    from peftbench.training.batches import encode
    from peftbench.training.features import LiveImages

    images = LiveImages(base, images_folder())
    rows = encode(base, images, model_names(name), PROMPT, examples()[which], None, answers=answers)
    return images, [(row, images.load(row.image) if row.image else {}) for row in rows]


def train_spec(name: str, method: str, connector: str = "tuned", **changes: Any) -> TrainSpec:
    """A run of a few steps with settings under which every part moves."""
    from model_zoo import model_file
    from peftbench.training.adapt import load_method

    values: dict[str, Any] = {
        "model": model_names(name),
        "prompt": PROMPT,
        "method": method,
        "settings": {
            key: value
            for key, value in model_file(name).get("methods", {}).get(method, {}).items()
            if key in load_method(method).Config.__struct_fields__ and key not in ("rank", "learning_rate")
        }
        | SETTINGS.get(method, {}),
        "connector": connector,
        "location": "default",
        "optim": Optim(
            learning_rate=1e-2, connector_learning_rate=1e-3, warmup_ratio=0.0, schedule="constant"
        ),
        "epochs": 1,
        "global_batch": 5,
        "max_length": 500,
        "seed": 42,
        "precision": "fp32",
        "eval_loss": False,
    }
    return TrainSpec(**(values | changes))


def trainer_of(
    name: str, method: str, connector: str = "tuned", checkpointing: bool = False, **changes: Any
) -> tuple[Any, Any, Any, list[Any]]:
    """A trainer on all examples in one batch."""
    from peftbench.training.adapt import attach
    from peftbench.training.loop import Trainer

    base = load(name, precision=changes.get("precision", "fp32"))
    spec = train_spec(name, method, connector, **changes)
    tuned = attach(base, spec)
    if checkpointing:
        base.model.activation_checkpointing_enable({"use_reentrant": False})
    images, items = encoded(base, name)
    trainer = Trainer(spec, tuned, images, [row for row, _ in items], base.pad_token_id, CPU)
    return base, tuned, trainer, items


def steps(trainer: Any, items: list[Any], count: int) -> list[float]:
    """Losses of ``count`` steps on the same batch."""
    rows = [row for row, _ in items]
    return [trainer.step(items, rows) for _ in range(count)]


def outputs(model: Any, base: Any, items: list[Any]) -> Any:
    """Logits at the supervised positions, in evaluation mode."""
    import torch

    from peftbench.training.batches import IGNORED, collate

    batch = collate(items, base.pad_token_id, left=False)
    labels = batch.pop("labels")
    model.eval()
    with torch.no_grad():
        logits = model(**batch).logits
    return logits[:, :-1][labels[:, 1:] != IGNORED]
