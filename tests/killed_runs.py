"""Trainings of the tiny model that are killed at random: ``killed_runs.py JSON`` (see test_resume.py).

This process imports all once and forks a child per start, so that fifty starts cost seconds.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import msgspec

from peftbench.spec import Execution, TrainSpec
from peftbench.training import loop
from peftbench.warm_server import MODULES


def start(job: dict[str, Any], out: Path) -> int:
    """Train in a fork of this process; its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        count_steps(Path(job["counter"]))
        facts = loop.train_adapter(
            msgspec.convert(job["spec"], TrainSpec),
            *(Path(job[name]) for name in ("base", "data", "subset", "images")),
            out,
            Execution(device="cpu", checkpoint_interval=job["interval"]),
            staging=Path(job["staging"]),
        )
        Path(job["facts"]).write_text(json.dumps(facts))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def count_steps(counter: Path) -> None:
    """Leave a line for every optimizer step that is made, also by starts that are killed."""
    plain = loop.Trainer.step

    def counted(self: Any, items: Any, batch: Any) -> float:
        loss = plain(self, items, batch)
        with counter.open("a") as stream:
            print(os.getpid(), ",".join(sorted(example.id for example in batch)), file=stream)
        return loss

    loop.Trainer.step = counted  # type: ignore[method-assign]


def main() -> None:
    """Start, kill, start again ...; the last start runs to its end."""
    for name in (*MODULES, "pyarrow.parquet", "pyarrow.dataset", "pandas"):
        importlib.import_module(name)
    job = json.loads(sys.argv[1])
    out, counter = Path(job["out"]), Path(job["counter"])
    started = Path(job["staging"]) / "starts.json"
    chance = random.Random(job["seed"])
    kills = 0
    while kills < job["kills"]:
        lines = len(counter.read_text().splitlines()) if counter.exists() else 0
        before = started.read_bytes() if started.exists() else b""
        pid = start(job, out)
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if started.exists() and started.read_bytes() != before:
                break  # before that nothing could be lost
            time.sleep(0.01)
        # some are killed before their first step, most some steps later, at any moment of a step
        wanted = lines + chance.choice([0, 1, 3, 5, 7, 9])
        delay = chance.random() * job["step_seconds"]
        while wanted > lines and os.waitpid(pid, os.WNOHANG) == (0, 0):
            if counter.exists() and len(counter.read_text().splitlines()) >= wanted:
                break
            time.sleep(0.01)
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            _, status = os.waitpid(pid, 0)
            if os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
                kills += 1
                continue
        sys.exit(f"a start ended by itself after {kills} kills")
    _, status = os.waitpid(start(job, out), 0)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
