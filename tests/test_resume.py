"""Checkpoints: a training that is killed, stopped or damaged goes on to the same bits."""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from peftbench.errors import Suspended, UserError
from peftbench.spec import Execution, Exposed, ExposeSpec, TrainSpec
from peftbench.training import checkpoint, interrupt, loop
from peftbench.training.batches import global_batches
from peftbench.training.expose import expose_base_model
from tiny_llava import NAMES, PROMPT, SETTINGS, encoded_batch, load_tiny, train_spec, world

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
LORA = SETTINGS["lora"] | {"dropout": 0.1}
"""With dropout, so that the random numbers must go on too."""

OTHERS = (
    "spider",
    "magnitude_mask",
    "random_mask",
    "l2_to_pretrained",
    "dare",
    "model_tailor",
    "half_ft",
    "vera",
)
"""Methods with a course of their own, with weights of the base model, or with values drawn at the start."""


def weights(folder: Path) -> dict[str, Any]:
    return {
        f"{path.relative_to(folder)}/{name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    """Lines of a log, without the seconds: they are another run's."""
    with (folder / name).open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_same(one: Path, other: Path) -> None:
    """Weights of all epochs bit by bit, and all rows of both logs."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys() and len(first) > 2
    assert [name for name in first if not first[name].equal(second[name])] == []
    for name in ("log.csv", "eval.csv"):
        assert (one / name).exists() == (other / name).exists()
        if (one / name).exists():
            assert rows(one, name) == rows(other, name)


@pytest.mark.slow
def test_killed_fifty_times_nothing_is_lost_and_nothing_doubled(tmp_path: Path) -> None:
    spec = train_spec(settings=LORA, epochs=54, global_batch=8, eval_loss=True, keep_epochs=True)
    whole, _ = world().train(spec)
    out, counter, facts = tmp_path / "out", tmp_path / "steps", tmp_path / "facts.json"
    job = {
        "spec": msgspec.to_builtins(spec),
        **{name: str(getattr(world(), name)) for name in ("base", "data", "subset", "images")},
        **{"out": str(out), "counter": str(counter), "facts": str(facts), "staging": str(tmp_path / "s")},
        **{"interval": 0.0, "kills": 50, "seed": 1, "step_seconds": 0.05},
    }
    script = Path(__file__).with_name("killed_runs.py")
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(job)],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(whole, out)
    log = rows(out, "log.csv")
    assert [int(row["step"]) for row in log] == list(range(1, 163))
    made = json.loads(facts.read_text())["restarts"]
    assert made["starts"] == 51 and 25 < made["resumed"] <= 50
    # What was made and then lost was made again, in order: each start's steps follow on one another, and the next
    # start begins no later than where the one before ended.
    order = {ids: step for step, ids in enumerate(batches(spec))}
    starts: dict[str, list[int]] = {}
    for line in counter.read_text().splitlines():
        pid, _, ids = line.partition(" ")
        starts.setdefault(pid, []).append(order[ids])
    reached = 0
    for steps in starts.values():
        assert steps == list(range(steps[0], steps[0] + len(steps))) and steps[0] <= reached
        reached = max(reached, steps[-1] + 1)
    assert reached == 162 and len(starts) > 25
    assert sum(len(steps) for steps in starts.values()) < 3 * 162, "too much was made again"


def batches(spec: TrainSpec) -> list[str]:
    """The examples of every step of a run, as ``killed_runs`` names them."""
    examples = [encoded for encoded, _ in encoded_batch(load_tiny(), 24)[0]]
    lengths = [len(encoded.ids) for encoded in examples]
    return [
        ",".join(sorted(examples[i].id for i in indices))
        for epoch in range(spec.epochs)
        for indices in global_batches(lengths, spec.global_batch, spec.seed, epoch)
    ]


# --- stopped in between ---


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let SIGTERM arrive in the midst of a step."""
    plain = loop.Trainer.step
    made: list[int] = []

    def step_with_signal(self: Any, items: Any, batch: Any) -> float:
        made.append(1)
        if len(made) == step:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # SLURM sends two
        return plain(self, items, batch)

    monkeypatch.setattr(loop.Trainer, "step", step_with_signal)


def train(spec: TrainSpec, staging: Path, out: Path, **execution: Any) -> dict[str, Any]:
    settings = Execution(device="cpu", **{"checkpoint_interval": 1e6} | execution)
    inputs = (world().base, world().data, world().subset, world().images)
    return loop.train_adapter(spec, *inputs, out, settings, staging=staging)


def stopped_and_resumed(
    spec: TrainSpec, folder: Path, monkeypatch: pytest.MonkeyPatch, steps: Sequence[int]
) -> dict[str, Any]:
    """Stop after each of ``steps``, counted from the start before; the facts of the last start."""
    staging, out = folder / "staging", folder / "out"
    reached = 0
    for step in steps:
        reached += step
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(
                Suspended, match=rf"SIGTERM: stopped after step {reached} of 6; its checkpoint"
            ):
                train(spec, staging, out)
        assert not out.exists()
        assert len(list((staging / "checkpoints").iterdir())) <= 2
    return train(spec, staging, out)


@pytest.mark.parametrize(
    ("method", "settings", "changes"),
    [
        ("lora", LORA, {"eval_loss": True, "keep_epochs": True}),
        ("adapter", SETTINGS["adapter"] | {"dropout": 0.1}, {"vision": "tuned"}),
        ("ia3", {}, {"precision": "bf16"}),
        ("prefix", {"tokens": 3, "projection": True}, {"keep_epochs": True}),
        ("base", {}, {"validation": 0.25}),
        ("pissa", {"rank": 4}, {"keep_epochs": True}),
        *((method, {}, {"eval_loss": True}) for method in OTHERS),
    ],
)
def test_stopped_by_sigterm_it_goes_on_to_the_same_bits(
    method: str,
    settings: dict[str, Any],
    changes: dict[str, Any],
    tmp_path: Path,
    monkeypatch: Any,
    capsys: Any,
) -> None:
    spec = train_spec(method, settings=settings, **changes)
    whole, _ = world().train(spec)
    # in the first epoch, at its last step, in the second
    facts = stopped_and_resumed(spec, tmp_path, monkeypatch, (1, 2, 2))
    assert_same(whole, tmp_path / "out")
    assert facts["restarts"]["starts"] == 4 and facts["restarts"]["resumed"] == 3
    assert "going on after step 5 of 6 (start 4 of this run)" in capsys.readouterr().err


@pytest.mark.parametrize(("method", "settings"), [("lora", LORA), ("dare", {}), ("model_tailor", {})])
def test_stopped_while_it_evaluates(
    method: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    """Also where the weights are changed for the evaluation, and put back after it."""
    spec = train_spec(method, settings=settings, eval_loss=True)
    whole, _ = world().train(spec)
    plain = loop.Trainer.evaluate

    def evaluate(self: Any, examples: Any, stop: Any) -> float | None:
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, examples, stop)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "evaluate", evaluate)
        with pytest.raises(Suspended, match="stopped after step 3 of 6"):
            train(spec, tmp_path / "staging", tmp_path / "out")
    train(spec, tmp_path / "staging", tmp_path / "out")
    assert_same(whole, tmp_path / "out")


