"""Locks that hold across nodes: a holder shows that it lives, and one that stood still loses what it held."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from peftbench import lease
from peftbench.errors import UserError
from peftbench.store import partial_directory, read_record
from workflow_project import STUDY, Project

SECONDS = 2.0
OTHER_NODE = b"process 7 on elsewhere (SLURM job 12, restart 1)\n%s 0000-of-another-boot\n000000000000\n"


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setenv(lease.VARIABLE, str(SECONDS))


class Elsewhere:
    """A holder on another node: no flock of it is seen here; its clock is an hour off."""

    def __init__(self, lock: Path, clock: float = 0.0) -> None:
        self.lock, self.clock = lock, clock
        lock.write_bytes(OTHER_NODE % os.urandom(16).hex().encode())
        self.beats = 0
        self.alive = threading.Event()
        self.alive.set()
        self.thread = threading.Thread(target=self.beat, daemon=True)
        self.thread.start()

    def beat(self) -> None:
        with self.lock.open("r+b") as stream:
            while self.alive.is_set():
                self.beats += 1
                stream.seek(-13, os.SEEK_END)
                stream.write(b"%012d\n" % self.beats)
                stream.flush()
                moment = time.time() + self.clock
                os.utime(self.lock, (moment, moment))
                time.sleep(SECONDS / 10)

    def die(self) -> None:
        self.alive.clear()
        self.thread.join()


@pytest.mark.parametrize("clock", [-3600.0, 0.0, 3600.0], ids=["hour behind", "right", "hour ahead"])
def test_a_holder_on_another_node_is_waited_for_while_it_shows_life_whatever_its_clock_says(tmp_path, clock):
    lock = tmp_path / "abc"
    holder = Elsewhere(lock, clock)
    told, taken = [], []

    def wait() -> None:
        with lease.locked(lock, told.append) as mine:
            taken.append(time.monotonic())
            mine.check()

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(1.75 * SECONDS)
    assert taken == [] and told == ["process 7 on elsewhere (SLURM job 12, restart 1)"]
    holder.die()
    died = time.monotonic()
    waiting.join(timeout=20)
    assert 0.8 * SECONDS < taken[0] - died < 6 * SECONDS
    assert list(tmp_path.iterdir()) == []


def test_many_that_wait_for_a_dead_node_take_over_one_after_the_other(tmp_path):
    (tmp_path / "lock").write_bytes(OTHER_NODE % b"dead")
    script = """
import sys, time
from pathlib import Path
from peftbench.lease import locked
log = Path(sys.argv[1]) / "log"
for _ in range(3):
    with locked(Path(sys.argv[1]) / "lock", lambda holder: None):
        with log.open("a") as stream:
            stream.write("in\\n")
        time.sleep(0.02)
        with log.open("a") as stream:
            stream.write("out\\n")
