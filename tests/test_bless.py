"""``peftbench bless`` on the real workflow with stages that cost nothing; see ``workflow_project``."""

import json
import subprocess
import sys

import pytest
import yaml

from peftbench.blessings import (
    HEADER,
    Blessing,
    Blessings,
    Change,
    Proof,
    as_text,
    changes_between,
    read_blessings,
)
from peftbench.canonical import digest
from peftbench.errors import UserError
from peftbench.reruns.equal import differences
from peftbench.store import Record, read_record
from workflow_project import STUDY, Project

LOOP = "src/peftbench/training/loop.py"
REFACTORED = ("write_text(repr(spec.settings))", 'write_text("%r" % (spec.settings,))')
AGAIN = ('write_text("%r" % (spec.settings,))', "write_text(str(repr(spec.settings)))")
CHANGED = ("write_text(repr(spec.settings))", 'write_text(repr(spec.settings) + "!")')


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project whose small study has been made."""
    project = Project(tmp_path_factory.mktemp("bless"))
    project.write_yaml("config/studies/small.yaml", STUDY | {"axes": STUDY["axes"] | {"dataset": ["first"]}})
    done = project.snakemake("-c2")
    assert done.returncode == 0, done.stdout
    return project


@pytest.fixture
def project(finished):
    """The same; files that a test changes come back."""
    kept = {path: path.read_bytes() for path in finished.root.glob("src/**/*.py")}
    kept |= {path: path.read_bytes() for path in finished.root.glob("config/**/*.yaml")}
    yield finished
    for path, content in kept.items():
        if path.read_bytes() != content:
            path.write_bytes(content)
    (finished.root / "blessed.yaml").unlink(missing_ok=True)


def run(project, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "peftbench.cli", *arguments],
        cwd=project.root,
        env=project.environment(),
        capture_output=True,
        text=True,
    )


def bless(project, *arguments):
    done = run(project, "bless", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(project, said, *arguments):
    done = run(project, "bless", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and said in done.stderr and done.stderr.count("\n") == 1
    return done


def stages(plan):
    """Digests by stage; pages apart, as they show what is blessed."""
    found = {}
    for job in plan.jobs.values():
        if job.stage != "report":
            found.setdefault(job.stage, set()).add(job.digest)
    return found


PAGE_ALONE = {"build_report_small": 1, "all": 1}
"""What a new blessing has made again: the page, which shows it."""


def test_a_refactoring_is_proven_and_nothing_runs_again(project):
    before = stages(project.plan())
    project.edit(LOOP, *REFACTORED)
    assert project.jobs()["train_adapter"] == 4
    text = bless(project, "train:training.loop")
    # two sets of modules, with lora and with adapter: a run of each
    assert text.count("making again train") == 2 and text.count(": equal") == 2
    assert "4 stored results of stage train count for the present code" in text
    assert stages(project.plan()) == before
    assert project.jobs() == PAGE_ALONE
    (entry,) = yaml.safe_load((project.root / "blessed.yaml").read_text())
    assert entry["stage"] == "train" and len(entry["proofs"]) == 2
    (change,) = entry["changes"]
    assert change["module"] == "training.loop" and change["old"] != change["new"]
    assert all(len(proof["runs"]) == 1 for proof in entry["proofs"])
    assert {proof["compared"] for proof in entry["proofs"]} == {"bit-equal"}
    assert all(proof["packages"]["peft"] for proof in entry["proofs"])
    job = next(job for job in project.plan().jobs.values() if job.stage == "train")
    said = run(project, "explain", job.digest).stdout
    assert "by the blessing of" in said and "training.loop" in said
    cell = run(project, "explain", "small", "method=lora", "connector=tuned").stdout
    assert "scores of lora" in cell and "blessed   training of lora" in cell
    assert not list((project.root / "results").glob(".bless-*"))


def test_the_plan_of_a_page_names_the_blessings_of_what_it_shows(project):
    """Only those: the scores' own stage has none."""

    def shown():
        (page,) = (job for job in project.plan().jobs.values() if job.stage == "report")
        return json.loads(page.spec)["blessed"]

    assert shown() == []
    project.edit(LOOP, *REFACTORED)
    bless(project, "train")
    (one,) = shown()
    assert (one["stage"], one["changes"]) == ("train", ["training.loop"])
    assert len(one["proofs"]) == 2 and all(proof.startswith("bit-equal: ") for proof in one["proofs"])
    project.edit(LOOP, REFACTORED[1], REFACTORED[0])
    assert shown() == [], "the code that made the results is back"


