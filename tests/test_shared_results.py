"""Two checkouts of the project with one folder of results, at once."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from peftbench.store import read_record
from workflow_project import MAIN, STUDY, Project

AXES = STUDY["axes"] | {"method": ["lora", "adapter"], "dataset": ["first"]}
RUNS = 4


class Pair:
    """Two checkouts, and what their trainings count."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        self.counter = folder / "trainings.txt"
        self.checkouts = [Project(made) for made in (folder / "a", folder / "b") if made.mkdir() is None]
        execution = MAIN["execution"] | {"results": str(self.store)}
        for project in self.checkouts:
            project.write_yaml("config/config.yaml", MAIN | {"execution": execution})
            project.write_yaml("config/studies/small.yaml", STUDY | {"axes": AXES})

    def start(self, project: Project, *arguments: str, seconds: float = 0.5) -> "subprocess.Popen[str]":
        """Start Snakemake in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", "-c2", *arguments],
            cwd=project.root,
            env=project.environment(FAKE_TRAINING_SECONDS=str(seconds), FAKE_COUNTER=str(self.counter)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def trainings(self) -> Counter[str]:
        """How often each run was trained."""
        return Counter(self.counter.read_text().splitlines()) if self.counter.exists() else Counter()

    def check(self) -> None:
        """Everything is there, whole, and neither checkout has anything left to do."""
        for project in self.checkouts:
            plan = project.plan()
            for job in plan.jobs.values():
                if job.stage not in ("tabulate", "plot", "report"):
                    assert read_record(self.store / job.record).digest == job.digest
            assert project.jobs() == {}
        assert not list(self.store.rglob(".partial-*"))
        assert not list((self.store / ".locks").iterdir())
        for name in ("tables/small.csv", "figures/small.png"):
            assert (self.store / name).read_text() == "6 cells, 0 failed"


@pytest.fixture
def pair(tmp_path):
    return Pair(tmp_path)


def finish(*running: "subprocess.Popen[str]") -> list[str]:
    """Output of processes that must end well."""
    texts = [process.communicate(timeout=300)[0] for process in running]
    for process, text in zip(running, texts, strict=True):
        assert process.returncode == 0, text
    return texts


def wait_for(condition, process) -> None:
    for _ in range(1200):
        if condition():
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    raise AssertionError("it never came to that")


def test_two_checkouts_at_once_make_everything_once(pair):
    finish(*[pair.start(project) for project in pair.checkouts])
    assert pair.trainings().total() == RUNS and len(pair.trainings()) == RUNS
    pair.check()


def test_what_one_made_while_the_other_was_on_its_way_is_taken_as_it_is(pair):
    """The second has planned a run that the first finishes before the second comes to it."""
    a, b = pair.checkouts
    late = pair.start(b, "-c1", seconds=4)
    wait_for(lambda: pair.trainings().total() == 1, late)
    early = pair.start(a, seconds=0)
    wait_for(lambda: len(list(pair.store.rglob("lora-*/record.json"))) + len(list(pair.store.rglob("adapter-*/record.json"))) >= RUNS - 1, early)
    before = {path: path.stat().st_mtime_ns for path in pair.store.rglob("*/record.json")}
    finish(early, late)
    assert pair.trainings().total() == RUNS
    assert {path: path.stat().st_ino for path in before} and all(p.stat().st_mtime_ns == t for p, t in before.items())
    pair.check()
