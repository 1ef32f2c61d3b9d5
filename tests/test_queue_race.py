"""Code, configuration or a ticket changes while jobs wait behind a running one: nothing wrong is stored."""

import json
import re
import subprocess
import sys

import pytest

from peftbench.store import read_record
from workflow_project import STUDY, Project

AXES = STUDY["axes"] | {"connector": "tuned", "dataset": "first"}
LATE = "        from peftbench.training import late  # noqa\n"


class Held:
    """Snakemake on one core, in the first of its two trainings; the other one waits."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.text = ""
        self.planned = {job.digest: job for job in project.plan().jobs.values()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "snakemake", "-c1"],
            cwd=project.root,
            env=project.environment(FAKE_TRAINING_SECONDS="2"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        while "half way" not in self.text:
            line = self.process.stdout.readline()
            assert line, self.text
            self.text += line
        self.running = re.findall(r"Tuning tiny on first with (\w+)", self.text)[-1]
        self.waiting = {"lora": "adapter", "adapter": "lora"}[self.running]

    def end(self) -> str:
        """Let it go on; its output."""
        self.text += self.process.communicate(timeout=120)[0]
        return self.text

    def train(self, method: str):
        """The planned training of a method."""
        return next(
            job for job in self.planned.values() if job.stage == "train" and f"/{method}-" in job.directory
        )

    def stored(self, method: str) -> bool:
        """Whether the training that was planned left a record; it must be the planned one's."""
        record = self.project.root / "results" / self.train(method).record
        if not record.exists():
            return False
        read = read_record(record)
        assert read.digest == self.train(method).digest
        assert read.spec == json.loads(self.train(method).spec)
        return True


@pytest.fixture
def held(tmp_path):
    project = Project(tmp_path)
    project.write_yaml("config/studies/small.yaml", STUDY | {"axes": AXES, "include_base": False})
    made = []

    def start() -> Held:
        made.append(Held(project))
        return made[-1]

    start.project = project
    yield start
    for running in made:
        if running.process.poll() is None:
            running.process.kill()
            running.process.communicate()


def refusals(text: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r"^ *(error: .*)$", text, flags=re.MULTILINE)))


def test_a_methods_module_changes(held):
    """The waiting run of that method refuses, the running one of the other is stored; undone, all is as it was."""
    race = held()
    module = f"src/peftbench/methods/{race.waiting}.py"
    text = (race.project.root / module).read_text()
    race.project.write(module, text + "\nEDITED = 1\n")
    said = refusals(race.end())
    assert race.process.returncode == 1
    assert said == [
        f"error: code of stage train changed since this job was planned (methods.{race.waiting} changed): "
        "run snakemake again"
    ]
    assert race.stored(race.running) and not race.stored(race.waiting)
    left = race.project.jobs()
    assert (left["train_adapter"], left["generate_predictions"], left["score_predictions"]) == (1, 1, 1)
    race.project.write(module, text)
    assert race.project.jobs() == left
    assert race.project.snakemake("-c2").returncode == 0 and race.stored(race.waiting)
    assert race.project.jobs() == {}


def test_a_comment_changes(held):
    race = held()
    module = f"src/peftbench/methods/{race.waiting}.py"
    race.project.write(module, "# why\n" + (race.project.root / module).read_text())
    race.end()
    assert race.process.returncode == 0, race.text
    assert race.stored("lora") and race.stored("adapter") and race.project.jobs() == {}


