import json
import subprocess
import sys

import pytest

from peftbench.cli import main
from workflow_project import Project


@pytest.fixture
def project(tmp_path, monkeypatch):
    made = Project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return made


def test_runs_lists_each_run_once_with_its_state(project, capsys):
    assert main(["runs", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 10 and {row["state"] for row in rows} == {"planned"}
    assert {row["run"] for row in rows if row["method"] == "base"} == {"-"}
    assert main(["runs"]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 10 and shown.err == "10 runs\n"


def test_a_ticket_command_runs_by_hand(project):
    command = [sys.executable, "-m", "peftbench.cli", "ticket"]
    plan = project.plan()
    digest = plan.prepare("first").digest
    for name in (digest, f"results/data/first-{digest}/record.json", f"results/data/first-{digest}"):
        done = subprocess.run([*command, name], env=project.environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    made = subprocess.run(
        ["bash", "-c", done.stdout], env=project.environment(), capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert (project.root / f"results/data/first-{digest}/record.json").exists()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["runs", "smal"], "unknown study 'smal'; did you mean 'small'?"),
        (["runs", "--configfile", "none.yaml"], "none.yaml: No such file or directory"),
        (["ticket", "0123456789abcdef"], "has the digest 0123456789abcdef"),
        (["ticket", "results"], "has the digest results"),
    ],
)
def test_mistakes_are_one_line(project, capsys, arguments, said):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_studies_counts_trainings_once(project, capsys):
    project.write_yaml(
        "config/studies/again.yaml", {"title": "Again", "extends": "small", "group": "all_of_them"}
    )
    assert main(["studies"]) == 0
    shown = capsys.readouterr()
    rows = {line.split()[0]: line.split()[1:] for line in shown.out.splitlines()}
    assert rows["study"] == ["cells", "trainings", "new", "predictions", "to", "do"]
    assert rows["again"] == ["10", "8", "8", "10", "18"] and rows["small"] == ["10", "8", "0", "10", "18"]
    assert shown.err == "8 unique trainings; 18 trainings and predictions to do\n"
    assert main(["studies", "all_of_them"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["study", "again"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["studies", "smal"], "there is no study or group 'smal'; did you mean 'small'"),
        (["pin", "firts"], "there is no model or data set 'firts'; did you mean 'first'"),
        (["claims"], "config/claims.yaml: there is no such file"),
        (["annotate", "make", "small", "--out", "sheet"], "--target: which data set?"),
        (["annotate", "make", "small", "--out", "sheet", "--target", "first"], "no answers to first yet"),
        (["annotate", "count", "none.csv", "--sheet", "sheet", "--out", "out"], "sheet"),
    ],
)
def test_mistakes_of_the_further_commands(project, capsys, arguments, said):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
