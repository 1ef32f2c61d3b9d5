import json
import os
import signal
import subprocess
import sys
import time

import pytest

from peftbench.stages import RULES
from peftbench.store import read_record
from workflow_project import Project


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project whose data and base model are there, so that a training job can be run by hand."""
    project = Project(tmp_path_factory.mktemp("job"))
    plan = project.plan()
    train = plan.study("small").scores[0].inputs["predictions"].inputs["run"]
    for job in train.inputs.values():
        done = run(project, plan, job)
        assert done.returncode == 0, done.stderr
    return project, plan, train


def command(project, plan, job, **changes):
    options = {
        "ticket": job.ticket,
        "output": f"results/{job.record}",
        "execution": plan.execution(job),
        "log": "log.txt",
    } | changes
    words = [sys.executable, f"workflow/scripts/{RULES[job.stage]}.py"]
    inputs = options.pop("inputs", [f"results/{i.record}" for i in job.inputs.values()])
    if inputs:
        words += ["--inputs", *inputs]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    return words


def run(project, plan, job, variables=(), **changes):
    return subprocess.run(
        command(project, plan, job, **changes),
        cwd=project.root,
        env=project.environment(**dict(variables)),
        capture_output=True,
        text=True,
        timeout=100,
    )


def leftovers(project, job):
    folder = project.root / "results" / job.directory
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def refused(done, said):
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_job_leaves_its_result_and_its_record(made):
    project, plan, job = made
    done = run(project, plan, job)
    assert done.returncode == 0, done.stderr
    assert leftovers(project, job) == ["adapter", "record.json"]
    record = read_record(project.root / "results" / job.record)
    assert record.digest == job.digest and record.facts == {"steps": 3}
    assert record.inputs == {name: i.digest for name, i in job.inputs.items()}
    cost = record.provenance
    assert cost["wall_seconds"] >= 0 and cost["cpu_seconds"] >= 0 and cost["peak_memory"] > 1_000_000
    assert cost["device"] == "cpu" and cost["gpu_seconds"] == 0 and cost["versions"]["torch"]
    assert "half way" in done.stdout and "half way" in (project.root / "log.txt").read_text()
    again = run(project, plan, job)
    assert again.returncode == 0 and "already made" in again.stderr
    (project.root / "results" / job.record).unlink()


def test_a_ticket_may_be_a_file_or_stdin(made):
    project, plan, job = made
    (project.root / "ticket.json").write_text(job.ticket)
    assert run(project, plan, job, ticket="ticket.json").returncode == 0
    (project.root / "results" / job.record).unlink()
    done = subprocess.run(
        command(project, plan, job, ticket="-"),
        cwd=project.root,
        env=project.environment(),
        input=job.ticket,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    (project.root / "results" / job.record).unlink()


def test_a_job_refuses_code_that_changed_since_it_was_planned(made):
    project, plan, job = made
    file = project.root / "src/peftbench/methods/lora.py"
    text = file.read_text()
    try:
        file.write_text("# only a comment\n" + text)
        assert run(project, plan, job).returncode == 0
        (project.root / "results" / job.record).unlink()
        file.write_text(text + "\nEDITED = 1\n")
        refused(
            run(project, plan, job),
            "code of stage train changed since this job was planned (methods.lora changed): run snakemake",
        )
    finally:
        file.write_text(text)


def edited_ticket(job, change):
    ticket = json.loads(job.ticket)
    change(ticket)
    return json.dumps(ticket)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda t: t["spec"].update(epochs=4), "the ticket belongs to digest"),
        (lambda t: t["inputs"].update(data="0" * 16), "the ticket belongs to digest"),
        (lambda t: t["spec"].update(epcohs=4), "--ticket: spec: Object contains unknown field `epcohs`"),
        (
            lambda t: t.update(stage="score"),
            "this script makes train, the ticket is for score: use score_predictions.py",
        ),
        (lambda t: t.pop("code"), "--ticket: not a ticket"),
        (lambda t: t["code"]["packages"].update(torch="1.0"), "torch was 1.0, is"),
    ],
)
def test_a_ticket_that_does_not_fit_is_refused_in_one_line(made, change, said):
    project, plan, job = made
    refused(run(project, plan, job, ticket=edited_ticket(job, change)), said)
    assert "record.json" not in leftovers(project, job)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"ticket": "nowhere.json"}, "nowhere.json: No such file or directory"),
        ({"ticket": "{"}, "--ticket: not a ticket"),
        ({"inputs": []}, "--inputs: the record of input 'base'"),
        ({"inputs": ["results/none/record.json"]}, "results/none/record.json: no record"),
        ({"execution": '{"devise": "cpu"}'}, "--execution: Object contains unknown field `devise`"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(made, changes, said):
    project, plan, job = made
    refused(run(project, plan, job, **changes), said)


def test_a_foreign_input_is_refused(made):
    project, plan, job = made
    other = next(
        j for j in plan.jobs.values() if j.stage == "prepare" and j.digest != job.inputs["data"].digest
    )
    assert run(project, plan, other).returncode == 0
    inputs = [f"results/{i.record}" for i in job.inputs.values()] + [f"results/{other.record}"]
    refused(run(project, plan, job, inputs=inputs), "is no input of this job")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_job_stores_nothing_and_says_so(made, number):
    project, plan, job = made
    process = subprocess.Popen(
        command(project, plan, job),
        cwd=project.root,
        env=project.environment(FAKE_TRAINING_SECONDS="60"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "half way\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == "interrupted; nothing was stored; run snakemake again\n"
    assert leftovers(project, job) in ([], ["adapter"])  # at most what an earlier test finished
    assert not list((project.root / "results/.locks").iterdir())


def test_a_killed_job_leaves_nothing_that_counts_and_the_next_one_goes_on(made):
    project, plan, job = made
    process = subprocess.Popen(
        command(project, plan, job),
        cwd=project.root,
        env=project.environment(FAKE_TRAINING_SECONDS="60"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "half way\n"
    process.kill()
    process.wait()
    assert "record.json" not in leftovers(project, job)
    assert run(project, plan, job).returncode == 0
    assert leftovers(project, job) == ["adapter", "record.json"]
    (project.root / "results" / job.record).unlink()


def test_two_processes_never_both_make_one_run(made):
    project, plan, job = made
    pair = [
        subprocess.Popen(
            command(project, plan, job, log=f"log{number}.txt"),
            cwd=project.root,
            env=project.environment(FAKE_TRAINING_SECONDS="1.5"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    texts = [process.communicate(timeout=60)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert sorted("half way" in text for text in texts) == [False, True]
    (waited,) = [text for text in texts if "half way" not in text]
    assert "waiting for process" in waited and "already made by another process" in waited
    (project.root / "results" / job.record).unlink()


def test_a_bug_is_one_line_and_a_traceback_in_the_log(made):
    project, plan, job = made
    file = project.root / "src/peftbench/training/loop.py"
    text = file.read_text()
    try:
        file.write_text(
            "import os\n\ndef train_adapter(**kwargs):\n    raise ZeroDivisionError('half\\nan apple')\n"
        )
        plan = project.plan()
        job = plan.study("small").scores[0].inputs["predictions"].inputs["run"]
        log = project.root / "bug.txt"
        refused(run(project, plan, job, log=log), f"ZeroDivisionError: half (traceback in {log})")
        assert "Traceback" in log.read_text() and "an apple" in log.read_text()
    finally:
        file.write_text(text)


def test_every_script_explains_itself(made):
    project, _, _ = made
    for script in sorted((project.root / "workflow/scripts").glob("*.py")):
        done = subprocess.run(
            [sys.executable, script, "--help"],
            capture_output=True,
            text=True,
            env=project.environment(),
            check=True,
        )
        assert "--ticket" in done.stdout and "Leaves" in done.stdout, script


def test_the_waiting_process_takes_over_when_the_first_one_dies(made):
    project, plan, job = made
    first = subprocess.Popen(
        command(project, plan, job),
        cwd=project.root,
        env=project.environment(FAKE_TRAINING_SECONDS="60"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout.readline() == "half way\n"
    second = subprocess.Popen(
        command(project, plan, job),
        cwd=project.root,
        env=project.environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert "waiting for" in second.stderr.readline()
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    start = time.monotonic()
    second.communicate(timeout=30)
    assert second.returncode == 0 and time.monotonic() - start < 10
