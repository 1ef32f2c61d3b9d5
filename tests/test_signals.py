"""What signals do to a real training job: the shipped script, alone, in the warm worker, in several processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from real_project import RealJob
from test_resume import assert_same

EPOCHS = 100
"""Long enough that a signal finds it at work: 300 steps of some 10 ms."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RealJob:
    """A run that nothing disturbed."""
    job = RealJob(tmp_path_factory.mktemp("whole"), epochs=EPOCHS)
    job.run_here()
    return job


def descendants(pid: int) -> list[int]:
    """A process and all that it started and that did the same."""
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{found[-1]}/task").iterdir():
                waiting += [int(child) for child in (thread / "children").read_text().split()]
    return found


def wait_for_steps(job: RealJob, process: subprocess.Popen[str], steps: int) -> None:
    """Until so many steps are in the log of the run."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        for log in job.folder.glob(".partial-*/**/log.csv"):
            with contextlib.suppress(OSError):
                if len(log.read_text().splitlines()) > steps:
                    return
        time.sleep(0.02)
    raise AssertionError("no step was made")


@pytest.mark.slow
def test_sigterm_to_the_script_leaves_a_checkpoint_and_the_next_start_goes_on(
    whole: RealJob, tmp_path: Path
) -> None:
    job = RealJob(tmp_path, epochs=EPOCHS)
    process = job.start(checkpoint_interval=1e6)
    wait_for_steps(job, process, 5)
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "suspended: SIGTERM: stopped after step" in said
    assert "its checkpoint is kept; run snakemake again and it goes on from there" in said
    assert not job.folder.exists() and len(job.checkpoints()) == 1
    status, said = job.run()
    assert status == 0 and "going on after step" in said
    assert "going on after step" in (job.root / "log.txt").read_text()
    assert_same(whole.folder, job.folder)
    assert job.record().facts["restarts"] | {"checkpoints": 0, "checkpoint_seconds": 0} == {
        **{"starts": 2, "resumed": 1, "checkpoints": 0, "checkpoint_seconds": 0}
    }
    assert not job.staging.exists() and not list((job.root / "results/.locks").iterdir())


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for the warm worker's socket; its path must be short."""
    folder = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("PEFTBENCH_WORKER_IDLE", "2")
    monkeypatch.delenv("PEFTBENCH_WORKER", raising=False)
    yield folder
    for path in folder.rglob("*.sock"):
        path.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def servers(folder: Path) -> list[int]:
    """The warm workers of this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if any(word.endswith(b"warm_server.py") for word in words) and str(folder).encode() in b" ".join(
                words
            ):
                found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("to", ["client", "all"])
def test_sigterm_reaches_a_fork_of_the_warm_worker(
    to: str, whole: RealJob, tmp_path: Path, sockets: Path
) -> None:
    """By way of its client; and as SLURM sends it, to every process of the job at once."""
    job = RealJob(tmp_path, epochs=EPOCHS)
    process = job.start(worker="shared", checkpoint_interval=1e6)
    wait_for_steps(job, process, 5)
    everyone = servers(sockets)
    assert everyone, "it does not run in the warm worker"
    targets = [process.pid] if to == "client" else [process.pid, *everyone]
    for _ in range(2):
        for pid in targets:
            os.kill(pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert len(job.checkpoints()) == 1
    status, said = job.run(worker="shared")
    assert status == 0 and "going on after step" in said
    assert_same(whole.folder, job.folder)


def test_sigterm_before_the_first_step_stores_nothing(tmp_path: Path) -> None:
    job = RealJob(tmp_path)
    process = job.start()
    while not (job.root / "results/.locks").is_dir():
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.endswith("interrupted; nothing was stored; run snakemake again\n")
    assert not job.folder.exists()
