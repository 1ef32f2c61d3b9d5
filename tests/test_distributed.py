"""Two processes (gloo, CPU) reach the weights of one, by the shipped script: DDP and ZeRO; and what ends them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from safetensors.torch import load_file

from peftbench.spec import Execution, Exposed, ExposeSpec, Optim
from peftbench.training.distributed import fitting_stage
from peftbench.training.expose import expose_base_model
from real_project import RealJob
from test_resume import assert_same
from test_signals import descendants, wait_for_steps
from tiny_llava import NAMES, PROMPT, SETTINGS, world

TOLERANCE = 2e-6
"""Largest difference of a weight: sums in another order, through Adam's normalisation, over a few steps."""
RATES: dict[str, Any] = {"learning_rate": 3e-3, "connector_learning_rate": 3e-3}
pytestmark = pytest.mark.slow
SHORT: dict[str, Any] = {"epochs": 2, "global_batch": 9, "max_grad_norm": 5.0, "kept": True}
"""24 examples in global batches of 9: shares of 5 and 4, and a last batch of 6; the examples that are text alone leave
some micro-batches without an image."""


def differences(one: Path, other: Path) -> list[float]:
    """Largest difference per file of weights, those of the epochs included."""
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*.safetensors"))
    assert names == sorted(str(path.relative_to(other)) for path in other.rglob("*.safetensors"))
    result = []
    for name in names:
        a, b = load_file(one / name), load_file(other / name)
        assert a.keys() == b.keys() and all(a[key].shape == b[key].shape for key in a)
        result.append(max(float((a[key] - b[key]).abs().max()) for key in a))
    return result


@pytest.mark.parametrize(
    ("method", "zero_stage", "micro_batch", "parallel"),
    [
        ("adapter", None, None, "MULTI_CPU"),
        ("ia3", 0, 2, "DEEPSPEED"),
        ("lora", 1, None, "DEEPSPEED"),
        ("lora", 2, 3, "DEEPSPEED"),
        ("prefix", 3, 3, "DEEPSPEED"),
    ],
)
def test_two_processes_reach_the_weights_of_one(
    method: str, zero_stage: int | None, micro_batch: int | None, parallel: str, tmp_path: Path
) -> None:
    single, double = (
        RealJob(tmp_path / name, method, SETTINGS[method], **SHORT) for name in ("single", "double")
    )
    alone = single.run_here()
    status, said = double.run(processes=2, zero_stage=zero_stage, micro_batch=micro_batch)
    assert status == 0, said
    assert said.count("train 6/6") == 1 and "Warning" not in said, said
    assert max(differences(single.folder, double.folder)) < TOLERANCE
    # the tolerance would notice an epoch
    names = ("connector.safetensors", "epochs/1/connector.safetensors")
    last, first = (load_file(double.folder / name) for name in names)
    assert max(float((last[key] - first[key]).abs().max()) for key in last) > 100 * TOLERANCE
    facts = double.record().facts
    assert (facts["processes"], facts["parallel"], facts["zero_stage"]) == (2, parallel, zero_stage)
    assert facts["losses"]["eval"] == pytest.approx(alone["losses"]["eval"], abs=1e-4)
    assert facts["micro_batch"] == (micro_batch or 5)
    assert double.record().provenance["cpu_seconds"] > 4, "two imports of torch alone take more"
    assert not double.staging.exists() and not list(double.folder.glob(".partial-*"))


def ranks(pid: int) -> list[int]:
    """Processes that compute, without the one that waits for them."""
    return sorted(set(descendants(pid)) - {pid})


