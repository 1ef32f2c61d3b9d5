"""The SLURM executor where accounting answers first: ``sacct``, slurmdbd and a database, all real."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm_lab import VARIABLE, Lab, lacking, wait_for

if lacking(accounting=True) and not os.environ.get(VARIABLE):
    pytest.skip(f"tests of SLURM's accounting: {lacking(accounting=True)}", allow_module_level=True)
from slurm_world import World
from workflow_project import Project

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab():
    lab = Lab(accounting=True).start()
    yield lab
    lab.stop()


@pytest.fixture
def world(lab, tmp_path, monkeypatch):
    with World(lab, tmp_path, monkeypatch, status_query="sacct", account="lab") as one:
        yield one
    assert not one.said("DIED"), one.lines


def submissions(lab, task):
    return [row for row in lab.mine() if row[2].endswith("/".join(task.wildcards))]


def test_ends_are_told_apart_by_accounting(world, lab):
    """``CANCELLED by 0``, FAILED with a step that ran out of memory, a requeued job that sacct shows as ended."""
    done = world.task("done", "echo ok")
    bad = world.task("bad", "false")
    cancelled = world.task(
        "cancelled", f"test -e {world.folder}/c || (touch {world.folder}/c; exec sleep 60)"
    )
    requeued = world.task("requeued", "sleep 4; echo ${SLURM_RESTART_COUNT:-0}")
    hungry = world.task(
        "hungry", "python3 -c 'import time; b = str(1) * (300 << 20); time.sleep(4)'", mem_mb=200
    )
    world.run(done, bad, cancelled, requeued, hungry)
    wait_for((world.folder / "c").exists)
    lab.run("scancel", world.running(cancelled))
    lab.run("scontrol", "requeue", world.running(requeued))
    world.wait(done, bad, cancelled, requeued, hungry)
    assert [t.ended for t in (done, bad, cancelled, requeued, hungry)] == ["done", "error", *["done"] * 3]
    assert [len(submissions(lab, t)) for t in (done, bad, cancelled, requeued)] == [1, 1, 2, 1]
    assert requeued.text() == "1\n" and world.said("somebody cancelled it", "1 of 2")
    assert world.said("it needed more memory", "1 of 3") and not world.said("time limit")


def test_accounting_is_away(world, lab):
    """For twelve seconds, in which a job ends and another starts: nothing is dropped, nothing runs twice."""
    one, two = world.task("one", "sleep 4; echo ok"), world.task("two", "sleep 20; echo ok")
    world.run(one)
    world.running(one)
    lab.stop_daemon("slurmdbd")
    world.run(two)
    wait_for(lambda: world.said("SLURM does not answer"), 30)
    time.sleep(12)
    assert one.ended == "done" and not two.ended
    lab.start_dbd()
    world.wait(one, two)
    assert (one.ended, two.ended) == ("done", "done") and world.said("SLURM answers again")
    assert len(submissions(lab, one)) == len(submissions(lab, two)) == 1


def test_a_study_by_accounting_is_the_study_of_this_machine(lab, tmp_path_factory):
    """The whole graph with stages that cost nothing; real ones are compared in ``test_slurm_study``."""
    made = {}
    for name in ("here", "there"):
        project = Project(tmp_path_factory.mktemp(name))
        project.write_yaml(
            "config/studies/small.yaml",
            {
                "title": "Small",
                "axes": {"model": "tiny", "method": "lora", "connector": "tuned", "dataset": "first"},
                "include_base": False,
            },
        )
        shutil.copytree(ROOT / "config/hardware", project.root / "config/hardware")
        shutil.copy(ROOT / "config/planning.yaml", project.root / "config")
        where = ["--cores", "2"]
        if name == "there":
            words = {"account": "lab", "partition": "cpu", "status-query": "sacct", "batch-wait": 1}
            words |= {"init-seconds-before-status-checks": 1, "max-seconds-between-status-checks": 2}
            where = ["--profile", "profiles/slurm", *(f"--slurm-resilient-{k}={v}" for k, v in words.items())]
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", *where],
            cwd=project.root,
            env=lab.environment | {"PYTHONPATH": str(project.root / "src"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        files = [p for p in (project.root / "results").rglob("*") if p.is_file() and "logs" not in p.parts]
        made[name] = {
            str(p.relative_to(project.root)): p.read_bytes()
            for p in files
            if p.suffix not in (".json", ".html")
        }
        names = {str(p.relative_to(project.root)) for p in files if p.suffix == ".json"}
        made[name] |= dict.fromkeys(names, b"")
    assert made["here"] == made["there"] and any("adapter/weights" in name for name in made["here"])
    text = lab.run("sacct", "-X", "-n", "-P", "--format=JobName,State,Account")
    rows = [line.split("|") for line in text.splitlines() if line.startswith(("train_adapter", "train/tiny"))]
    assert rows and all(row[1:] == ["COMPLETED", "lab"] for row in rows), text