def test_a_false_blessing_is_refused_and_names_the_first_output_that_differs(project):
    project.edit(LOOP, *CHANGED)
    refused(project, "is another result with the present code: adapter/weights: other bytes", "train")
    assert not (project.root / "blessed.yaml").exists()
    assert project.jobs()["train_adapter"] == 4
    assert not list((project.root / "results").glob(".bless-*"))


def test_facts_count_too(project):
    project.edit("src/peftbench/evaluation/score.py", "50.0", "50.5")
    refused(project, "fact value: was 50.0, is 50.5", "score")


def test_what_is_wrong_for_one_method_alone_is_found(project):
    """So each set of modules needs a run of its own, however few were asked for."""
    project.edit(
        LOOP, "write_text(repr(spec.settings))", 'write_text(repr(spec.settings).replace("alpha", "a"))'
    )
    refused(project, "lora", "train", "--runs", "1")
    assert not (project.root / "blessed.yaml").exists()


def test_a_job_that_ran_under_a_blessing_keeps_its_true_code(project):
    project.edit(LOOP, *REFACTORED)
    bless(project, "train")
    plan = project.plan()
    job = next(
        job for job in plan.jobs.values() if job.label == "lora tiny first tuned" and job.stage == "train"
    )
    path = project.root / "results" / job.record
    old = path.read_bytes()
    path.unlink()
    try:
        done = project.snakemake("-c1", f"results/{job.record}")
        assert done.returncode == 0, done.stdout
        record = read_record(path)
        ran = record.provenance["code_as_run"]
        changed = changes_between(record.code, ran)
        assert [change.module for change in changed] == ["training.loop"]
        said = run(project, "explain", job.digest).stdout
        assert "as run" in said and "blessed: training.loop" in said
        (project.root / "blessed.yaml").unlink()
        project.edit(LOOP, REFACTORED[1], REFACTORED[0])
        said = run(project, "explain", job.digest).stdout
        assert "made by other code under a blessing that no longer stands: training.loop" in said
    finally:
        path.write_bytes(old)
    assert "code_as_run" not in read_record(path).provenance


def test_chains_and_going_back(project):
    before = stages(project.plan())
    project.edit(LOOP, *REFACTORED)
    bless(project, "train")
    project.edit(LOOP, *AGAIN)
    assert project.jobs()["train_adapter"] == 4
    bless(project, "train")
    assert stages(project.plan()) == before and project.jobs() == PAGE_ALONE
    assert len(yaml.safe_load((project.root / "blessed.yaml").read_text())) == 2
    project.edit(LOOP, AGAIN[1], REFACTORED[1])  # one step back
    assert stages(project.plan()) == before
    project.edit(LOOP, REFACTORED[1], REFACTORED[0])  # and to where it began
    assert stages(project.plan()) == before
    project.edit(LOOP, *CHANGED)  # a real edit is none the less one
    assert stages(project.plan())["train"].isdisjoint(before["train"])


def test_a_blessing_of_one_stage_is_not_one_of_another(project):
    """Two stages import a helper; only one of them was proven."""
    project.write("src/peftbench/helper_of_two.py", "def same(x):\n    return x\n")
    try:
        for file, word in (
            (LOOP, "def train_adapter"),
            ("src/peftbench/evaluation/score.py", "def score_predictions"),
        ):
            project.edit(file, word, f"from peftbench.helper_of_two import same\n\n\n{word}")
        scores = [f"results/{job.record}" for job in project.plan().jobs.values() if job.stage == "score"]
        assert project.snakemake("-c2", *scores).returncode == 0
        before = stages(project.plan())
        project.write("src/peftbench/helper_of_two.py", "def same(x):\n    y = x\n    return y\n")
        bless(project, "score", "train", "--dry-run")
        bless(project, "train")
        after = stages(project.plan())
        assert after["train"] == before["train"] and after["predict"] == before["predict"]
        assert after["score"].isdisjoint(before["score"])
        bless(project, "score")
        assert stages(project.plan()) == before
    finally:
        (project.root / "src/peftbench/helper_of_two.py").unlink()


def test_an_edit_besides_is_not_covered(project):
    """What was proven of one set of modules says nothing of the same module beside other code."""
    before = stages(project.plan())
    project.edit(LOOP, *REFACTORED)
    bless(project, "train")
    project.edit("src/peftbench/methods/lora.py", "def apply", "EDITED = 1\n\n\ndef apply")
    plan = project.plan()
    new = {job.digest for job in plan.jobs.values() if job.stage == "train"} - before["train"]
    assert {plan.jobs[digest_].label.split()[0] for digest_ in new} == {"lora"} and len(new) == 2
    # and it can be proven in turn
    bless(project, "train", "predict")
    assert stages(project.plan()) == before


