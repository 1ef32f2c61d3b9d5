"""``peftbench explain`` on the real workflow with stages that cost nothing; see ``workflow_project``."""

import json
import subprocess
import sys

import pytest

from workflow_project import STUDY, Project, dataset


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project whose small study has been made."""
    project = Project(tmp_path_factory.mktemp("explain"))
    done = project.snakemake("-c2")
    assert done.returncode == 0, done.stdout
    return project


@pytest.fixture
def project(finished):
    """The same; files that a test changes come back."""
    kept = {path: path.read_bytes() for path in finished.root.rglob("*.[yp][ay]*") if path.is_file()}
    yield finished
    for path, content in kept.items():
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


def explain(project, *arguments):
    """Standard output; ``--json`` is decoded."""
    done = run(project, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def run(project, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "peftbench.cli", "explain", *arguments],
        cwd=project.root,
        env=project.environment(),
        capture_output=True,
        text=True,
    )


def job_of(plan, stage, label):
    return next(job for job in plan.jobs.values() if job.stage == stage and job.label == label)


def texts(answer):
    return {line["text"]: line["jobs"] for line in answer["because"]}


def test_a_result_tells_what_it_was_made_from(project):
    job = job_of(project.plan(), "train", "lora tiny first tuned")
    for name in (
        job.digest,
        f"results/{job.directory}",
        f"results/{job.record}",
        f"results/{job.directory}/adapter",
    ):
        answer = explain(project, name, "--json")
        assert answer["there"] and answer["planned"] and answer["digest"] == job.digest
    assert answer["settings"]["training of lora tiny first tuned"]["settings.rank"] == 128
    assert "training.loop" in answer["code"]["modules"] and answer["code"]["packages"]["peft"]
    assert {line["name"]: line["label"] for line in answer["inputs"]} == {
        "base": "tiny",
        "data": "first",
        "subset": "first full",
    }
    assert answer["made"]["wall_seconds"] >= 0 and answer["made"]["device"] == "cpu"
    text = explain(project, job.digest)
    assert "training of lora tiny first tuned" in text.splitlines()[0] and ": there" in text.splitlines()[0]
    assert "settings.rank=128" in text and "training.loop" in text
    assert "data set first" in text and "peak" in text and len(text.splitlines()) < 40


def test_a_cell_is_followed_to_the_setting_that_changed(project):
    project.edit("config/config.yaml", "studies:", "methods: {lora: {rank: 64}}\nstudies:")
    cell = ("small", "method=lora", "dataset=first", "connector=tuned")
    answer = explain(project, *cell, "--json")
    assert answer["stage"] == "score" and not answer["there"] and answer["same_label"]
    assert texts(answer) == {
        "settings.rank: 128 -> 64": [
            "training of lora tiny first tuned",
            "answers of lora tiny first tuned",
        ]
    }
    assert {line["label"]: line["there"] for line in answer["inputs"] if line["stage"] != "predict"} == {
        "first": True,
        "first full": True,
        "tiny": True,
        "lora tiny first tuned": False,
    }
    text = explain(project, *cell)
    assert (
        "not there: it would run" in text and "settings.rank: 128 -> 64" in text and "would run first" in text
    )
    # of the old result, what stands in its place now
    old = project.root / "results/runs/tiny/first"
    stored = [p.name for p in old.glob("lora-*")]
    found = [explain(project, name, "--json") for name in stored]
    assert all(answer["there"] and not answer["planned"] for answer in found)
    assert all("settings.rank: 128 -> 64" in texts(answer) for answer in found)


def test_the_nearest_record_is_the_one_with_fewest_differences(project):
    """Of two learning rates ago and one, whatever was made last."""
    project.edit("config/config.yaml", "studies:", "methods: {lora: {rank: 64, alpha: 8}}\nstudies:")
    project.write_yaml("config/studies/small.yaml", STUDY | {"axes": STUDY["axes"] | {"method": ["lora"]}})
    scores = [f"results/{job.record}" for job in project.plan().jobs.values() if job.stage == "score"]
    assert project.snakemake("-c2", *scores).returncode == 0
    project.edit("config/config.yaml", "rank: 64, alpha: 8", "rank: 64, alpha: 9")
    answer = explain(project, "small", "method=lora", "dataset=second", "connector=frozen", "--json")
    assert set(texts(answer)) == {"settings.alpha: 8.0 -> 9.0"}
    project.edit("config/config.yaml", "rank: 64, alpha: 9", "rank: 127")
    answer = explain(project, "small", "method=lora", "dataset=second", "connector=frozen", "--json")
    assert set(texts(answer)) == {"settings.rank: 128 -> 127"}


def test_code_is_named_with_its_file_and_packages_with_their_versions(project):
    project.edit("src/peftbench/methods/lora.py", "def apply", "EDITED = 1\n\n\ndef apply")
    project.write("src/peftbench/training/fresh.py", "X = 1\n")
    project.edit("src/peftbench/training/loop.py", "import os", "import os\nimport peftbench.training.fresh")
    project.edit("config/config.yaml", "studies:", "identity: {granularity: major}\nstudies:")
    answer = explain(project, "small", "method=lora", "dataset=first", "connector=tuned", "--json")
    found = texts(answer)
    train = "training of lora tiny first tuned"
    assert train in found["code: methods.lora changed (src/peftbench/methods/lora.py)"]
    assert found["code: training.loop changed (src/peftbench/training/loop.py)"] == [train]
    assert found["code: training.fresh is new (src/peftbench/training/fresh.py)"] == [train]
    assert any(text.startswith("package peft: 0.") and text.endswith("-> 0") for text in found)


def test_inputs_are_followed_to_the_data_set(project):
    project.write_yaml("config/datasets/second.yaml", dataset("okvqa", splits={"train": 21, "test": 10}))
    answer = explain(project, "small", "method=adapter", "dataset=second", "connector=tuned", "--json")
    assert texts(answer) == {"splits.train: 20 -> 21": ["data set second"]}
    summary = explain(project, "small", "--json")
    assert summary["runs"] == 10 and summary["there"] == 5
    assert summary["would_run"] == {"prepare": 1, "subset": 1, "train": 4, "predict": 5, "score": 5}
    assert texts(summary) == {"splits.train: 20 -> 21": ["data set second"]}
    assert summary["never_made"] == []
    text = explain(project, "small")
    assert "10 runs, 5 there, 5 not" in text and "splits.train: 20 -> 21  [data set second]" in text
    assert "tabulate  would be made" in text


def test_a_run_that_was_never_made_says_so_and_names_the_nearest_other_one(project):
    project.write_yaml(
        "config/studies/small.yaml", STUDY | {"axes": STUDY["axes"] | {"method": ["lora", "ia3"]}}
    )
    text = explain(project, "small", "method=ia3", "dataset=first", "connector=tuned")
    assert "another run" in text and "of this one nothing is stored" in text
    assert explain(project, "small", "--json")["never_made"]


def test_a_finished_study_is_there(project):
    answer = explain(project, "small", "--json")
    assert answer["there"] == answer["runs"] == 10 and answer["would_run"] == {}
    assert all(view["there"] for view in answer["views"]) and len(answer["views"]) == 3
    assert explain(project, "results/tables/small.csv").startswith("study small: 10 runs, 10 there")


def test_a_broken_record_is_named_and_skipped(project):
    job = job_of(project.plan(), "train", "adapter tiny first tuned")
    path = project.root / "results" / job.record
    content = path.read_bytes()
    try:
        path.write_bytes(content[: len(content) // 2])
        text = explain(project, job.digest)
        assert f"warning: {path.relative_to(project.root)}: not a record" in text
        path.write_bytes(content.replace(b'"epochs": 3', b'"epochs": 4'))
        text = explain(project, job.digest)
        assert "not there" in text and "its content belongs to digest" in text
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["smal"], "'smal' is no digest, no path of a result, and no study; did you mean 'small'?"),
        (["0123456789abcdef"], "digest 0123456789abcdef is neither planned nor in results"),
        (["small", "methud=lora"], "study small has no axis 'methud'; did you mean 'method'?"),
        (["small", "method=ia3"], "study small: no run has method=ia3"),
        (["small", "lora"], "'lora': a filter is axis=value"),
    ],
)
def test_mistakes_are_one_line(project, arguments, said):
    done = run(project, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and said in done.stderr and done.stderr.count("\n") == 1
