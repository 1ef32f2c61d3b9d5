"""The best of some trials, and the validation examples that they are compared on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from fake_store import FakeStore
from peftbench.data.load import read_examples
from peftbench.errors import RunFailed
from peftbench.spec import ChooseSpec
from peftbench.training.choose import choose_run
from peftbench.training.loop import split_validation
from tiny_llava import predict_spec, train_spec, world


def trials(root: Path, facts: list[dict[str, Any]]) -> list[Path]:
    store = FakeStore(root)
    folders = []
    for place, one in enumerate(facts):
        folder = store.record(f"runs/{place}-{{digest}}", "train", {"place": place}, {}, one)
        (folder / "adapter").mkdir()
        (folder / "adapter/weights").write_text(str(place))
        (folder / "predictions-0").mkdir()
        (folder / "predictions-0/record.json").write_text("{}")
        folders.append(folder)
    return folders


def losses(*values: float) -> dict[str, Any]:
    return {"losses": {"eval": list(values)}, "steps": 7}


def test_the_lowest_last_loss_is_chosen(tmp_path: Path) -> None:
    folders = trials(tmp_path, [losses(0.1, 3.0), losses(5.0, 1.0), {"failed": "diverged at step 3"}])
    out = tmp_path / "out"
    out.mkdir()
    facts = choose_run(ChooseSpec(trials=[1e-3, 2e-3, 4e-3]), folders, out)
    assert (out / "adapter/weights").read_text() == "1"
    assert sorted(path.name for path in out.iterdir()) == ["adapter"]
    assert facts["steps"] == 7
    assert facts["chosen"] == {
        "learning_rate": 2e-3,
        "digest": folders[1].name.rpartition("-")[2],
        "validation_losses": {"0.001": 3.0, "0.002": 1.0},
        "failed_trials": {"0.004": "diverged at step 3"},
    }


def test_of_equal_losses_the_lower_rate(tmp_path: Path) -> None:
    folders = trials(tmp_path, [losses(1.0), losses(1.0)])
    (tmp_path / "out").mkdir()
    facts = choose_run(ChooseSpec(trials=[2e-3, 1e-3]), folders, tmp_path / "out")
    assert facts["chosen"]["learning_rate"] == 1e-3


def test_where_all_trials_failed_so_has_the_run(tmp_path: Path) -> None:
    folders = trials(tmp_path, [{"failed": "diverged"}, {"failed": "diverged too"}])
    with pytest.raises(RunFailed, match="all 2 trials failed; the first: diverged"):
        choose_run(ChooseSpec(trials=[1e-3, 2e-3]), folders, tmp_path / "out")


def test_validation_examples_do_not_depend_on_the_order() -> None:
    rows = read_examples(world().data, "train")
    train, held = split_validation(rows, 0.25)
    assert (len(train), len(held)) == (18, 6)
    assert {row.id for row in train} | {row.id for row in held} == {row.id for row in rows}
    shuffled = random.Random(1).sample(rows, len(rows))
    assert {row.id for row in split_validation(shuffled, 0.25)[1]} == {row.id for row in held}
    assert len(split_validation(rows, 1e-9)[1]) == 1


def test_trials_train_on_the_rest_and_one_of_them_answers(tmp_path: Path) -> None:
    specs = [train_spec(validation=0.25, eval_loss=True, optim=rate(lr)) for lr in (1e-2, 1e-6)]
    runs = [world().train(spec) for spec in specs]
    assert [facts["examples"] for _, facts in runs] == [18, 18]
    finals = [facts["losses"]["eval"][-1] for _, facts in runs]
    assert finals[0] < finals[1], "the test is about a choice"
    store = FakeStore(tmp_path)
    folders = []
    for place, (folder, facts) in enumerate(runs):
        record = store.record(f"runs/{place}-{{digest}}", "train", {"place": place}, {}, facts)
        for path in folder.rglob("*"):
            if path.is_file():
                target = record / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        folders.append(record)
    out = tmp_path / "out"
    out.mkdir()
    choose_run(ChooseSpec(trials=[1e-2, 1e-6]), folders, out)
    spec = predict_spec(specs[0])
    assert world().predict(spec, out).equals(world().predict(spec, runs[0][0]))


def rate(learning_rate: float) -> Any:
    from peftbench.spec import Optim

    return Optim(learning_rate=learning_rate, connector_learning_rate=1e-5)
