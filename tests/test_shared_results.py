"""Two checkouts of the project with one folder of results, at once."""

import os
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
            assert (self.store / name).read_text() == "5 cells, 0 failed"


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
    wait_for(lambda: len(trained(pair)) >= RUNS - 1, early)
    before = {path: (path.read_bytes(), path.stat().st_ino) for path in trained(pair)}
    finish(early, late)
    assert pair.trainings().total() == RUNS
    assert {path: (path.read_bytes(), path.stat().st_ino) for path in before} == before
    pair.check()


def trained(pair) -> list[Path]:
    return list(pair.store.glob("runs/*/*/*/record.json"))


@pytest.mark.parametrize("everything", [True, False], ids=["all of it", "snakemake alone"])
def test_one_is_killed_and_the_other_finishes(pair, everything):
    """Killed with its jobs, and killed alone, so that its jobs go on without it and end unnoticed."""
    a, b = pair.checkouts
    doomed = pair.start(a, seconds=2)
    wait_for(lambda: pair.trainings().total() == 2, doomed)
    other = pair.start(b, seconds=2)
    time.sleep(0.5)
    if everything:
        for number in descendants(doomed.pid):
            os.kill(number, signal.SIGKILL)
    doomed.kill()
    doomed.communicate()
    finish(other)
    again = 2 if everything else 0
    assert pair.trainings().total() == RUNS + again, (
        "what was killed half way starts again, nothing else does"
    )
    assert max(pair.trainings().values()) <= 2
    (text,) = finish(pair.start(a, "--nolock"))
    assert pair.trainings().total() == RUNS + again
    assert "Nothing to be done" in text
    pair.check()


def descendants(number: int) -> list[int]:
    """Processes below one, by the kernel's own list."""
    threads = Path(f"/proc/{number}/task").glob("*/children")
    children = [child for thread in threads for child in thread.read_text().split()]
    return [p for child in map(int, children) for p in (child, *descendants(child))]


def test_other_settings_in_the_other_checkout_never_pass_for_ours(pair):
    """They share runs; of tables there is one of each name, whose marker says whose it is."""
    a, b = pair.checkouts
    b.write_yaml("config/studies/small.yaml", STUDY | {"axes": AXES | {"connector": ["tuned"]}})
    running = [pair.start(project) for project in (a, b)]
    texts = [process.communicate(timeout=300)[0] for process in running]
    for process, text in zip(running, texts, strict=True):
        assert process.returncode == 0 or "was replaced by that of another configuration meanwhile" in text, (
            text
        )
    assert pair.trainings().total() == RUNS
    for project, cells in ((a, 5), (b, 3)):
        finish(pair.start(project))
        assert (pair.store / "tables/small.csv").read_text() == f"{cells} cells, 0 failed"
        assert (pair.store / "figures/small.png").read_text() == f"{cells} cells, 0 failed"
    assert pair.trainings().total() == RUNS
    assert set(a.jobs()) == {"tabulate_study_small", "plot_study_small", "build_report_small", "all"}


def test_a_figure_is_not_drawn_from_a_table_of_other_settings(pair):
    a, _ = pair.checkouts
    finish(pair.start(a, seconds=0))
    plan = a.plan()
    plot = plan.study("small").plot
    marker, table = Path(plan.marker(plot)), Path(plan.marker(plan.study("small").tabulate))
    command = [
        sys.executable,
        a.root / "workflow/scripts/plot_study.py",
        "--ticket",
        plot.ticket,
        "--output",
        marker,
    ]
    command += ["--execution", plan.execution(plot)]
    marker.unlink()
    table.rename(table.with_name("small-0123456789abcdef.json"))
    done = subprocess.run(command, cwd=a.root, env=a.environment(), capture_output=True, text=True)
    assert done.returncode == 1 and not marker.exists()
    assert done.stderr.startswith(
        "error: the table of small was replaced by that of another configuration meanwhile"
    )
    table.with_name("small-0123456789abcdef.json").rename(table)
    assert subprocess.run(command, cwd=a.root, env=a.environment()).returncode == 0 and marker.exists()
