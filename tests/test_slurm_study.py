"""Snakemake with the SLURM profile on a real SLURM: a study with real training, and what happens around a run.

Each Snakemake job on a node costs two seconds of CPU, so there are few: all else about the executor is in
``test_slurm_faults``.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from slurm_lab import VARIABLE, Lab, content, lacking, wait_for

if lacking() and not os.environ.get(VARIABLE):
    pytest.skip(f"tests of SLURM: {lacking()}", allow_module_level=True)
from peftbench.store import read_record
from workflow_project import STUDY, Project

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow
QUICK = {
    "init-seconds-before-status-checks": 1,
    "max-seconds-between-status-checks": 2,
    "batch-wait": 1,
    "partition": "cpu",
}
TOKEN = "hf_PLANTEDtokenPLANTEDtoken"


def words(**settings) -> list[str]:
    """Options of the executor; the profile's, but quicker."""
    chosen = QUICK | {name.replace("_", "-"): value for name, value in settings.items()}
    return [f"--slurm-resilient-{name}={value}" for name, value in chosen.items()]


@pytest.fixture(scope="module")
def lab():
    lab = Lab().start()
    yield lab
    lab.stop()


class Study:
    """A project folder with one small study of the embedded model and data."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for part in ("Snakefile", "workflow", "profiles", "envs", "config", "paper"):
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, root / part)
        axes = {
            "model": "tiny-llava",
            "method": ["lora", "ia3"],
            "connector": "tuned",
            "dataset": "vizwiz_mini",
        }
        study = {
            "title": "On a cluster",
            "axes": axes | {"train_size": 100, "epochs": 1},
            "include_base": True,
        }
        (root / "config/studies/cluster.yaml").write_text(yaml.safe_dump(study))

    def run(self, folder: str, lab: Lab | None = None, *more: str, **settings) -> str:
        """``snakemake cluster`` in a folder: by this machine, or by SLURM as the profile has it.

        With a token in the environment, as users have it.
        """
        command = [sys.executable, "-m", "snakemake", "-s", str(self.root / "Snakefile"), "cluster", *more]
        command += ["--directory", str(self.root / folder)]
        command += ["--profile", "profiles/slurm", *words(**settings)] if lab else ["--cores", "2"]
        environment = lab.environment if lab else dict(os.environ)
        done = subprocess.run(
            command,
            cwd=self.root,
            env=environment | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_TOKEN": TOKEN},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=580,
        )
        assert done.returncode == 0, done.stdout[-8000:]
        return done.stdout


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(tmp_path_factory.mktemp("study"))


def test_a_study_on_slurm_gives_the_same_bits_as_on_this_machine(study, lab):
    study.run("here")
    said = study.run("there", lab)
    here, there = (content(study.root / name / "results") for name in ("here", "there"))
    assert len([name for name in here if name.endswith("adapter_model.safetensors")]) == 2
    assert here.keys() == there.keys() and here == there
    assert "submitted again" not in said, re.findall(".*submitted again.*", said)
    # Few SLURM jobs, with names that say what they are; their logs went with their success.
    names = [row[2] for row in lab.mine()]
    assert "train/tiny-llava:2-jobs" in names and len(names) <= 6, names
    assert {row[1] for row in lab.mine()} == {"COMPLETED"}
    assert any(re.fullmatch(r"build_base_model:tiny-llava/[0-9a-f]{16}", name) for name in names), names
    logs = study.root / "there/results/logs"
    assert not list((logs / "slurm").rglob("*.log")) and list(
        (logs / "train_adapter/tiny-llava").rglob("*.log")
    )
    # A job has the environment that it was submitted from; nothing that is shown or kept of it names a secret.
    shown = lab.run("scontrol", "show", "job", "--details", check=False)
    assert "Comment=snakemake:" in shown and TOKEN not in shown + said
    written = [path for path in (study.root / "there").rglob("*") if path.is_file()]
    assert len(written) > 20 and not [path for path in written if TOKEN.encode() in path.read_bytes()]
    assert "Nothing to be done" in study.run("there", lab)


@pytest.fixture
def project(tmp_path, lab):
    """A project whose trainings cost nothing, with all made that they need."""
    project = Project(tmp_path)
    axes = STUDY["axes"] | {"connector": "tuned", "dataset": "first"}
    project.write_yaml("config/studies/small.yaml", STUDY | {"axes": axes, "include_base": False})
    shutil.copytree(ROOT / "config/hardware", tmp_path / "config/hardware")
    shutil.copy(ROOT / "config/planning.yaml", tmp_path / "config")
    assert project.snakemake("-c2", "--until", "build_base_model", "draw_subset").returncode == 0
    project.before = {row[0] for row in lab.mine()}
    return project


class Master:
    """Snakemake in a process that can be killed; each training is a SLURM job of its own."""

    def __init__(self, project: Project, lab: Lab, *arguments: str, **variables: str) -> None:
        self.log = project.root / "master.log"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "snakemake", "--profile", "profiles/slurm"),
                *words(batch_minutes=0, status_query="squeue"),
                *("--until", "train_adapter", *arguments),
            ],
            cwd=project.root,
            env=lab.environment
            | {"PYTHONPATH": str(project.root / "src"), "OMP_NUM_THREADS": "1"}
            | variables,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self, what: Callable[[], bool]) -> None:
        """Until something holds, while it runs."""
        end = time.monotonic() + 120
        while not what():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.2)

    def end(self) -> str:
        """Wait for its end; what it said."""
        self.wait(lambda: self.process.poll() is not None)
        return self.log.read_text()

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def trainings(lab: Lab, project: Project) -> list[list[str]]:
    digests = [job.digest for job in project.plan().jobs.values() if job.stage == "train"]
    return [row for row in lab.mine() if row[0] not in project.before and any(d in row[2] for d in digests)]


def stored(project: Project) -> list[Path]:
    return sorted((project.root / "results/runs").glob("tiny/first/*/record.json"))


def test_a_killed_snakemake_goes_on_with_its_jobs(project, lab):
    """Both trainings run on while no Snakemake is there: the next one attaches to them, and none starts twice."""
    counter = project.root / "count"
    variables = {"FAKE_COUNTER": str(counter), "FAKE_TRAINING_SECONDS": "20"}
    first = Master(project, lab, **variables)
    first.wait(lambda: counter.exists() and len(counter.read_text().splitlines()) == 2)
    first.kill()
    before = trainings(lab, project)
    assert [row[1] for row in before] == ["RUNNING", "RUNNING"]
    second = Master(project, lab, **variables)
    said = second.end()
    assert second.process.returncode == 0, said
    assert trainings(lab, project) == [[*row[:1], "COMPLETED", *row[2:]] for row in before]
    assert len(counter.read_text().splitlines()) == 2 and len(stored(project)) == 2
    assert "attached to it" in said
    # Without unlocking, and nothing is left to do.
    assert "train_adapter" not in project.jobs("--until", "train_adapter")


def test_the_configuration_changes_while_a_job_waits(project, lab):
    """It refuses when it starts, in one line that says what changed, and stores nothing; undone, it runs."""
    resources = ("--set-resources", "train_adapter:slurm_extra='--begin=now+20'")
    master = Master(project, lab, *resources)
    master.wait(lambda: len(trainings(lab, project)) == 2)
    rows = trainings(lab, project)
    assert {row[1] for row in rows} == {"PENDING"}
    project.edit("config/config.yaml", "studies:", "methods: {lora: {rank: 8}}\nstudies:")
    said = master.end()
    assert master.process.returncode == 1, said
    logs = {path: path.read_text() for path in project.root.rglob("logs/slurm/train_adapter/**/*.log")}
    refused = [re.findall(r"^.*is no longer what.*$", text, flags=re.MULTILINE) for text in logs.values()]
    lines = [line for found in refused for line in found]
    assert len(lines) == 1 and "(settings.rank was 128, is 8): run snakemake again" in lines[0], logs
    assert len(stored(project)) == 1 and read_record(stored(project)[0]).spec["method"] == "adapter"
    assert "its program failed" in said and said.count("submitted again") == 0


TOY = """
rule work:
    output: "a.txt"
    resources: runtime=5, mem_mb=700
    shell: "set -euo pipefail; PATH=.:$PATH; train.py {output}"
