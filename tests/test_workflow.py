"""The real Snakefile, rules and scripts on a small study; see ``workflow_project``."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from peftbench.errors import UserError
from peftbench.store import read_record
from workflow_project import STUDY, Project

ROOT = Path(__file__).parent.parent
VIEWS = {"tabulate_study_small": 1, "plot_study_small": 1, "build_report_small": 1}
FRESH = {
    "prepare_dataset": 2,
    "draw_subset": 2,
    "build_base_model": 1,
    "train_adapter": 8,
    "generate_predictions": 10,
    "score_predictions": 10,
    **VIEWS,
    "all": 1,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project whose small study has been made."""
    project = Project(tmp_path_factory.mktemp("workflow"))
    assert project.jobs("-c8") == FRESH
    done = project.snakemake("-c2")
    assert done.returncode == 0, done.stdout
    return project


def test_everything_is_made(finished):
    results = finished.root / "results"
    plan = finished.plan()
    for job in plan.jobs.values():
        if job.stage not in ("tabulate", "plot", "report"):
            assert read_record(results / job.record).digest == job.digest
    for name in (
        "tables/small.csv",
        "tables/small.md",
        "tables/small.html",
        "tables/small.tex",
        "figures/small.png",
        "figures/small.svg",
    ):
        assert (results / name).read_text() == "10 cells, 0 failed"
    assert (results / "report/small.html").read_text() == "Small"
    assert [p.name for p in results.rglob(".partial-*")] == []


def test_a_second_run_does_nothing_whatever_happened_to_times_and_metadata(finished):
    assert finished.jobs() == {}
    subprocess.run(["rm", "-rf", finished.root / ".snakemake"], check=True)
    for path in finished.root.rglob("*"):
        os.utime(path)
    assert finished.jobs() == {}


def test_changing_a_rank_reruns_exactly_its_runs_and_changing_back_nothing(finished):
    finished.edit("config/config.yaml", "studies:", "methods: {lora: {rank: 64}}\nstudies:")
    done = {"train_adapter": 4, "generate_predictions": 4, "score_predictions": 4, **VIEWS, "all": 1}
    assert finished.jobs() == done
    planned = {job.record for job in finished.plan().jobs.values() if job.stage == "train"}
    text = finished.snakemake("-n").stdout
    missing = set(re.findall(r"Missing output files: results/(runs/tiny/\w+/\w+-\w+/record.json)", text))
    assert missing == {record for record in planned if "/lora-" in record}
    finished.edit("config/config.yaml", "methods: {lora: {rank: 64}}\n", "")
    assert finished.jobs() == {}


def test_an_overlay_counts_like_an_edit(finished):
    finished.write_yaml("more.yaml", {"training": {"epochs": 1}})
    found = finished.jobs("--configfile", "more.yaml")
    assert found == {"train_adapter": 8, "generate_predictions": 8, "score_predictions": 8, **VIEWS, "all": 1}
    assert finished.jobs("--config", "execution={workers: 3}") == {}


def test_a_study_is_a_target_by_name(finished):
    finished.write_yaml("config/studies/other.yaml", STUDY | {"title": "Other", "averages": ["all"]})
    try:
        views = {name.replace("small", "other"): 1 for name in VIEWS}
        assert finished.jobs("other") == {**views, "other": 1}
        assert finished.jobs("small") == {}
    finally:
        (finished.root / "config/studies/other.yaml").unlink()


def test_a_lost_file_is_made_again(finished):
    (finished.root / "results/tables/small.md").unlink()
    assert finished.jobs()["tabulate_study_small"] == 1
    assert finished.snakemake("-c2").returncode == 0
    assert finished.jobs() == {}


