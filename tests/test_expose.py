"""The full fine-tune before the methods."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import msgspec
import pytest
from safetensors.torch import load_file

from peftbench.errors import UserError
from peftbench.spec import Exposed, ExposeSpec, Optim
from peftbench.training.expose import expose_base_model
from tiny_llava import CPU, NAMES, PROMPT, predict_spec, train_spec, world


def expose_spec(**changes: Any) -> ExposeSpec:
    values: dict[str, Any] = {
        "model": NAMES,
        "mix": [Exposed(dataset="one", prompt=PROMPT), Exposed(dataset="two", prompt=PROMPT)],
        "optim": Optim(learning_rate=3e-3, connector_learning_rate=3e-3),
        "epochs": 4,
        "global_batch": 8,
        "max_length": 200,
        "seed": 42,
        "precision": "fp32",
    }
    return ExposeSpec(**(values | changes))


def expose(spec: ExposeSpec) -> tuple[Path, dict[str, Any]]:
    out = world().out()
    data = {part.dataset: world().data for part in spec.mix}
    return out, expose_base_model(spec, world().base, data, world().images, out, CPU)


@pytest.fixture(scope="module")
def exposed() -> tuple[Path, dict[str, Any]]:
    return expose(expose_spec())


def test_all_but_the_tower_learns(exposed: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = exposed
    assert facts["examples"] == 2 * 24 and facts["steps"] == 4 * 6
    trainable, totals = facts["trainable"], facts["parameters"]
    assert trainable["vision"] == 0
    assert all(trainable[part] == totals[part] > 0 for part in ("language", "connector", "embeddings"))
    losses = [float(row["loss"]) for row in csv.DictReader((folder / "log.csv").open())]
    assert losses[-1] < 0.5 * losses[0]
    before, after = load_file(world().base / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    tower = [name for name in before if "vision_tower" in name]
    assert len(tower) > 10 and all(before[name].equal(after[name]) for name in tower)
    moved = [name for name in before if "language_model" in name and not before[name].equal(after[name])]
    assert len(moved) > 10
    assert all(before[name].dtype == after[name].dtype for name in before)


def test_the_same_spec_gives_the_same_bits(exposed: tuple[Path, dict[str, Any]]) -> None:
    _, facts = expose(expose_spec())
    weights = "model.safetensors"
    assert facts["outputs"][weights] == exposed[1]["outputs"][weights]


def test_methods_start_from_it(exposed: tuple[Path, dict[str, Any]]) -> None:
    """It is a base model like any other: it answers better than what it was made from, and it can be tuned."""
    from peftbench.evaluation.generate import generate_predictions
    from peftbench.training.loop import train_adapter

    folder, _ = exposed
    spec = train_spec("lora", eval_loss=True)
    out = world().out()
    facts = train_adapter(spec, folder, world().data, world().subset, world().images, out, CPU)
    _, plain = world().train(spec)
    assert facts["losses"]["first"] < plain["losses"]["first"]
    answers = world().out()
    generate_predictions(
        predict_spec(spec, method="base", settings={}, connector="frozen"),
        folder,
        None,
        world().data,
        world().images,
        answers,
        CPU,
    )
    assert (answers / "predictions.parquet").stat().st_size > 0


def test_an_empty_data_set_is_one_line(tmp_path: Path) -> None:
    import polars as pl

    pl.read_parquet(world().data / "train.parquet").head(0).write_parquet(tmp_path / "train.parquet")
    spec = msgspec.structs.replace(expose_spec(), mix=[Exposed(dataset="none", prompt=PROMPT)])
    with pytest.raises(UserError, match="no training examples"):
        expose_base_model(spec, world().base, {"none": tmp_path}, world().images, world().out(), CPU)
