"""``peftbench gc`` on the real workflow with stages that cost nothing; see ``workflow_project``."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from peftbench.config import Settings
from peftbench.errors import UserError
from peftbench.fingerprint import Fingerprinter
from peftbench.graph import Plan
from peftbench.reruns.garbage import Collector
from peftbench.store import locked
from workflow_project import STUDY, Project

DAY = 86400
PREPARE = """
import hashlib

import polars as pl

def prepare_dataset(spec, out_dir, image_store, files):
    data = spec.dataset.encode()
    name = hashlib.sha256(data).hexdigest()
    (image_store / name[:2]).mkdir(parents=True, exist_ok=True)
    (image_store / name[:2] / name).write_bytes(data)
    pl.DataFrame({"id": ["1", "2"], "image": [name, ""]}).write_parquet(out_dir / "train.parquet")
    return {"examples": spec.splits}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project whose small study has been made, and put aside to start every test from."""
    project = Project(tmp_path_factory.mktemp("gc"))
    project.write("src/peftbench/data/prepare.py", PREPARE)
    done = project.snakemake("-c2")
    assert done.returncode == 0, done.stdout
    for name in ("results", "config"):
        shutil.copytree(project.root / name, project.root / f"kept-{name}")
    return project


@pytest.fixture
def project(finished):
    for name in ("results", "config"):
        shutil.rmtree(finished.root / name)
        shutil.copytree(finished.root / f"kept-{name}", finished.root / name)
    return finished


def run(project, *arguments, answer=None):
    return subprocess.run(
        [sys.executable, "-m", "peftbench.cli", "gc", *arguments],
        cwd=project.root,
        env=project.environment(),
        input=answer,
        capture_output=True,
        text=True,
    )


def found(project, *arguments):
    done = run(project, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def kinds(answer):
    return {kind: total["count"] for kind, total in answer["totals"].items()}


def only_lora(project):
    project.write_yaml("config/studies/small.yaml", STUDY | {"axes": STUDY["axes"] | {"method": ["lora"]}})


def aged(path, days=3):
    for entry in [path, *path.rglob("*")] if path.is_dir() else [path]:
        os.utime(entry, (time.time() - days * DAY,) * 2)


def image(project, data):
    name = hashlib.sha256(data).hexdigest()
    path = project.root / "results/images" / name[:2] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def records(project):
    return sorted(str(p.relative_to(project.root)) for p in (project.root / "results").rglob("record.json"))


def test_nothing_goes_while_a_study_refers_to_it(project):
    answer = found(project)
    assert answer["items"] == [] and answer["kept"] == 33 and answer["notes"] == []
    before = records(project)
    assert run(project, "--delete", "--yes").returncode == 0
    assert records(project) == before and project.jobs() == {}


def test_what_no_study_refers_to_is_listed_by_stage_and_goes_on_demand(project):
    only_lora(project)
    answer = found(project)
    # the answers and scores lie inside the trainings and go with them
    assert kinds(answer) == {"train": 4, "ticket": 15}
    assert {item["label"].split()[0] for item in answer["items"] if item["kind"] == "train"} == {"adapter"}
    assert answer["bytes"] == sum(item["bytes"] for item in answer["items"]) > 0
    text = run(project).stdout
    assert "4 x train" in text and "in all; 21 results are referred to and stay" in text
    assert len(records(project)) == 33  # nothing went yet
    done = run(project, "--delete", answer="n\n")
    assert done.returncode == 1 and "nothing was removed" in done.stderr
    assert len(records(project)) == 33
    done = run(project, "--delete", answer="y\n")
    assert done.returncode == 0 and "removed 19 of 19" in done.stderr
    assert len(records(project)) == 33 - 12 and not (project.root / "results/.trash").exists()
    assert set(project.jobs()) <= {"tabulate_study_small", "plot_study_small", "build_report_small", "all"}


def test_overlays_and_other_checkouts_count(project, tmp_path):
    project.write_yaml("more.yaml", {"methods": {"lora": {"rank": 64}}})
    plan = Plan(
        Settings.from_files(project.root, [project.root / "more.yaml"]),
        Fingerprinter(project.root / "src/peftbench"),
    )
    score = plan.study("small").scores[0]
    done = project.snakemake("-c2", f"results/{score.record}", "--configfile", "more.yaml")
    assert done.returncode == 0, done.stdout
    assert kinds(found(project))["train"] == 1
    assert found(project, "--configfile", "more.yaml")["items"] == []
    only_lora(project)
    assert kinds(found(project))["train"] == 5
    other = tmp_path / "other"
    shutil.copytree(project.root, other, ignore=shutil.ignore_patterns("results", "kept-*", ".snakemake"))
    shutil.copytree(project.root / "kept-config/studies", other / "config/studies", dirs_exist_ok=True)
    assert kinds(found(project, "--also", str(other)))["train"] == 1
    done = run(project, "--also", str(tmp_path))
    assert done.returncode == 1 and done.stderr.startswith(f"error: --also {tmp_path}: no checkout")


def test_what_is_young_stays_and_all_that_it_was_made_from(project):
    only_lora(project)
    assert kinds(found(project, "--keep-days", "1")) == {}
    aged(project.root / "results")
    assert kinds(found(project, "--keep-days", "1"))["train"] == 4
    # a study without runs: everything would go, but for the one that is young
    (project.root / "config/studies/small.yaml").unlink()
    project.edit("config/config.yaml", "studies:\n- small", "studies: []")
    assert {"prepare": 2, "subset": 2, "train": 8}.items() <= kinds(found(project)).items()
    young = next((project.root / "results/runs/tiny/first").glob("adapter-*"))
    os.utime(young / "record.json")
    answer = found(project, "--keep-days", "1")
    assert {"prepare": 1, "subset": 1, "train": 7}.items() <= kinds(answer).items()
    assert "build" not in kinds(answer) and kinds(answer)["predict"] == 3
    assert not any(item["label"] in ("first", "first full") for item in answer["items"])


def test_images_of_kept_data_sets_stay_and_orphans_go_when_they_are_old(project):
    orphan, young = image(project, b"nobody's"), image(project, b"just written")
    aged(orphan)
    for path in (project.root / "results/images").glob("??/*"):
        if path != young:
            aged(path)
    answer = found(project)
    assert [item["path"] for item in answer["items"]] == [str(orphan.relative_to(project.root))]
    assert run(project, "--delete", "--yes").returncode == 0
    left = {path.name for path in (project.root / "results/images").glob("??/*")}
    assert left == {hashlib.sha256(name).hexdigest() for name in (b"first", b"second", b"just written")}
    aged(young)
    broken = next((project.root / "results/data").glob("first-*/train.parquet"))
    broken.write_bytes(b"no parquet")
    answer = found(project)
    assert answer["items"] == [] and "all images are kept" in answer["notes"][0]
    # images of a data set that goes go with it
    shutil.copy(
        project.root
        / "results/data"
        / next((project.root / "results/data").glob("second-*")).name
        / "train.parquet",
        broken,
    )
    project.write_yaml(
        "config/config.yaml",
        {
            "lineup": {"models": ["tiny"], "datasets": ["first"]},
            "studies": ["small"],
            "execution": {"worker": "none", "device": "cpu"},
        },
    )
    assert kinds(found(project))["prepare"] == 1


def test_a_running_job_keeps_all_that_it_needs(project):
    only_lora(project)
    plan_of_all = {p.name for p in (project.root / "results/runs/tiny/first").glob("adapter-*")}
    name = sorted(plan_of_all)[0]
    folder = project.root / "results/runs/tiny/first" / name
    predictions = next(folder.glob("predictions-*"))
    shutil.rmtree(next(predictions.glob("scores-*")))
    (predictions / "record.json").unlink()
    digest = predictions.name.rpartition("-")[2]
    with locked(project.root / "results/.locks" / digest, print):
        answer = found(project)
        assert kinds(answer)["train"] == 3
        assert str(folder.relative_to(project.root)) not in {item["path"] for item in answer["items"]}
        assert run(project, "--delete", "--yes").returncode == 0
    assert (folder / "record.json").exists()
    assert kinds(found(project))["train"] == 1
    with locked(project.root / "results/.locks" / ("0" * 16), print):
        done = run(project)
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert "a job is running of which no ticket says what it needs" in done.stderr


def test_a_job_that_begins_between_the_list_and_the_removal_keeps_its_inputs(project):
    only_lora(project)
    plan = project.plan()
    needed = set(plan.jobs)
    collector = Collector(project.root / "results", [plan], needed, project.root, 0)
    items = collector.find().items
    train = next(item for item in items if item.kind == "train")
    predictions = next(train.path.glob("predictions-*"))
    with locked(project.root / "results/.locks" / predictions.name.rpartition("-")[2], print):
        removed, _, problems = collector.remove(items)
    assert train.path.exists() and removed < len(items)
    assert any(line.startswith(f"{train.path}: needed by a job that began meanwhile") for line in problems)


def test_while_snakemake_runs_what_has_a_ticket_stays(project):
    only_lora(project)
    lock = project.root / ".snakemake/locks/0.input.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text("results/x\n")
    try:
        answer = found(project)
    finally:
        lock.unlink()
    assert answer["items"] == [] and "Snakemake runs here" in answer["notes"][0]
    with locked(project.root / "results/.locks/tables-small", print):
        answer = found(project)
    assert answer["items"] == [] and "a table, figure or page is being made" in answer["notes"][0]
    assert kinds(found(project))["train"] == 4


def test_left_overs_of_killed_jobs_go_and_what_can_be_resumed_stays(project):
    results = project.root / "results"
    run_folder = next((results / "runs/tiny/first").glob("lora-*"))
    old, fresh = run_folder / ".partial-old", run_folder / ".partial-new"
    for path in (old, fresh):
        path.mkdir()
        (path / "half").write_text("x" * 100)
    aged(old)
    missing = next((results / "runs/tiny/second").glob("lora-*"))
    shutil.rmtree(missing)
    for digest in (run_folder.name[-16:], missing.name[-16:], "0123456789abcdef"):
        (results / ".staging" / digest).mkdir(parents=True)
        (results / ".staging" / digest / "checkpoint").write_text("x" * 1000)
    half = results / "runs/tiny/first/lora-00000000000000aa"
    half.mkdir()
    aged(half)
    trash = results / ".trash/lora-1.12345678"
    trash.mkdir(parents=True)
    bless = results / ".bless-x"
    bless.mkdir()
    aged(bless)
    answer = found(project)
    going = {item["path"] for item in answer["items"]}
    assert going == {
        str(path.relative_to(project.root))
        for path in (
            old,
            trash,
            half,
            bless,
            results / ".staging" / run_folder.name[-16:],
            results / ".staging/0123456789abcdef",
        )
    }
    done = run(project, "--delete", "--yes")
    assert done.returncode == 0 and "removed 6 of 6" in done.stderr
    assert fresh.exists() and (results / ".staging" / missing.name[-16:] / "checkpoint").exists()
    assert not any((project.root / path).exists() for path in going)


def test_an_interrupted_removal_leaves_no_half_result(project, monkeypatch):
    only_lora(project)
    plan = project.plan()
    collector = Collector(project.root / "results", [plan], set(plan.jobs), project.root, 0)
    items = collector.find().items

    def killed(path):
        (path / "record.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr("peftbench.reruns.garbage._delete", killed)
    with pytest.raises(KeyboardInterrupt):
        collector.remove(items)
    monkeypatch.undo()
    for folder in (project.root / "results/runs/tiny").glob("*/*-*"):
        assert (folder / "record.json").exists() or folder.name.startswith("base-")
    answer = found(project)
    assert kinds(answer)["trash"] == 1 and kinds(answer)["train"] == 3
    assert run(project, "--delete", "--yes").returncode == 0
    assert found(project)["items"] == []


def test_tables_of_studies_that_are_gone_go(project):
    project.write_yaml("config/studies/other.yaml", STUDY | {"title": "Other"})
    (project.root / "config/studies/small.yaml").unlink()
    project.edit("config/config.yaml", "- small", "- other")
    answer = found(project)
    paths = {item["path"] for item in answer["items"] if item["kind"] == "view"}
    assert {"results/tables/small.csv", "results/figures/small.svg", "results/report/small.html"} <= paths
    assert kinds(answer)["view"] == 4 + 2 + 1 + 3 and "train" not in kinds(answer)


def test_features_go_when_no_kept_run_was_made_with_them(project):
    cache = project.root / "results/cache"
    cache.mkdir(exist_ok=True)
    for name, length in (("a", 100), ("b", 200)):
        (cache / f"{name}.safetensors").write_bytes(b"x" * length)
        aged(cache / f"{name}.safetensors")
    path = next((project.root / "results/runs/tiny/first").glob("lora-*/record.json"))
    content = json.loads(path.read_text())
    content["facts"]["features"] = {"cached": True, "bytes": 100}
    path.write_text(json.dumps(content))
    assert [item["path"] for item in found(project)["items"]] == ["results/cache/b.safetensors"]


def test_broken_records_are_named_and_mistakes_are_one_line(project):
    path = next((project.root / "results/runs/tiny/first").glob("lora-*/record.json"))
    path.write_text("{")
    answer = found(project)
    assert answer["items"] == [] and "not a record" in answer["notes"][0]
    for arguments, said in (
        (["--keep-days", "-1"], "--keep-days -1: give 0 or more"),
        (["--results", "nowhere"], "nowhere: there is no such folder"),
        (["--configfile", "none.yaml"], "none.yaml: No such file"),
    ):
        done = run(project, *arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ") and said in done.stderr and done.stderr.count("\n") == 1


def test_needed_digests_are_those_of_the_plan(project):
    done = run(project, "--needed")
    assert set(done.stdout.split()) == set(project.plan().jobs)
    with pytest.raises(UserError):
        project.plan().job("0" * 16)