"""
    crowd = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(4)]
    assert [process.wait(timeout=60) for process in crowd] == [0] * 4
    assert (tmp_path / "log").read_text() == "in\nout\n" * 12
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_claim_of_one_that_died_while_taking_over_does_not_stand_for_ever(tmp_path):
    lock = tmp_path / "lock"
    lock.write_bytes(OTHER_NODE % b"dead")
    (tmp_path / ".lock.over-dead").touch()
    start = time.monotonic()
    with lease.locked(lock, lambda holder: None):
        assert time.monotonic() - start < 8 * SECONDS
    assert list(tmp_path.iterdir()) == []


def test_without_waiting_only_what_is_surely_free_is_had(tmp_path):
    lock = tmp_path / "lock"
    with lease.unless_locked(lock) as free, lease.unless_locked(lock) as second:
        assert free and not second
    lock.write_bytes(OTHER_NODE % b"dead")
    with lease.unless_locked(lock) as free:
        assert not free
    assert lease.held_by_other(lock, 10.0) and not lease.held_by_other(lock, 0.0)
    lock.write_bytes(f"process 1 on here\nx {lease._this_boot()}\n000000000000\n".encode())
    assert not lease.held_by_other(lock, 10.0)  # of this machine, and nobody holds it
    with lease.unless_locked(lock) as free:
        assert free
    assert not lock.exists()


def test_a_lock_that_was_lost_stops_its_holder_before_it_publishes(tmp_path):
    lock, target = tmp_path / "lock", tmp_path / "run"
    with (
        pytest.raises(lease.LeaseLostError, match=r"^process 7 on elsewhere .* took this over") as caught,
        lease.locked(lock, print) as mine,
        partial_directory(target, mine.check) as work,
    ):
        (work / "weights").touch()
        mine._ended.set()  # no sign of life any more: this process is as good as suspended
        other = tmp_path / "other"
        other.write_bytes(OTHER_NODE % b"next")
        other.replace(lock)
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)
    assert not target.exists() and lock.exists()


def test_an_impossible_setting_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(lease.VARIABLE, "soon")
    with pytest.raises(UserError, match="PEFTBENCH_LEASE_SECONDS is 'soon': give seconds"):
        lease.seconds()


# The same with real jobs


class Copies:
    """Copies of one training, whose inputs are there."""

    def __init__(self, root: Path) -> None:
        self.project = Project(root)
        self.plan = self.project.plan()
        self.job = next(job for job in self.plan.jobs.values() if job.stage == "train")
        self.results = root / "results"
        for needed in ("prepare", "build", "subset"):
            for job in self.job.inputs.values():
                if job.stage == needed:
                    process = self.start(job)
                    assert process.wait(timeout=60) == 0, process.communicate()

    def start(self, job=None, **variables: str) -> "subprocess.Popen[str]":
        job = job or self.job
        scripts = {"prepare": "prepare_dataset", "build": "build_base_model", "subset": "draw_subset"}
        script = scripts.get(job.stage, "train_adapter")
        command = [sys.executable, f"workflow/scripts/{script}.py", "--ticket", job.ticket]
        command += ["--inputs", *(f"results/{i.record}" for i in job.inputs.values())] if job.inputs else []
        command += ["--output", f"results/{job.record}", "--execution", self.plan.execution(job)]
        return subprocess.Popen(
            command,
            cwd=self.project.root,
            env=self.project.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def files(self) -> dict[str, tuple[int, bytes]]:
        folder = self.results / self.job.directory
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(p.relative_to(folder)): (p.stat().st_ino, p.read_bytes()) for p in files}


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    return Copies(tmp_path_factory.mktemp("copies"))


@pytest.mark.parametrize("resumed", ["while the other works", "after the other ended"])
def test_a_suspended_job_loses_its_run_and_stops_with_one_line_when_it_goes_on(copies, resumed):
    """As when a node hangs, SLURM starts the job elsewhere, and the first copy comes back."""
    (copies.results / copies.job.record).unlink(missing_ok=True)
    during = resumed.startswith("while")
    first = copies.start(FAKE_TRAINING_SECONDS="60")
    assert first.stdout.readline() == "half way\n"
    first.send_signal(signal.SIGSTOP)
    second = copies.start(FAKE_TRAINING_SECONDS="5" if during else "0")
    assert (
        second.stderr.readline()
        == f"waiting for process {first.pid} on {os.uname().nodename}: it makes this run\n"
    )
    assert second.stdout.readline() == "half way\n"
    if not during:
        assert second.wait(timeout=30) == 0
        made = copies.files()
    start = time.monotonic()
    first.send_signal(signal.SIGCONT)
    _, said = first.communicate(timeout=30)
    assert time.monotonic() - start < 4.5
    holder = f"process {second.pid} on {os.uname().nodename}" if during else "another process"
    assert first.returncode == 1
    assert (
        said
        == f"error: {holder} took this over while this process stood still: stopped, nothing was stored\n"
    )
    if during:
        assert second.poll() is None
        assert second.wait(timeout=30) == 0
    else:
        assert copies.files() == made
    assert sorted(copies.files()) == ["adapter/weights", "record.json"]
    assert read_record(copies.results / copies.job.record).digest == copies.job.digest
    assert not list((copies.results / ".locks").iterdir()) and not (copies.results / ".failed").exists()
    second.communicate()


@contextlib.contextmanager
def mounted(folder: Path, options: str):
    """A small disk of its own; where that is not allowed, the test says so."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"needs to mount a small disk ({done.stderr.strip()}); test_store fills /dev/full")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_ends_a_job_and_snakemake_with_one_line_and_a_rerun_goes_on(tmp_path):
    project = Project(tmp_path)
    project.write_yaml("config/studies/small.yaml", STUDY | {"axes": STUDY["axes"] | {"dataset": "first"}})
    loop = "src/peftbench/training/loop.py"
    project.edit(loop, "write_text(repr(spec.settings))", "write_bytes(bytes(300_000))")
    with mounted(tmp_path / "results", "size=1m") as results:
        done = project.snakemake("-c2")
        assert done.returncode == 1
        assert "the disk is full: nothing was stored, make room and run again" in done.stdout
        assert "Traceback" not in done.stdout
        for path in results.rglob("record.json"):
            assert read_record(path).digest == path.parent.name.rpartition("-")[2]
        assert not list(results.rglob(".partial-*")) and not list((results / ".locks").iterdir())
        subprocess.run(["mount", "-o", "remount,size=8m", results], check=True)
        again = project.snakemake("-c2")
        assert again.returncode == 0, again.stdout
        assert (results / "tables/small.csv").read_text() == "5 cells, 0 failed"


def test_a_results_folder_that_cannot_be_written_is_said_in_one_line(tmp_path):
    project = Project(tmp_path)
    with mounted(tmp_path / "results", "size=1m") as results:
        subprocess.run(["mount", "-o", "remount,ro", results], check=True)
        done = project.snakemake("-c2")
        assert done.returncode == 1 and 'File "' not in done.stdout
        assert done.stdout.splitlines()[-1].startswith("error: results/.tickets/")
        assert "the file system is read-only: nothing was stored, check the folder" in done.stdout
        assert list(results.iterdir()) == []