def test_tables_of_an_older_digest_are_made_again(finished):
    """Markers of other digests go, so a table never passes for one of another configuration."""
    finished.edit("config/studies/small.yaml", "title: Small", "title: Renamed")
    assert finished.jobs() == {**VIEWS, "all": 1}
    assert finished.snakemake("-c2").returncode == 0
    assert (finished.root / "results/report/small.html").read_text() == "Renamed"
    finished.edit("config/studies/small.yaml", "title: Renamed", "title: Small")
    assert finished.jobs() == {**VIEWS, "all": 1}
    assert finished.snakemake("-c2").returncode == 0
    markers = [path.name for path in (finished.root / "results").rglob(".made/*")]
    assert len(markers) == 3


def test_results_may_lie_elsewhere(finished, tmp_path):
    done = finished.snakemake("-n", "--config", f"execution={{results: {tmp_path}/elsewhere}}")
    assert str(tmp_path / "elsewhere/runs/tiny") in done.stdout
    (finished.root / "results").rename(tmp_path / "elsewhere")
    try:
        assert finished.jobs("--config", f"execution={{results: {tmp_path}/elsewhere}}") == {}
    finally:
        (tmp_path / "elsewhere").rename(finished.root / "results")


@pytest.mark.parametrize(
    "file, old, new, said",
    [
        ("config/config.yaml", "studies:", "studis:", "unknown key 'studis'; did you mean 'studies'?"),
        ("config/config.yaml", "- small", "- smal", "unknown study 'smal'; did you mean 'small'?"),
        ("config/config.yaml", "- tiny", "- tyny", "unknown model 'tyny'; did you mean 'tiny'?"),
        ("config/config.yaml", "- small", "- [small", "not valid YAML"),
        ("config/studies/small.yaml", "- lora", "- lorra", "unknown method 'lorra'; did you mean 'lora'?"),
        ("src/peftbench/methods/adapter.py", "def apply", "def apply(", "syntax error"),
    ],
)
def test_a_mistake_is_one_line_before_any_job(finished, file, old, new, said):
    text = (finished.root / file).read_text()
    finished.edit(file, old, new)
    try:
        done = finished.snakemake("-n")
    finally:
        finished.write(file, text)
    lines = [
        line for line in done.stdout.splitlines() if not line.startswith("Using workflow specific profile")
    ]
    assert done.returncode == 1
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0]


def test_a_mistyped_target_is_one_line(finished):
    done = finished.snakemake("-n", "smal")
    assert done.returncode == 1
    assert "error: there is no study 'smal'; did you mean 'small'?" in done.stdout


def test_one_failing_run_does_not_stop_the_others_and_is_named(finished):
    """The error is in the log and on the terminal, and the next start makes only what is missing."""
    finished.write_yaml("config/studies/small.yaml", STUDY | {"methods": {"lora": {"rank": 3}}})
    file = "src/peftbench/training/loop.py"
    text = (finished.root / file).read_text()
    finished.write(
        file, text.replace("def train_adapter", "from peftbench.errors import UserError\n\ndef train_adapter")
    )
    finished.edit(
        file,
        '    print("half way"',
        '    if spec.settings.get("rank") == 3 and spec.connector == "tuned":\n'
        '        raise UserError("no such luck")\n    print("half way"',
    )
    try:
        done = finished.snakemake("-c2")
        assert done.returncode == 1
        assert done.stdout.count("error: no such luck") >= 2
        assert len(done.stdout) < 60_000
        left = finished.jobs()
        assert left["train_adapter"] == 2 and left["generate_predictions"] == 2
    finally:
        finished.write(file, text)
        finished.write_yaml("config/studies/small.yaml", STUDY)
    assert finished.jobs() == {}


def test_a_diverged_run_is_recorded_and_shown_as_failed(finished):
    """It ends like any other run, with a record that says why; what is made from it says so too."""
    finished.write_yaml("config/studies/small.yaml", STUDY | {"methods": {"lora": {"learning_rate": 1000}}})
    try:
        done = finished.snakemake("-c2")
        assert done.returncode == 1, done.stdout
        assert "failed, and recorded so: training diverged: the loss is nan at step 3 of 9" in done.stdout
        assert (finished.root / "results/tables/small.md").read_text() == "10 cells, 4 failed"
        assert finished.jobs()["train_adapter"] == 4
    finally:
        finished.write_yaml("config/studies/small.yaml", STUDY)
        assert finished.snakemake("-c2").returncode == 0