def test_a_queued_job_agrees_with_a_blessing_that_came_meanwhile(project):
    """Its ticket names the new code, the plan by now the old one; both are true of it."""
    project.edit(LOOP, *REFACTORED)
    plan = project.plan()
    job = next(job for job in plan.jobs.values() if job.stage == "train")
    bless(project, "train")
    words = [sys.executable, "workflow/scripts/train_adapter.py", "--ticket", job.ticket]
    words += ["--inputs", *(f"results/{other.record}" for other in job.inputs.values())]
    words += ["--output", f"results/{job.record}", "--execution", plan.execution(job)]
    done = subprocess.run(words, cwd=project.root, env=project.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "code_as_run" not in read_record(project.root / "results" / job.record).provenance
    project.edit(LOOP, REFACTORED[1], CHANGED[1])
    done = subprocess.run(
        [word.replace(job.digest, "0" * 16) if word.startswith("results/runs") else word for word in words],
        cwd=project.root,
        env=project.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "training.loop changed" in done.stderr


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["trane"], "'trane' cannot be blessed: there is no such stage; did you mean 'train'?"),
        (["tabulate"], "'tabulate' cannot be blessed: its results are cheap to make again"),
        (["train"], "train: no stored result in results differs from a planned one in its code alone"),
        (["train", "--runs", "0"], "--runs 0: nothing is proven by no run"),
        (["train", "--tolerance", "0.5"], "--tolerance 0.5: give a share between 0 and 0.1"),
        (["train", "--against", "0" * 16], f"--against {'0' * 16}: no stored result of stage train"),
    ],
)
def test_mistakes_are_one_line(project, arguments, said):
    refused(project, said, *arguments)


def test_modules_that_are_not_named_are_not_blessed(project):
    project.edit(LOOP, *REFACTORED)
    project.edit("src/peftbench/methods/lora.py", "def apply", "EDITED = 1\n\n\ndef apply")
    refused(project, "train: changed besides: methods.lora: name them too", "train:training.loop")
    refused(
        project,
        "train:training.lop: this module did not change; did you mean 'training.loop'?",
        "train:training.lop",
    )


def test_code_that_does_not_run_is_not_blessed(project):
    project.edit(LOOP, 'print("half way", flush=True)', 'raise ZeroDivisionError("half an apple")')
    refused(project, "does not run with the present code: ZeroDivisionError: half an apple", "train")


def test_a_damaged_file_is_one_line(project):
    for text, said in (
        ("- {stage: train", "blessed.yaml, line"),
        ("- {stage: train}", "missing required field"),
        ("- 3", "blessed.yaml: Expected `object`, got `int`"),
    ):
        (project.root / "blessed.yaml").write_text(text)
        done = run(project, "runs")
        assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1


# The equivalence by itself.


def code(**modules):
    return {"modules": dict(sorted(modules.items())), "packages": {"torch": "2.13"}}


def entry(old, new, date="2026-01-01T00:00:00+00:00", stage="train"):
    proof = Proof(
        old=digest(old), new=digest(new), runs=["0" * 16], labels=["x"], packages={}, compared="bit-equal"
    )
    return Blessing(stage=stage, date=date, changes=changes_between(old, new), proofs=[proof])


A, B, C, D = code(a="1"), code(a="2"), code(b="3"), code(a="4", b="4")


def test_modules_may_come_and_go(tmp_path):
    blessings = Blessings([entry(A, B), entry(B, C, "2026-01-02T00:00:00+00:00")])
    assert blessings.canonical("train", C) == blessings.canonical("train", B) == A
    assert blessings.canonical("train", A) == A and blessings.canonical("train", D) == D
    assert blessings.canonical("score", C) == C
    assert [len(blessings.between("train", C, other)) for other in (A, B, C, D)] == [2, 1, 0, 0]
    (tmp_path / "blessed.yaml").write_text(HEADER + as_text(blessings.entries))
    assert read_blessings(tmp_path).entries == blessings.entries


def test_two_branches_whatever_the_order_of_their_entries():
    one = [entry(A, B, "2026-01-01T00:00:00+00:00")]
    two = [entry(A, C, "2026-01-02T00:00:00+00:00")]
    for entries in (one + two, two + one):
        blessings = Blessings(entries)
        assert {digest(blessings.canonical("train", x)) for x in (A, B, C)} == {digest(A)}


def test_entries_that_lead_in_a_circle_have_one_end():
    """One branch took A for the older code, the other one B."""
    first, second = entry(A, B, "2026-01-01T00:00:00+00:00"), entry(B, A, "2026-01-02T00:00:00+00:00")
    for entries in ([first, second], [second, first]):
        blessings = Blessings(entries)
        assert blessings.canonical("train", A) == blessings.canonical("train", B) == A


