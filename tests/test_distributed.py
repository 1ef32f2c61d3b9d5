"""Two processes (gloo, CPU) reach the weights of one: DDP and DeepSpeed's ZeRO-2, through the same loop."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from safetensors.torch import load_file

from peftbench.spec import Optim
from tiny_llava import SETTINGS, train_spec, world

TOLERANCE = 2e-6
"""Largest difference of a weight: sums in another order, through Adam's normalisation, over a few steps."""


def run_two(spec, zero_stage, micro_batch):
    """Train in two processes; the run's folder."""
    out = world().out()
    job = {
        "spec": msgspec.to_builtins(spec),
        "base": str(world().base),
        "data": str(world().data),
        "subset": str(world().subset),
        "images": str(world().images),
        "out": str(out),
        "zero_stage": zero_stage,
        "micro_batch": micro_batch,
    }
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    script = Path(__file__).with_name("distributed_run.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    # A session of its own, so that a hang ends with all of its processes.
    process = subprocess.Popen(
        [*launcher, str(script), json.dumps(job)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=180)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors[-4000:]
    return out


def differences(one, other):
    """Largest difference per file."""
    names = ["adapter/adapter_model.safetensors", "connector.safetensors"]
    result = []
    for name in names:
        a, b = load_file(one / name), load_file(other / name)
        assert a.keys() == b.keys()
        result.append(max(float((a[key] - b[key]).abs().max()) for key in a))
    return result


@pytest.mark.slow
@pytest.mark.parametrize(("method", "zero_stage", "micro_batch"), [("adapter", 0, None), ("lora", 2, 3)])
def test_two_processes_reach_the_weights_of_one(method, zero_stage, micro_batch):
    # 24 examples in global batches of 9: shares of 5 and 4, and a last batch of 6; the text-only examples
    # leave some micro-batches without an image
    optim = Optim(learning_rate=1e-2, connector_learning_rate=1e-3, max_grad_norm=5.0)
    spec = train_spec(method, settings=SETTINGS[method], global_batch=9, optim=optim, eval_loss=True)
    single, facts = world().train(spec)
    double = run_two(spec, zero_stage, micro_batch)
    assert max(differences(single, double)) < TOLERANCE
    moved, _ = world().train(msgspec.structs.replace(spec, epochs=1))
    assert min(differences(single, moved)) > 500 * TOLERANCE  # the tolerance would notice an epoch
    rows = (double / "eval.csv").read_text().splitlines()[1:]
    evaluated = [float(row.split(",")[2]) for row in rows]
    assert evaluated == pytest.approx(facts["losses"]["eval"], abs=1e-4)
    assert not list(double.glob(".partial-*"))