"""
TRAIN = """#!/usr/bin/env python3
import os, signal, sys, time
from pathlib import Path
def stop(number, frame):
    time.sleep(1.5)
    Path("saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
if Path("saved").exists():
    Path(sys.argv[1]).write_text(os.environ["SLURM_RESTART_COUNT"])
    sys.exit()
Path("began").touch()
time.sleep(60)
"""


def test_a_stopped_program_has_time_to_save_and_knows_that_it_was_restarted(lab, tmp_path):
    """SIGTERM reaches it through the batch script and Snakemake, which wait for it."""
    (tmp_path / "Snakefile").write_text(TOY)
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "train.py").chmod(0o755)
    before = {row[0] for row in lab.mine()}
    command = [sys.executable, "-m", "snakemake", "a.txt", "--executor", "slurm-resilient", "--jobs", "1"]
    with (tmp_path / "log").open("w") as log:
        master = subprocess.Popen(
            [*command, *words()], cwd=tmp_path, env=lab.environment, stdout=log, stderr=log
        )
    try:
        wait_for((tmp_path / "began").exists, 90)
        (row,) = [row for row in lab.mine() if row[0] not in before]
        lab.run("scontrol", "requeue", row[0])
        assert master.wait(timeout=120) == 0, (tmp_path / "log").read_text()
    finally:
        master.kill()
    assert (tmp_path / "a.txt").read_text() == "1" and lab.state(row[0]) == "COMPLETED"
