"""``peftbench watch``: what runs, from files; and the command beside a real run of the workflow."""

import os
import pty
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from peftbench import running
from peftbench.canonical import digest
from peftbench.failures import note_failure
from peftbench.lease import locked
from peftbench.store import FAILED, Record, atomic_json
from peftbench.watch.screen import failure_lines, line
from peftbench.watch.snapshot import Cost, Watcher, plain
from workflow_project import ROOT, STUDY, Project

GPU = {"started": "2026-01-01T00:00:00+00:00", "wall_seconds": 1800.0, "gpu_seconds": 3600.0}


def record(number: int, failed: str = "", inputs=None, **provenance) -> Record:
    parts = {"spec": {"n": number}, "code": {}, "inputs": inputs or {}}
    made = digest({"stage": "train", **parts})
    facts = {FAILED: failed} if failed else {}
    return Record(
        stage="train", digest=made, label=f"lora {number}", facts=facts, provenance=GPU | provenance, **parts
    )


class Study:
    """A run of six trainings, announced by this process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.results = folder, folder / "results"
        self.records = [record(number) for number in range(6)]
        self.stack = ExitStack()

    def announce(self, **failed_before: str) -> None:
        jobs = {
            r.digest: running.Planned(
                stage="train", label=r.label, record=f"results/{r.digest}.json", log=f"logs/{r.digest}.log"
            )
            for r in self.records
        }
        run = running.Run(
            who="me",
            folder=str(self.folder),
            root=str(self.folder),
            config={},
            jobs=jobs,
            failed_before=failed_before,
            started=time.time() - 60,
        )
        self.stack.enter_context(running.announced_run(self.results, run))

    def finish(self, number: int) -> None:
        made = self.records[number]
        atomic_json(self.results / f"{made.digest}.json", made)

    def begin(self, number: int, log: str = "") -> None:
        made = self.records[number]
        self.stack.enter_context(locked(self.results / ".locks" / made.digest, print))
        state = running.State(
            digest=made.digest, stage="train", label=made.label, who="process 1 on n1", log=log
        )
        self.stack.enter_context(running.announced_job(self.results, state))


@pytest.fixture
def study(tmp_path):
    made = Study(tmp_path)
    with made.stack:
        yield made


def test_progress_costs_and_what_is_left(study):
    """Two done in half an hour on two GPUs each, twice what was planned; one half way; three to come."""
    study.announce()
    study.finish(0)
    study.finish(1)
    study.begin(2)
    running.tell("train", 1, 400, "loss 2.5000", 900.0)
    watcher = Watcher(study.results)
    watcher.estimates = {r.digest: Cost(900.0, 1800.0) for r in study.records}
    view = watcher.look()
    assert (view.done, view.total, view.at_work, view.failed) == (2, 6, True, 0)
    (job,) = view.running
    assert (job.title, job.steps, job.note) == ("train lora 2", "train 1/400", "loss 2.5000")
    assert 895 < job.left <= 900 and view.on_gpu
    assert view.used / 3600 == pytest.approx(2.0, abs=0.01)
    # three of 900 s, corrected by (1800 + 1800 + 900) / (3 * 900); the running one says itself that it uses no GPU
    assert view.left / 3600 == pytest.approx(3 * 0.5 * 4500 / 2700, abs=0.01)
    text = line(view)
    assert "2 of 6 jobs done, 1 at work; 2.0 GPU-hours used, about 2.5 left; done in about" in text


def test_a_state_is_written_every_few_seconds_and_also_by_processes_that_the_job_starts(study, monkeypatch):
    study.announce()
    study.begin(0)
    for step in range(1, 400):
        running.tell("train", step, 400, f"loss {step}", 1.0)
    (state, _) = running.read_states(study.results)[study.records[0].digest]
    assert state.done == 1
    monkeypatch.setattr(running, "INTERVAL", 0.0)
    code = "from peftbench.running import tell; tell('predict', 7, 9, '', 3.0)"
    subprocess.run([sys.executable, "-c", code], check=True)
    (state, _) = running.read_states(study.results)[study.records[0].digest]
    assert (state.what, state.done, state.left, state.label) == ("predict", 7, 3.0, "lora 0")
    study.stack.close()
    assert list((study.results / running.FOLDER).iterdir()) == []


def test_failures_come_with_the_end_of_their_logs_and_not_those_of_earlier_tries(study):
    failed = record(0, "the loss is nan")
    follower = record(1, "the loss is nan", {"run": failed.digest})
    old = record(2, "long ago")
    study.records[:3] = [failed, follower, old]
    for made in (failed, follower, old):
        note_failure(study.results, made)
    log = study.folder / "logs" / f"{failed.digest}.log"
    log.parent.mkdir()
    log.write_bytes(
        b"x\n" * 9000 + b"train 1/9\n\x1b[31mred \xff\x1b[0m\x07\nwarning: lora: failed: the loss is nan\n"
    )
    study.announce(**{old.digest: GPU["started"]})
    view = Watcher(study.results).look()
    assert view.followers == 1 and view.failed == 2
    (failure,) = view.failures
    assert list(failure_lines(failure)) == [
        "failed: train lora 0: the loss is nan",
        "    | x",
        "    | x",
        "    | train 1/9",
        "    | red \ufffd",
        f"    log: {log}",
    ]
    assert "\x1b" not in plain("a\x1b[2Kb\rc")


def test_a_killed_job_and_a_killed_snakemake_are_told(study):
    study.announce()
    made = study.records[0]
    state = running.State(digest=made.digest, stage="train", label="lora 0", who="process 9 on n1")
    file = study.results / running.FOLDER / f"{made.digest}.json"
    running._write(file, state)
    watcher = Watcher(study.results)
    (failure,) = watcher.look().failures
    assert failure.reason == "ended without a word (killed?): process 9 on n1"
    assert watcher.alive()
    (lock,) = (study.results / running.FOLDER).glob("run-*.lock")
    dead = lock.with_name("run-00000000.lock")
    dead.write_bytes(lock.read_bytes())
    (run,) = (study.results / running.FOLDER).glob("run-*.json")
    dead.with_suffix(".json").write_bytes(run.read_bytes())
    assert list(watcher.alive()) == [run.stem]  # of this machine, and nobody holds its lock


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    made = Project(tmp_path_factory.mktemp("watch"))
    for name in ("hardware/cpu-2-cores.yaml", "planning.yaml"):
        made.write(f"config/{name}", (ROOT / "config" / name).read_text())
    made.write_yaml("config/studies/small.yaml", STUDY | {"axes": STUDY["axes"] | {"dataset": "first"}})
    made.edit(
        "src/peftbench/training/loop.py",
        '    time.sleep(float(os.environ.get("FAKE_TRAINING_SECONDS", "0")))',
        "    from peftbench.training.progress import Progress\n"
        '    progress = Progress("train", 30)\n'
        "    for step in range(1, 31):\n"
        "        time.sleep(0.2)\n"
        '        progress.step(step, f"loss {3 / step:.4f}")',
    )
    return made


def watch(project, *arguments, **streams):
    return subprocess.Popen(
        [sys.executable, "-m", "peftbench.cli", "watch", *arguments],
        cwd=project.root,
        env=project.environment(TERM="xterm", COLUMNS="120"),
        **streams,
    )


def test_beside_a_real_run_in_a_terminal_and_into_a_file(project):
    """Both end with the run, with status 1 as a run failed; no escape codes in the file, and few lines."""
    snakemake = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "-c2"],
        cwd=project.root,
        env=project.environment(FAKE_DIVERGES="adapter"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    folder = project.root / "results" / running.FOLDER
    deadline = time.monotonic() + 60
    while not list(folder.glob("run-*.json")):
        assert time.monotonic() < deadline and snakemake.poll() is None
        time.sleep(0.05)
    piped = watch(project, "--every", "2", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    ours, theirs = pty.openpty()
    live = watch(project, stdout=theirs, stderr=theirs)
    os.close(theirs)
    screen = b""
    try:
        while piece := os.read(ours, 65536):
            screen += piece
    except OSError:
        pass  # the terminal of a process that has ended
    text, _ = piped.communicate(timeout=60)
    assert snakemake.wait(timeout=60) == 1
    assert piped.returncode == 1 and live.wait(timeout=10) == 1
    lines = text.splitlines()
    assert "\x1b" not in text and len(lines) < 40
    shown = [row for row in lines if re.match(r"\d\d:\d\d:\d\d  \d+ of 20 jobs done, \d at work", row)]
    assert len(shown) >= 2 and shown[-1].endswith("; snakemake has ended") and "6 failed" in shown[-1]
    assert any("job-hours used, about" in row for row in shown)
    assert sum(row.startswith("failed: train adapter tiny first") for row in lines) == 2
    seen = screen.decode()
    assert "\x1b" in seen and re.search(r"train \d+/30", seen) and "loss " in seen
    assert "failed: train adapter tiny first" in seen
    assert list(folder.iterdir()) == []


def test_without_a_run_it_says_how_far_the_studies_are_and_imports_nothing_heavy(project):
    code = (
        "import sys; from peftbench.cli import main; status = main(['watch']);"
        "heavy = ('torch', 'transformers', 'peft', 'datasets', 'polars', 'numpy', 'snakemake');"
        "print(status, [m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project.root,
        env=project.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "jobs done, 0 at work" in done.stdout and "no snakemake is at work" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "\x1b" not in done.stdout