@pytest.mark.parametrize("zero_stage", [None, 3])
def test_they_go_on_to_the_same_bits(zero_stage: int | None, tmp_path: Path) -> None:
    """Plain: one of them is killed, and the other ended, with one line. ZeRO-3: SIGTERM comes, to all, twice."""
    whole, job = (RealJob(tmp_path / name, "lora", epochs=30) for name in ("whole", "job"))
    status, said = whole.run(processes=2, zero_stage=zero_stage, checkpoint_interval=1e6)
    assert status == 0, said
    if zero_stage is None:
        process = job.start(processes=2)
        deadline = time.monotonic() + 240
        while not job.checkpoints() and time.monotonic() < deadline:
            time.sleep(0.02)
        both = ranks(process.pid)
        assert len(both) == 2
        os.kill(both[1], signal.SIGKILL)
        killed = time.monotonic()
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1 and time.monotonic() - killed < 40
        assert said.splitlines()[-1] == "error: process 2 of 2 was ended by SIGKILL: was the memory used up?"
        assert "Traceback" not in said
    else:
        process = job.start(processes=2, zero_stage=3, checkpoint_interval=1e6)
        wait_for_steps(job, process, 20)
        both = ranks(process.pid)
        for _ in range(2):
            for pid in descendants(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 75, said
        assert said.splitlines()[-1].startswith("suspended: SIGTERM: stopped after step")
    assert all(not Path(f"/proc/{pid}").exists() for pid in both)
    assert job.checkpoints() and not job.folder.exists()
    status, said = job.run(processes=2, zero_stage=zero_stage)
    assert status == 0, said
    assert "going on after step" in said and job.record().facts["restarts"]["starts"] == 2
    assert_same(whole.folder, job.folder)


SRUN = """#!{python}
import json, os, subprocess, sys
words = sys.argv[1:]
json.dump(words, open({seen!r}, "w"))
options = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--") and words.index(word) < 7)
command = words[7:]
tasks = [
    subprocess.Popen(command, env=os.environ | {{"SLURM_PROCID": str(i), "SLURM_LOCALID": "0"}})
    for i in range(int(options["ntasks"]))
]
sys.exit(max(task.wait() for task in tasks))
"""


LIMIT = """
import os
if os.environ.get("SLURM_PROCID") == "1":
    import importlib.abc, sys
    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name != "peftbench.training.loop":
                return None
            sys.meta_path.remove(self)
            import importlib.util
            spec = importlib.util.find_spec(name)
            run = spec.loader.exec_module
            def exec_module(module):
                run(module)
                plain = module.Trainer.loss_sum
                def limited(self, inputs):
                    import torch
                    if len(inputs["labels"]) > 2 and self.model.training:
                        raise torch.OutOfMemoryError("simulated")
                    return plain(self, inputs)
                module.Trainer.loss_sum = limited
            spec.loader.exec_module = exec_module
            return spec
    sys.meta_path.insert(0, Finder())
"""


def test_nodes_are_joined_by_srun_and_halve_the_micro_batch_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``srun`` starts one task per process and node; ours takes both "nodes" to be this machine.

    The second process has an allocator that gives it no more than two examples at a time.
    """
    single, double = (RealJob(tmp_path / name, "ia3", epochs=1) for name in ("single", "double"))
    single.run_here()
    seen, folder = tmp_path / "seen.json", tmp_path / "bin"
    folder.mkdir()
    (folder / "srun").write_text(SRUN.format(python=sys.executable, seen=str(seen)))
    (folder / "srun").chmod(0o755)
    (folder / "sitecustomize.py").write_text(LIMIT)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    status, said = double.run(nodes=2)
    assert status == 0, said
    assert "out of memory at micro-batch 4: all processes start again with 2" in said
    words = json.loads(seen.read_text())
    assert {"--jobid=7", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1"} < set(
        words
    )
    facts = double.record().facts
    assert (facts["processes"], facts["micro_batch"], facts["halved"]) == (2, 2, 1)
    assert max(differences(single.folder, double.folder)) < TOLERANCE


def test_a_mistake_of_all_is_said_once(tmp_path: Path) -> None:
    job = RealJob(tmp_path, "lora")
    (job.root / "results" / job.job.inputs["base"].directory / "config.json").unlink()
    status, said = job.run(processes=2)
    assert status == 1
    assert said.startswith("error: process 1 of 2: base model: ") and said.count("\n") == 1
    assert "Traceback" not in (job.root / "log.txt").read_text()


def test_nodes_need_a_slurm_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    status, said = RealJob(tmp_path, "lora").run(nodes=2)
    assert status == 1
    assert said.startswith("error: execution: nodes: 2 needs a SLURM job with as many nodes")


def test_a_full_fine_tune_under_zero_3_is_saved_whole(tmp_path: Path) -> None:
    """As torchrun starts it: two processes with torch's variables and no launcher of ours."""
    data = {"one": world().data}
    inputs = (world().base, data, world().images)
    spec = ExposeSpec(
        **{"model": NAMES, "mix": [Exposed(dataset="one", prompt=PROMPT)], "optim": Optim(**RATES)},
        **{"epochs": 1, "global_batch": 9, "max_length": 200, "seed": 42, "precision": "fp32"},
    )
    expose_base_model(spec, *inputs, tmp_path / "single", Execution(device="cpu"))
    code = f"""
import json, sys
from pathlib import Path
import msgspec
from peftbench.spec import Execution, ExposeSpec
from peftbench.training.expose import expose_base_model
spec = msgspec.convert(json.loads(sys.argv[1]), ExposeSpec)
inputs = Path({str(world().base)!r}), {{"one": Path({str(world().data)!r})}}, Path({str(world().images)!r})
facts = expose_base_model(spec, *inputs, Path({str(tmp_path / "double")!r}), Execution(device="cpu", zero_stage=3))
assert facts["zero_stage"] == 3 and facts["processes"] == 2
"""
    (tmp_path / "rank.py").write_text(code)
    words = [
        "--standalone",
        "--nproc_per_node=2",
        str(tmp_path / "rank.py"),
        json.dumps(msgspec.to_builtins(spec)),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert max(differences(tmp_path / "single", tmp_path / "double")) < TOLERANCE
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("single", "double")]
    assert names[0] == names[1] and "model.safetensors" in names[0]


def test_auto_takes_the_least_stage_that_fits() -> None:
    """A 7B model in bf16 on 80 GB: PEFT fits as it is, a full fine-tune of it needs its state split."""
    gigabyte = 10**9
    seven, peft = 14 * gigabyte, 160 * 10**6
    assert fitting_stage(seven, peft, 8, 80 * gigabyte) is None
    assert fitting_stage(seven, 2 * gigabyte, 8, 80 * gigabyte) is None
    assert fitting_stage(seven, 3 * gigabyte, 8, 80 * gigabyte) == 1
    assert fitting_stage(28 * gigabyte, 7 * gigabyte, 8, 80 * gigabyte) == 2
    assert fitting_stage(28 * gigabyte, 7 * gigabyte, 2, 40 * gigabyte) == 3
