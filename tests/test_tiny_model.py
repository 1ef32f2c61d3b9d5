"""The shipped tiny LLaVA is what its recipe makes, and it knows what a base model should know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from peftbench.data.draw import draw
from peftbench.data.images import store_image
from peftbench.data.prepare import write_examples
from peftbench.errors import UserError
from peftbench.models.base import build_base_model
from peftbench.models.sources.tiny import SHIPPED, components
from peftbench.models.tiny.recipe import ExposureRecipe, Recipe, Sizes, VisionRecipe
from peftbench.models.tiny.train import sha256_of
from peftbench.spec import BaseSpec

SHIPPED_SOURCE = {"kind": "tiny"}
RECIPE = Recipe(kind="tiny", weights="train")


@pytest.fixture(scope="module")
def shipped() -> dict[str, Any]:
    return msgspec.json.decode((SHIPPED / "recipe.json").read_bytes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny-llava")
    build_base_model(BaseSpec(model="tiny-llava", source=SHIPPED_SOURCE), out, {})
    return out


def test_shipped_files_are_whole_and_the_recipe_is_the_present_one(shipped: dict[str, Any]) -> None:
    assert {n: sha256_of(SHIPPED / n) for n in shipped["files"]} == shipped["files"]
    now = msgspec.to_builtins(RECIPE)
    assert {key: shipped["recipe"][key] for key in now} == now, (
        "the recipe changed: run python -m peftbench.models.tiny.ship"
    )


def test_the_recipe_makes_the_shipped_tokenizer(shipped: dict[str, Any], tmp_path: Path) -> None:
    from peftbench.models.tiny.architecture import build_processor, train_tokenizer
    from peftbench.models.tiny.exposure import corpus

    tokenizer = train_tokenizer(corpus(ExposureRecipe()), Sizes().vocabulary)
    build_processor(Sizes(), tokenizer).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "processor_config.json"):
        assert sha256_of(tmp_path / name) == shipped["files"][name]


@pytest.mark.slow
def test_the_recipe_begins_as_the_shipped_weights_began(shipped: dict[str, Any], folder: Path) -> None:
    """The first losses of both phases, computed again here, are those of the run that made the weights."""
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from peftbench.models.tiny.architecture import build_model
    from peftbench.models.tiny.exposure import expose
    from peftbench.models.tiny.vision import pretrain_tower

    processor = AutoProcessor.from_pretrained(folder)
    model = build_model(Sizes(), processor.tokenizer, RECIPE.seed)
    vision = pretrain_tower(model.model.vision_tower, -2, VisionRecipe(), "cpu", limit=3)
    assert losses(vision["log"], 3) == pytest.approx(losses(shipped["vision_log"], 3), rel=2e-3)

    trained = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model = build_model(Sizes(), processor.tokenizer, RECIPE.seed)
    model.model.vision_tower.load_state_dict(trained.model.vision_tower.state_dict())
    exposure = expose(model, processor, ExposureRecipe(), "cpu", limit=3)
    # the shipped tower is rounded to half precision, the one that the exposure saw was not
    assert losses(exposure["log"], 3) == pytest.approx(losses(shipped["exposure_log"], 3), rel=5e-3)


def losses(log: list[dict[str, float]], n: int) -> list[float]:
    return [row["loss"] for row in log[:n]]


def test_the_towers_probe_is_recorded_and_far_above_chance(shipped: dict[str, Any]) -> None:
    """Chance is below one in a hundred; the held-out artist is never seen in training."""
    assert shipped["probe"]["patches_named_test"] > 0.4
    assert shipped["probe"]["patches_named_train"] > 0.6


def test_auto_classes_load_the_folder(folder: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(model, LlavaForConditionalGeneration)
    assert sum(p.numel() for p in model.parameters()) < 5_000_000
    assert len(processor.tokenizer) == model.config.text_config.vocab_size


def test_normalisation_is_the_processors(folder: Path) -> None:
    import io

    import torch
    from PIL import Image
    from transformers import AutoProcessor

    from peftbench.models.tiny.exposure import normalised

    pngs = [draw("vqav2", "test", i, 7)[1] for i in range(4)]
    images = [Image.open(io.BytesIO(p)).convert("RGB") for p in pngs]
    theirs = AutoProcessor.from_pretrained(folder).image_processor(images, return_tensors="pt")[
        "pixel_values"
    ]
    assert torch.allclose(normalised(pngs), theirs, atol=1e-5)


def test_other_weights_than_the_model_file_names_are_refused(tmp_path: Path) -> None:
    spec = BaseSpec(model="tiny-llava", source={**SHIPPED_SOURCE, "sha256": "0" * 64})
    with pytest.raises(UserError, match="the model file names"):
        build_base_model(spec, tmp_path, {})


def test_unknown_settings_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sizs"):
        build_base_model(BaseSpec(model="x", source={**SHIPPED_SOURCE, "sizs": {}}), tmp_path, {})
    with pytest.raises(UserError, match="unknown kind of source 'hugginface'"):
        build_base_model(BaseSpec(model="x", source={"kind": "hugginface"}), tmp_path, {})


def test_a_trained_base_depends_on_its_recipes_code() -> None:
    assert components(SHIPPED_SOURCE) == []
    assert "peftbench.models.tiny.train" in components({"kind": "tiny", "weights": "train"})


@pytest.fixture(scope="module")
def answers(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, float]]:
    """Zero-shot accuracy (target said exactly) and the share of the most common target, by data set."""
    import polars as pl
    import yaml

    from peftbench.config import Settings
    from peftbench.evaluation.generate import generate_predictions
    from peftbench.graph import Plan
    from peftbench.spec import Execution, PredictSpec

    root = Path(__file__).parent.parent
    plan = Plan(Settings(yaml.safe_load((root / "config/config.yaml").read_text()), root))
    found: dict[str, tuple[float, float]] = {}
    plan.study("table1_main")
    for job in plan.jobs.values():
        if job.stage != "predict" or not job.inputs.keys().isdisjoint({"run"}):
            continue
        spec = msgspec.convert(msgspec.json.decode(job.spec), PredictSpec)
        name = job.label.split()[2]
        work = tmp_path_factory.mktemp(name)
        rows = [draw(name.removesuffix("_mini"), "test", i, 7) for i in range(150)]
        for _, png in rows:
            store_image(work / "images", png)
        write_examples([e for e, _ in rows], work / "test.parquet")
        generate_predictions(
            spec, folder, None, work, work / "images", work / "out", Execution(worker="none")
        )
        said = dict(pl.read_parquet(work / "out/predictions.parquet").select("id", "prediction").iter_rows())
        targets = [e.target for e, _ in rows]
        right = sum(said[e.id].strip() == e.target for e, _ in rows)
        found[name] = (right / len(rows), max(map(targets.count, targets)) / len(rows))
    return found


def test_the_base_knows_the_seen_sets_and_not_the_unseen_ones(
    answers: dict[str, tuple[float, float]],
) -> None:
    """Seen: clearly above the most common answer. Unseen: no better than 15 points above it."""
    assert len(answers) == 8
    for name in ("okvqa_mini", "ocrvqa_mini", "vqav2_mini"):
        right, prior = answers[name]
        assert right > prior + 0.1, (name, answers[name])
    for name in ("sqa_img_mini", "vizwiz_mini", "iconqa_txt_mini", "iconqa_blank_mini", "flickr30k_mini"):
        right, prior = answers[name]
        assert right < prior + 0.15, (name, answers[name])