def test_an_exposure_goes_on_too(tmp_path: Path, monkeypatch: Any) -> None:
    spec = ExposeSpec(
        **{"model": NAMES, "mix": [Exposed(dataset="one", prompt=PROMPT)], "optim": train_spec().optim},
        **{"epochs": 2, "global_batch": 8, "max_length": 200, "seed": 42, "precision": "fp32"},
    )

    def expose(out: Path, staging: Path | None) -> dict[str, Any]:
        data = {"one": world().data}
        execution = Execution(device="cpu", checkpoint_interval=1e6)
        return expose_base_model(spec, world().base, data, world().images, out, execution, staging)

    whole = expose(tmp_path / "whole", None)
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(Suspended):
            expose(tmp_path / "out", tmp_path / "staging")
    facts = expose(tmp_path / "out", tmp_path / "staging")
    assert facts["restarts"]["resumed"] == 1
    assert facts["outputs"]["model.safetensors"] == whole["outputs"]["model.safetensors"]


def test_dynamics_of_a_method_are_part_of_it(tmp_path: Path, monkeypatch: Any) -> None:
    """A method that changes its own course keeps its state; what that is, is its own affair."""
    plain = loop.Trainer.__init__
    seen = []

    class Dynamics:
        def __init__(self) -> None:
            self.masks, self.steps = torch.zeros(3), 0

        def penalty(self) -> None:
            """None."""

        def before_step(self) -> None:
            self.steps += 1
            self.masks += torch.rand(3)

        def after_step(self) -> None:
            """Nothing."""

        def state_dict(self) -> dict[str, Any]:
            return {"masks": self.masks, "steps": self.steps}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.masks, self.steps = state["masks"], state["steps"]

    def init(self: Any, *arguments: Any) -> None:
        plain(self, *arguments)
        self.dynamics = Dynamics()
        seen.append(self.dynamics)

    monkeypatch.setattr(loop.Trainer, "__init__", init)
    spec = train_spec(settings=LORA)
    whole, _ = world().train(spec)
    stopped_and_resumed(spec, tmp_path, monkeypatch, (2,))
    assert_same(whole, tmp_path / "out")
    first, _, last = seen
    assert last.steps == first.steps == 6 and torch.equal(last.masks, first.masks)