def test_ctrl_c_stops_cleanly_and_the_next_start_goes_on(tmp_path):
    project = Project(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "-c2"],
        cwd=project.root,
        env=project.environment(FAKE_TRAINING_SECONDS="60"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    text = ""
    for line in process.stdout:
        text += line
        # Two at work: one that is just being started may miss the signal.
        if text.count("half way") == 2:
            break
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    text += process.communicate(timeout=60)[0]
    assert process.returncode != 0
    assert "interrupted; nothing was stored; run snakemake again" in text
    assert not list((project.root / "results/runs").glob("*/*/lora-*/record.json"))
    assert not list((project.root / "results/runs").rglob(".partial-*"))
    assert not list((project.root / "results/.running").iterdir())
    assert project.jobs()["train_adapter"] == 8


def test_the_plan_refuses_a_result_of_another_configuration(finished):
    with pytest.raises(UserError, match="has the digest 0000000000000000"):
        finished.plan().job("0" * 16)
    done = finished.snakemake("-n", "results/runs/tiny/first/lora-0000000000000000/record.json")
    assert done.returncode == 1 and "has the digest 0000000000000000" in done.stdout


PLANNING = """
import os, sys, time
start = time.process_time()
from pathlib import Path
from peftbench.config import Settings
from peftbench.graph import Plan
plan = Plan(Settings.from_files(Path(sys.argv[1])))
if sys.argv[2]:
    plan.job(sys.argv[2])
else:
    [plan.study(name) for name in plan.settings.names("study")]
took = time.process_time() - start
if not sys.argv[2]:
    plan.write_tickets()
    print(plan.study("table1_main").scores[-1].digest)
heavy = ("torch", "transformers", "peft", "datasets", "polars", "numpy")
print([module for module in heavy if module in sys.modules])
print(took)
"""


def test_parsing_is_light(tmp_path):
    """Every cluster job parses the Snakefile: one plans itself alone. Beside Snakemake's own time, machines differ."""
    bare, one, all_of_them, digest = [], [], [], ""
    (tmp_path / "Snakefile").write_text("rule all:\n    input: []\n")
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "snakemake", "--list"], cwd=tmp_path, check=True, capture_output=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        bare.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        for times in (all_of_them, one):
            wanted = digest if times is one else ""
            command = [sys.executable, "-c", PLANNING, str(ROOT), wanted]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            *found, heavy, took = done.stdout.split("\n")[:-1]
            digest = found[0] if found else digest
            assert heavy == "[]"
            times.append(float(took))
    assert min(one) < 0.3 * min(bare), (one, bare)
    assert min(all_of_them) < 0.75 * min(bare), (all_of_them, bare)


def test_snakemake_lint_and_snakefmt_are_content(finished):
    done = finished.snakemake("--lint")
    assert done.returncode == 0, done.stdout
    files = ["Snakefile", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("workflow/rules/*.smk"))]
    command = [str(Path(sys.executable).with_name("snakefmt")), "--check", *files]
    formatted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert formatted.returncode == 0, formatted.stderr


def test_scripts_are_named_as_their_rules():
    text = "".join(path.read_text() for path in ROOT.glob("workflow/rules/*.smk"))
    rules = set(re.findall(r"^rule (\w+):", text, re.MULTILINE)) | set(re.findall(r'f"(\w+)_\{study', text))
    rules |= set(re.findall(r"^    rule (\w+):", text, re.MULTILINE))
    rules -= {"prefetch", "claims"}  # targets without a script
    scripts = {path.stem for path in ROOT.glob("workflow/scripts/*.py")}
    assert rules == scripts
    assert set(re.findall(r'"(?:exec )?(\w+)\.py --ticket', text)) == scripts