def test_a_module_changes_that_the_running_job_imports_later(held):
    """A job checks its code when it starts, and imports some of it hours after that."""
    project = held.project
    project.write("src/peftbench/training/late.py", "VALUE = 1\n")
    loop = "src/peftbench/training/loop.py"
    text = (project.root / loop).read_text().rstrip().splitlines(keepends=True)
    project.write(loop, "".join([*text[:-1], "    from peftbench.training import late\n", text[-1]]))
    race = held()
    project.write("src/peftbench/training/late.py", "VALUE = 2\n")
    said = refusals(race.end())
    assert race.process.returncode == 1
    assert said == [
        "error: code changed while this job ran or waited (training.late changed): nothing was stored, run snakemake "
        "again",
        "error: code of stage train changed since this job was planned (training.late changed): run snakemake again",
    ]
    assert not race.stored("lora") and not race.stored("adapter")
    assert project.snakemake("-c2").returncode == 0 and project.jobs() == {}


def test_the_configuration_changes(held):
    """Jobs read their tickets, never the configuration: what waits is made as it was planned, under that name."""
    race = held()
    race.project.edit(
        "config/config.yaml", "studies:", f"methods: {{{race.waiting}: {{learning_rate: 0.5}}}}\nstudies:"
    )
    race.end()
    assert race.process.returncode == 0, race.text
    assert race.stored("lora") and race.stored("adapter")
    left = race.project.jobs()
    assert (left["train_adapter"], left["generate_predictions"], left["score_predictions"]) == (1, 1, 1)
    assert race.project.snakemake("-c2").returncode == 0
    race.project.edit("config/config.yaml", f"methods: {{{race.waiting}: {{learning_rate: 0.5}}}}\n", "")
    assert set(race.project.jobs()) == {
        "tabulate_study_small",
        "plot_study_small",
        "build_report_small",
        "all",
    }


def as_cluster_job(project: Project, job) -> "subprocess.CompletedProcess[str]":
    """Start a job as executors of clusters do: by Snakemake in the job, which reads the configuration anew."""
    words = dict(zip(("model", "dataset"), job.directory.split("/")[1:3], strict=True))
    wanted = ",".join(f"{k}={v}" for k, v in {**words, "method": "lora", "digest": job.digest}.items())
    return project.snakemake(
        *(
            "--target-jobs",
            f"train_adapter:{wanted}",
            "--allowed-rules",
            "train_adapter",
            "-c1",
            "--mode",
            "remote",
        ),
        *("--force", "--nolock", "--target-files-omit-workdir-adjustment", "--max-inventory-time", "0"),
    )


def test_the_configuration_changes_while_a_job_waits_for_a_cluster(held):
    project = held.project
    assert project.snakemake("-c2", "--until", "build_base_model", "draw_subset").returncode == 0
    plan = project.plan()
    for job in plan.jobs.values():
        project.write(f"results/.tickets/{job.digest}.json", job.ticket)
    job = next(j for j in plan.jobs.values() if j.stage == "train" and "/lora-" in j.directory)
    project.edit("config/config.yaml", "studies:", "methods: {lora: {rank: 8}}\nstudies:")
    done = as_cluster_job(project, job)
    assert done.returncode == 1
    assert (
        f"train lora tiny first tuned ({job.digest}) is no longer what configuration and code ask for "
        "(settings.rank was 128, is 8): run snakemake again"
    ) in done.stdout
    assert not (project.root / "results" / job.record).exists()
    project.edit("config/config.yaml", "methods: {lora: {rank: 8}}\n", "")
    done = as_cluster_job(project, job)
    assert done.returncode == 0, done.stdout
    assert read_record(project.root / "results" / job.record).digest == job.digest


def test_a_ticket_changes(held):
    race = held()
    job = race.train(race.waiting)
    ticket = json.loads(job.ticket)
    ticket["spec"]["epochs"] += 1
    race.project.write(f"results/.tickets/{job.digest}.json", json.dumps(ticket))
    said = refusals(race.end())
    assert race.process.returncode == 1
    assert len(said) == 1 and f"{job.digest}/record.json: the ticket belongs to digest" in said[0]
    assert race.stored(race.running) and not race.stored(race.waiting)
    assert race.project.snakemake("-c2").returncode == 0, "the next start writes tickets anew"
    assert race.stored(race.waiting) and race.project.jobs() == {}