# --- what may be wrong with a checkpoint ---


def two_checkpoints(tmp_path: Path, monkeypatch: Any, **changes: Any) -> tuple[TrainSpec, Path, list[Path]]:
    """A run stopped after step 5 that has checkpoints of steps 4 and 5."""
    spec, staging = train_spec(settings=LORA, **changes), tmp_path / "staging"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "SHARE", 0.0)
        stop_at(patch, 5)
        with pytest.raises(Suspended):
            train(spec, staging, tmp_path / "out", checkpoint_interval=0.0)
    found = sorted((staging / "checkpoints").iterdir())
    assert [path.name for path in found] == ["step-0000000004", "step-0000000005"]
    return spec, staging, found


@pytest.mark.parametrize("file", ["shared.pt", "process-0.pt", "manifest.json"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    file: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    spec, staging, (_, newest) = two_checkpoints(tmp_path, monkeypatch)
    data = bytearray((newest / file).read_bytes())
    data[len(data) // 2] ^= 255
    (newest / file).write_bytes(data)
    facts = train(spec, staging, tmp_path / "out")
    said = capsys.readouterr().err
    assert "step-0000000005: damaged" in said and "going on after step 4 of 6" in said
    assert facts["restarts"]["resumed"] == 1
    assert_same(world().train(spec)[0], tmp_path / "out")


def test_without_a_good_checkpoint_it_begins_anew(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    spec, staging, found = two_checkpoints(tmp_path, monkeypatch)
    (found[0] / "shared.pt").unlink()
    (found[1] / "process-0.pt").write_bytes(b"")
    (staging / "checkpoints/.partial-step-0000000006").mkdir()  # of a start that was killed while it wrote
    facts = train(spec, staging, tmp_path / "out")
    assert "start 2 of this run: no checkpoint was left, it begins anew" in capsys.readouterr().err
    assert facts["restarts"]["resumed"] == 0
    assert_same(world().train(spec)[0], tmp_path / "out")


def test_damaged_weights_of_an_epoch_are_made_again(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    spec, staging, _ = two_checkpoints(tmp_path, monkeypatch, keep_epochs=True)
    (staging / "epochs/1/connector.safetensors").write_bytes(b"")
    train(spec, staging, tmp_path / "out")
    assert "the weights of epoch 1 are not as they were kept" in capsys.readouterr().err
    assert_same(world().train(spec)[0], tmp_path / "out")


def test_a_checkpoint_of_another_number_of_processes_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    spec, staging, (_, newest) = two_checkpoints(tmp_path, monkeypatch)
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["layout"] |= {"processes": 4, "zero_stage": 2}
    (newest / "manifest.json").write_text(json.dumps(manifest))
    said = r"written by 4 processes \(cpu, ZeRO stage 2\), this start has 1 process \(cpu\): start the run as it was"
    with pytest.raises(UserError, match=said):
        train(spec, staging, tmp_path / "out")


def test_a_checkpoint_that_cannot_be_written_ends_no_training(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    spec = train_spec(settings=LORA)
    plain = checkpoint.save_content
    # a device that is always full, behind the path of the file
    monkeypatch.setattr(checkpoint, "save_content", lambda content, path: plain(content, Path("/dev/full")))
    facts = train(spec, tmp_path / "staging", tmp_path / "out", checkpoint_interval=0.0)
    assert facts["restarts"]["checkpoints"] == 0
    said = capsys.readouterr().err
    assert "warning: no checkpoint after step 1: No space left on device" in said
    assert not list((tmp_path / "staging/checkpoints").iterdir())
    assert_same(world().train(spec)[0], tmp_path / "out")


def test_checkpoints_take_less_than_a_twentieth_of_the_time(tmp_path: Path, monkeypatch: Any) -> None:
    """On a clock of its own: steps of five seconds, and writes of three that later take twelve."""
    now, writes = [0.0], []
    plain_step, plain_save = loop.Trainer.step, checkpoint.save_content

    def step(self: Any, items: Any, batch: Any) -> float:
        now[0] += 5.0
        return plain_step(self, items, batch)

    def save(content: Any, path: Path) -> str:
        if path.name == "shared.pt":
            now[0] += 3.0 if now[0] < 600 else 12.0
            writes.append(now[0])
        return plain_save(content, path)

    spec = train_spec(epochs=120)
    trained = sum(world().train(train_spec(epochs=1))[1]["trainable"].values())
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "step", step)
        patch.setattr(checkpoint, "save_content", save)
        patch.setattr(
            checkpoint, "DISK", 12 * trained / 3.0
        )  # the first one is expected to take three seconds
        patch.setattr(time, "monotonic", lambda: now[0])
        facts = train(spec, tmp_path / "staging", tmp_path / "out", checkpoint_interval=10.0)
    assert facts["seconds"] > 1800 and facts["restarts"]["checkpoints"] == len(writes) >= 10
    assert facts["restarts"]["checkpoint_seconds"] / facts["seconds"] < 0.05
    gaps = [later - earlier for earlier, later in itertools.pairwise(writes)]
    assert min(gaps) >= 60 and max(gaps) < 260  # a twentieth each, and no longer than that asks for


# --- the end of a job's time ---


def slurm(folder: Path, monkeypatch: Any, end: float, now: float) -> None:
    """Commands that answer as SLURM's do; ``now`` is the controller's clock."""
    folder.mkdir()
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(end))
    head = f"sdiag output at {time.ctime(now)} ({int(now)})"
    for name, said in (("squeue", text), ("sdiag", f"*****\n{head}\nData since x (1)")):
        (folder / name).write_text(f"#!/bin/sh\ncat <<'E'\n{said}\nE\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)


@pytest.mark.parametrize("offset", [0, 3600, -3600])
def test_the_end_of_a_jobs_time_is_that_of_the_controllers_clock(
    offset: int, tmp_path: Path, monkeypatch: Any
) -> None:
    now = time.time() + offset
    slurm(tmp_path / "bin", monkeypatch, now + 500, now)
    left = interrupt.seconds_left()
    assert left is not None and 498 <= left <= 501
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(now + 300))
    left = interrupt.seconds_left()
    assert left is not None and 299 <= left <= 301
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    monkeypatch.delenv("SLURM_JOB_ID")
    assert interrupt.seconds_left() is None


def test_no_answer_is_no_limit(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert interrupt.seconds_left() is None


def test_it_stops_before_its_time_is_up(tmp_path: Path, monkeypatch: Any) -> None:
    """A minute is left; a step takes ten seconds on this clock, and killing waits thirty."""
    slurm(tmp_path / "bin", monkeypatch, time.time() + 61, time.time())
    clock = [time.monotonic()]
    plain = loop.Trainer.step

    def step(self: Any, items: Any, batch: Any) -> float:
        clock[0] += 10.0
        return plain(self, items, batch)

    spec = train_spec(settings=LORA)
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: clock[0])
        patch.setattr(loop.Trainer, "step", step)
        with pytest.raises(Suspended, match="the time limit of the job: stopped after step 4 of 6"):
            train(spec, tmp_path / "staging", tmp_path / "out")
    slurm(tmp_path / "next", monkeypatch, time.time() + 3600, time.time())
    train(spec, tmp_path / "staging", tmp_path / "out")
    assert_same(world().train(spec)[0], tmp_path / "out")
