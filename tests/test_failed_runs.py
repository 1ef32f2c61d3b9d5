"""Runs that fail for good: said, shown, tried again alone. The real workflow with stages that cost nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from peftbench.failures import noted, read_failure
from peftbench.store import FAILED, read_record
from snakemake_server import Server
from workflow_project import ROOT, STUDY, Project

AXES = STUDY["axes"] | {"dataset": "first", "connector": ["tuned"]}
REASON = "training diverged: the loss is nan at step 3 of 9: lower the learning rate"
VIEWS = {"tabulate_study_small": 1, "plot_study_small": 1, "build_report_small": 1}
AGAIN = {"train_adapter": 1, "generate_predictions": 1, "score_predictions": 1, **VIEWS, "all": 1}
"""What is left after LoRA's run failed."""


@pytest.fixture(scope="module")
def server():
    made = Server()
    yield made
    made.close()


@pytest.fixture
def project(tmp_path):
    made = Project(tmp_path)
    for name in ("hardware/cpu-2-cores.yaml", "planning.yaml"):
        made.write(f"config/{name}", (ROOT / "config" / name).read_text())
    made.write_yaml("config/studies/small.yaml", STUDY | {"axes": AXES})
    return made


def snapshot(project) -> dict[str, tuple[int, bytes]]:
    """Names, times and bytes of all results, logs left out."""
    results = project.root / "results"
    files = (path for path in results.rglob("*") if path.is_file() and "logs" not in path.parts)
    return {str(path.relative_to(results)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def counts(text: str) -> dict[str, int]:
    """Jobs per rule that a call announces."""
    table = text.split("Job stats:", 1)[1].split("\n\n", 1)[0]
    rows = (line.split() for line in table.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit() and row[0] != "total"}


def command(project, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "peftbench.cli", *arguments],
        cwd=project.root,
        env=project.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def table(project) -> str:
    return (project.root / "results/tables/small.md").read_text()


def test_a_run_that_fails_is_shown_named_and_tried_again_alone(server, project):
    """The rest is made; status 1; each next start makes what failed with what follows, until it works."""
    counter = project.root / "trainings.txt"
    diverging = {"FAKE_DIVERGES": "lora", "FAKE_COUNTER": str(counter)}
    first = server.call(project.root, "-c2", **diverging)
    assert first.returncode == 1
    assert table(project) == "3 cells, 1 failed"
    run = next(
        job for job in project.plan().jobs.values() if job.stage == "train" and "/lora-" in job.directory
    )
    end = first.stdout[first.stdout.index("1 job failed;") :]
    assert end.splitlines()[:3] == [
        "1 job failed; snakemake will try again what failed, and nothing else:",
        f"  train lora tiny first tuned [{run.digest}]: {REASON}",
        "  and 2 that are made from it",
    ]
    results = project.root / "results"
    assert not (results / run.directory).exists()
    assert read_failure(results, run.digest).facts[FAILED] == REASON

    # a dry-run announces it and touches nothing; plan, runs, explain and gc know of it
    before = snapshot(project)
    shown = server.call(project.root, "-n", "-c2")
    assert shown.returncode == 0 and counts(shown.stdout) == AGAIN
    plan = command(project, "plan")
    assert "(3 failed when last tried" in plan
    assert f"failed when last tried: train lora tiny first tuned: {REASON}" in plan
    states = [line.split()[0] for line in command(project, "runs").splitlines()]
    assert sorted(states) == ["failed", "scored", "scored"]
    said = " ".join(command(project, "explain", run.digest).split())
    assert "it would run: it failed when last tried" in said and f"failed {REASON} (20" in said
    assert f"training of lora tiny first tuned: {REASON}" in " ".join(
        command(project, "explain", "small").split()
    )
    assert "in all; " in command(project, "gc") and "failure" not in command(project, "gc")
    assert snapshot(project) == before

    second = server.call(project.root, "-c2", **diverging)
    assert second.returncode == 1 and counts(second.stdout) == AGAIN
    assert table(project) == "3 cells, 1 failed"
    third = server.call(project.root, "-c2", FAKE_COUNTER=str(counter))
    assert third.returncode == 0 and counts(third.stdout) == AGAIN, third.stdout
    assert table(project) == "3 cells, 0 failed"
    assert noted(results) == set()
    assert sorted(line.split()[0] for line in counter.read_text().splitlines()) == ["adapter", "lora"]
    assert "Nothing to be done" in server.call(project.root, "-n").stdout


def test_notes_of_runs_that_no_study_asks_for_any_more_are_garbage(server, project):
    project.write_yaml(
        "config/studies/small.yaml", STUDY | {"axes": AXES, "methods": {"lora": {"learning_rate": 1000}}}
    )
    assert server.call(project.root, "-c2").returncode == 1
    project.write_yaml("config/studies/small.yaml", STUDY | {"axes": AXES})
    assert "3 x failure" in command(project, "gc")
    assert noted(project.root / "results")
    command(project, "gc", "--delete", "--yes")
    assert noted(project.root / "results") == set()


def test_what_a_killed_snakemake_left_is_tried_again(server, project):
    """It could not put its failed runs back; the next start does; a dry-run announces it and touches nothing."""
    process = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "-c2"],
        cwd=project.root,
        env=project.environment(FAKE_DIVERGES="lora", FAKE_TRAINING_SECONDS="60"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    results = project.root / "results"
    scores = [job for job in project.plan().study("small").scores if "/adapter-" not in job.directory]
    deadline = time.monotonic() + 120
    while not all((results / job.record).exists() for job in scores):  # of LoRA, and of the untuned base
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert FAILED in read_record(results / scores[0].record).facts
    assert server.call(project.root, "--unlock").returncode == 0
    before = snapshot(project)
    shown = server.call(project.root, "-n", "-c2")
    left = AGAIN | {"train_adapter": 2, "generate_predictions": 2, "score_predictions": 2}
    assert counts(shown.stdout) == left, shown.stdout
    assert "3 failed when last tried" in command(project, "plan")
    assert snapshot(project) == before
    again = server.call(project.root, "-c2")
    assert again.returncode == 0 and counts(again.stdout) == left, again.stdout
    assert table(project) == "3 cells, 0 failed" and noted(results) == set()


def test_a_job_that_errs_leaves_a_note_too(server, project):
    """Nothing follows from it, as ever; but it is named at the end, and plan and explain know why."""
    file = "src/peftbench/training/loop.py"
    text = (project.root / file).read_text()
    bad = text.replace(
        '    print("half way"',
        '    if spec.method == os.environ.get("FAKE_ERRS"):\n'
        '        from peftbench.errors import UserError\n        raise UserError("no such luck")\n    print("half way"',
    )
    assert bad != text
    project.write(file, bad)
    done = server.call(project.root, "-c2", FAKE_ERRS="lora")
    assert done.returncode == 1
    assert "\n1 job failed; snakemake will try again" in done.stdout and ": no such luck\n" in done.stdout
    run = next(
        job for job in project.plan().jobs.values() if job.stage == "train" and "/lora-" in job.directory
    )
    assert "failed no such luck (20" in " ".join(command(project, "explain", run.digest).split())
    again = server.call(project.root, "-c2")
    assert again.returncode == 0 and counts(again.stdout) == AGAIN
    assert noted(project.root / "results") == set()


def test_what_follows_a_failed_run_ends_well_though_another_snakemake_took_the_record_away(server, project):
    """Two at once: the first ends, and puts its failed run back, before the second comes to what follows from it."""
    until = ("--until", "train_adapter", "-c2")
    assert server.call(project.root, *until, FAKE_DIVERGES="lora").returncode == 1
    plan = project.plan()
    score = next(job for job in plan.study("small").scores if "/lora-" in job.directory)
    job = score.inputs["predictions"]
    results = project.root / "results"
    script = project.root / "workflow/scripts/generate_predictions.py"
    command = [sys.executable, script, "--ticket", job.ticket, "--execution", plan.execution(job)]
    command += ["--inputs", *(f"results/{i.record}" for i in job.inputs.values())]
    command += ["--output", f"results/{job.record}"]
    done = subprocess.run(
        command, cwd=project.root, env=project.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert read_record(results / job.record).facts == {FAILED: REASON}
    assert not (results / job.inputs["run"].record).exists()


def test_a_failed_trial_is_settled_once_a_choice_was_made_without_it(server, project):
    """A learning rate that is too high is an answer; trying it again would be in vain."""
    axes = {"model": "tiny", "method": "lora", "connector": "tuned", "dataset": "first"}
    study = {"title": "Trials", "axes": axes, "tuning": {"factors": [1, 1e7]}}
    project.write_yaml("config/studies/small.yaml", study)
    project.edit(
        "src/peftbench/training/loop.py",
        'return {"steps": spec.epochs}',
        'return {"steps": spec.epochs, "losses": {"eval": [1.0]}}',
    )
    done = server.call(project.root, "-c2")
    assert done.returncode == 0, done.stdout
    assert table(project) == "1 cells, 0 failed"
    assert "Nothing to be done" in server.call(project.root, "-n").stdout
    failed = Path(project.root / "results").glob("runs/*/*/lora-*/record.json")
    assert sum(FAILED in read_record(path).facts for path in failed) == 1
