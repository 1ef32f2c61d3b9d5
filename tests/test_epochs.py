"""Weights of every epoch, and runs that tune the vision tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from peftbench.errors import UserError
from peftbench.evaluation.epochs import epoch_of, weights_of
from tiny_llava import NAMES, predict_spec, train_spec, world


def logged(folder: Path, losses: list[float]) -> Path:
    rows = [f"{epoch},{epoch * 3},{loss},10" for epoch, loss in enumerate(losses, 1)]
    folder.mkdir(exist_ok=True)
    (folder / "eval.csv").write_text("\n".join(["epoch,step,loss,tokens", *rows]) + "\n")
    return folder


@pytest.mark.parametrize(
    ("losses", "best", "near"),
    [
        ([3, 2, 1, 2, 3, 4], 3, [4, 2, 5, 1]),  # of two equally near the later first
        ([1, 2, 3, 4, 5], 1, [2, 3, 4, 5]),
        ([5, 4, 3, 2, 1], 5, [4, 3, 2, 1]),
        ([2, 1, 1, 2, 2], 2, [3, 1, 4, 5]),  # of equal losses the first is the best
    ],
)
def test_the_epochs_around_the_best(tmp_path: Path, losses: list[float], best: int, near: list[int]) -> None:
    run = logged(tmp_path, losses)
    assert epoch_of(run, "best") == best
    assert [epoch_of(run, f"near{k}") for k in (1, 2, 3, 4)] == near  # type: ignore[arg-type]
    assert epoch_of(run, "last") is None and epoch_of(run, 2) == 2


def test_what_was_not_logged_or_kept_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"eval.csv: no evaluation losses .*: set eval_loss: true"):
        epoch_of(tmp_path, "best")
    with pytest.raises(UserError, match=r"epoch near4: the run has 3 epochs"):
        epoch_of(logged(tmp_path, [3, 2, 1]), "near4")
    with pytest.raises(UserError, match="the weights of epoch 2 were not kept"):
        weights_of(tmp_path, 2)
    (tmp_path / "eval.csv").write_text("epoch,step,loss,tokens\n")
    with pytest.raises(UserError, match="empty"):
        epoch_of(tmp_path, "best")


def weights(folder: Path) -> dict[str, Any]:
    files = ("adapter/adapter_model.safetensors", "connector.safetensors", "vision.safetensors")
    found = {name: load_file(folder / name) for name in files if (folder / name).exists()}
    return {f"{name}:{key}": value for name, tensors in found.items() for key, value in tensors.items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


@pytest.mark.parametrize(
    ("method", "settings"),
    [("lora", {"rank": 4}), ("prefix", {"tokens": 3}), ("prefix", {"tokens": 3, "projection": True})],
)
def test_keeping_epochs_changes_nothing_and_each_is_that_of_a_shorter_run(
    method: str, settings: dict[str, Any]
) -> None:
    """With a constant rate the weights after epoch k are those of a run of k epochs."""
    constant = {
        "schedule": "constant",
        "warmup_ratio": 0.0,
        "learning_rate": 1e-2,
        "connector_learning_rate": 1e-3,
    }
    spec = train_spec(method, settings=settings, epochs=3, optim=train_spec().optim.__class__(**constant))
    kept, _ = world().train(
        train_spec(method, settings=settings, epochs=3, optim=spec.optim, keep_epochs=True)
    )
    plain, _ = world().train(spec)
    assert same(weights(kept), weights(plain))
    assert sorted(path.name for path in (kept / "epochs").iterdir()) == ["1", "2"]
    short, _ = world().train(train_spec(method, settings=settings, epochs=1, optim=spec.optim))
    assert same(weights(weights_of(kept, 1)), weights(short))
    config = json.loads((kept / "epochs/1/adapter/adapter_config.json").read_text())
    assert config == json.loads((short / "adapter/adapter_config.json").read_text())
    assert weights_of(kept, 3) == kept


def test_an_epochs_weights_answer() -> None:
    spec = train_spec(epochs=3, keep_epochs=True, eval_loss=True)
    run, _ = world().train(spec)
    by_epoch = {
        epoch: world().predict(predict_spec(spec, epoch=epoch), run) for epoch in (1, 3, "last", "best")
    }
    assert by_epoch[3].equals(by_epoch["last"])
    best = epoch_of(run, "best")
    again = world().predict(predict_spec(spec, epoch=best), run)
    assert again.equals(by_epoch["best"])
    short, _ = world().train(train_spec(epochs=3))
    assert world().predict(predict_spec(spec), short).equals(by_epoch["last"])


def test_a_tuned_tower_learns_and_comes_back(tmp_path: Path) -> None:
    spec = train_spec(vision="tuned")
    run, facts = world().train(spec)
    assert facts["trainable"]["vision"] == facts["parameters"]["vision"] > 0
    frozen, frozen_facts = world().train(train_spec())
    assert frozen_facts["trainable"]["vision"] == 0 and not (frozen / "vision.safetensors").exists()
    before = load_file(world().base / "model.safetensors")
    tower = load_file(run / "vision.safetensors")
    assert len(tower) > 10
    # the last layer's output is not read (features come from the one before it), so it gets no gradient
    moved = sum(
        not any(value.equal(old) for old in before.values() if old.shape == value.shape)
        for value in tower.values()
    )
    assert moved > len(tower) / 2
    assert set(world().predict(predict_spec(spec, vision="tuned"), run).columns) >= {"id", "prediction"}
    with pytest.raises(UserError, match=r"vision.safetensors: not found"):
        world().predict(predict_spec(spec, vision="tuned"), frozen)


def test_constants_are_never_trained() -> None:
    names = NAMES.__class__(
        **{field: getattr(NAMES, field) for field in NAMES.__struct_fields__ if field != "constant"},
        constant=["model.vision_tower.embeddings.position_embedding"],
    )
    run, facts = world().train(train_spec(vision="tuned", model=names))
    assert "model.vision_tower.embeddings.position_embedding.weight" not in load_file(
        run / "vision.safetensors"
    )
    assert 0 < facts["trainable"]["vision"] < facts["parameters"]["vision"]
    wrong = NAMES.__class__(
        **{field: getattr(NAMES, field) for field in NAMES.__struct_fields__ if field != "constant"},
        constant=["model.nothing"],
    )
    with pytest.raises(UserError, match=r"constant: model.nothing is no part"):
        world().train(train_spec(model=wrong))


def test_a_tuned_tower_has_no_stored_features(tmp_path: Path) -> None:
    from peftbench.spec import Execution

    execution = Execution(device="cpu", cache_dir=str(tmp_path / "cache"))
    _, facts = world().train(train_spec(vision="tuned"), execution)
    assert facts["features"] == {"cached": False} and not (tmp_path / "cache").exists()