def test_a_later_entry_moves_no_digest_of_a_class():
    entries = [entry(B, A, "2026-01-03T00:00:00+00:00")]
    assert Blessings(entries).canonical("train", A) == B
    for later in (entry(C, A, "2026-01-04T00:00:00+00:00"), entry(D, B, "2026-01-05T00:00:00+00:00")):
        entries.append(later)
        assert {digest(Blessings(entries).canonical("train", x)) for x in (A, B)} == {digest(B)}


def test_another_version_of_a_package_is_another_code():
    blessings = Blessings([entry(A, B)])
    other = B | {"packages": {"torch": "2.14"}}
    assert blessings.canonical("train", other) == other


def test_an_entry_that_was_edited_by_hand_is_refused():
    sound = entry(A, B)
    bent = Blessing(
        stage="train", date=sound.date, changes=[Change(module="a", old="9", new="2")], proofs=sound.proofs
    )
    with pytest.raises(UserError, match=r"entry 1 \(train\): its changes do not lead"):
        Blessings([bent]).canonical("train", B)


# The comparison by itself.


def record(facts):
    return Record(stage="train", digest="", label="", spec={}, code={}, inputs={}, facts=facts, provenance={})


@pytest.fixture
def pair(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "predictions-0123456789abcdef").mkdir(parents=True)
        (tmp_path / name / "log.csv").write_text("step,loss,seconds\n1,0.5,0.1\n2,0.25,0.2\n")
        (tmp_path / name / "a.json").write_text('{"x": 1}')
    (tmp_path / "one/predictions-0123456789abcdef/more").write_text("of another result")
    return tmp_path / "one", tmp_path / "two"


def found(pair, tolerance=0.0, before=None, now=None):
    return list(differences(record(before or {}), pair[0], record(now or {}), pair[1], tolerance))


def test_times_do_not_count_and_losses_do(pair):
    (pair[1] / "log.csv").write_text("step,loss,seconds\n1,0.5,0.7\n2,0.25,0.9\n")
    (pair[1] / "a.json").write_text('{ "x": 1}')
    assert found(pair, before={"seconds": 1, "loss": 0.5}, now={"seconds": 2, "loss": 0.5}) == []
    (pair[1] / "log.csv").write_text("step,loss,seconds\n1,0.5,0.1\n2,0.2500001,0.2\n")
    assert found(pair) == ["log.csv: row 2, loss: was 0.25, is 0.2500001"]
    assert found(pair, tolerance=0.01) == []
    (pair[1] / "more").write_text("")
    assert "more: made now, not before" in found(pair)
    assert found(pair, before={"a": {"b": 1.0}}, now={"a": {"b": 1.1}})[-1] == "fact a.b: was 1.0, is 1.1"


def test_tensors_and_tables_of_a_gpu_have_a_tolerance(pair):
    import polars as pl
    import torch
    from safetensors.torch import save_file

    weight = torch.arange(1.0, 101.0)
    for folder, noise in zip(pair, (0.0, 1e-4), strict=True):
        tensors = {"a": torch.ones(3, dtype=torch.bfloat16), "w": weight * (1 + noise)}
        save_file(tensors, folder / "x.safetensors")
    assert found(pair) == ["x.safetensors: tensor w differs"]
    assert found(pair, tolerance=0.01) == []
    save_file({"a": torch.ones(3, dtype=torch.bfloat16), "w": weight * 1.1}, pair[1] / "x.safetensors")
    assert found(pair, tolerance=0.01) == [
        "x.safetensors: tensor w: differs by 0.1 of its norm, more than 0.01"
    ]
    save_file(
        {"w": weight * float("nan"), "a": torch.ones(3, dtype=torch.bfloat16)}, pair[1] / "x.safetensors"
    )
    assert len(found(pair, tolerance=0.01)) == 1
    (pair[1] / "x.safetensors").unlink()
    (pair[0] / "x.safetensors").unlink()
    answers = [f"answer {i}" for i in range(100)]
    for folder, other in zip(pair, (0, 1), strict=True):
        pl.DataFrame({"id": range(100), "p": ["?"] * other + answers[other:]}).write_parquet(
            folder / "p.parquet"
        )
    assert found(pair) == ["p.parquet: other bytes"]
    assert found(pair, tolerance=0.01) == []
    pl.DataFrame({"id": range(100), "p": ["?"] * 2 + answers[2:]}).write_parquet(pair[1] / "p.parquet")
    assert found(pair, tolerance=0.01) == ["p.parquet: 2 of 100 rows differ, more than 1.0%"]
