import gc
import subprocess
import sys
import time

import msgspec
import pytest

from peftbench.canonical import digest_of_text, identity_text
from peftbench.config import Settings, merge
from peftbench.errors import UserError
from peftbench.fingerprint import Fingerprinter
from peftbench.graph import Plan
from peftbench.job import Ticket
from peftbench.spec import SPECS
from peftbench.views import VIEWS as VIEWS_OF
from workflow_project import MAIN, STUDY, Project, dataset


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def stages(plan, only=None):
    """Digests of a study's jobs, by stage."""
    found = {}
    for job in plan.jobs.values():
        found.setdefault(job.stage, set()).add(job.digest)
    return found


def changed_stages(before, after):
    """How many jobs of each stage are new."""
    new = {stage: len(digests - before.get(stage, set())) for stage, digests in after.items()}
    return {stage: count for stage, count in new.items() if count}


VIEWS = {"tabulate": 1, "plot": 1, "report": 1}


def main_with(**changes):
    content = msgspec.json.decode(msgspec.json.encode(MAIN))
    merge(content, changes)
    return content


def study_with(**changes):
    return STUDY | changes


def test_the_small_study(project):
    plan = project.plan()
    study = plan.study("small")
    assert len(study.runs) == 10  # 2 methods x 2 connectors x 2 data sets, and 2 untuned
    assert {stage: len(digests) for stage, digests in stages(plan).items()} == {
        "prepare": 2,
        "subset": 2,
        "build": 1,
        "train": 8,
        "predict": 10,
        "score": 10,
        **VIEWS,
    }


def test_paths_follow_the_inputs(project):
    plan = project.plan()
    score = plan.study("small").scores[0]
    predict = score.inputs["predictions"]
    train = predict.inputs["run"]
    assert train.directory == f"runs/tiny/first/lora-{train.digest}"
    assert predict.directory == f"{train.directory}/predictions-{predict.digest}"
    assert score.record == f"{predict.directory}/scores-{score.digest}/record.json"
    base = plan.study("small").scores[-1].inputs["predictions"]
    assert base.directory == f"runs/tiny/second/base-{base.inputs['base'].digest}/predictions-{base.digest}"
    assert "run" not in base.inputs
    assert set(train.inputs) == {"base", "data", "subset"}


def test_tickets_carry_what_the_digest_is_made_of(project):
    plan = project.plan()
    for job in plan.jobs.values():
        ticket = msgspec.json.decode(job.ticket, type=Ticket)
        assert ticket.stage == job.stage
        assert ticket.digest == job.digest
        assert (
            digest_of_text(identity_text(job.stage, job.spec, job.code, canonical_inputs(job))) == job.digest
        )
        if job.stage in SPECS:
            msgspec.convert(ticket.spec, SPECS[job.stage])


def test_one_job_is_found_without_planning_all_studies(project, monkeypatch):
    """A job of a cluster asks for itself alone. What lies beside the tickets says where to begin, and only that."""
    monkeypatch.chdir(project.root)
    for name, method in (("aaa", "ia3"), ("zzz", "prefix")):
        project.write_yaml(
            f"config/studies/{name}.yaml", study_with(axes=STUDY["axes"] | {"method": method}, title=name)
        )

    def search(digest):
        plan = Plan(Settings.from_files(project.root), Fingerprinter(project.root / "src/peftbench"))
        return plan.job(digest), [name for name in ("aaa", "small", "zzz") if name in plan._studies]

    plan = project.plan("aaa", "small", "zzz")
    small, last = plan.study("small").scores[1], plan.study("zzz").scores[1]
    assert search(small.digest) == (small, ["small"])  # that of config.yaml
    assert search(last.digest) == (last, ["aaa", "small", "zzz"])
    plan.write_tickets()
    assert search(last.digest) == (
        last,
        [],
    )  # found among the runs of zzz, of which no more was made than needed
    table = plan.study("zzz").tabulate
    assert search(table.digest) == (table, ["zzz"])
    for content in (f'{{"{small.digest}": "zzz"}}', f'{{"{small.digest}": "gone"}}', "[]", "{"):
        project.write("results/.tickets/studies.json", content)
        assert search(small.digest)[0] == small
    with pytest.raises(UserError, match="nothing in the present configuration"):
        search("0" * 16)


def canonical_inputs(job):
    return msgspec.json.encode({n: j.digest for n, j in sorted(job.inputs.items())}).decode()


def test_a_second_study_with_the_same_runs_adds_only_its_views(project):
    project.write_yaml(
        "config/studies/again.yaml", study_with(title="Again", rows=["method", "connector", "model"])
    )
    before = stages(project.plan())
    assert changed_stages(before, stages(project.plan("small", "again"))) == VIEWS


def test_a_default_written_out_is_the_same_run(project):
    before = stages(project.plan())
    project.write_yaml(
        "config/config.yaml",
        main_with(
            training={"epochs": 3, "beta2": 0.999}, methods={"lora": {"rank": 128, "learning_rate": 0.0002}}
        ),
    )
    assert stages(project.plan()) == before


def test_default_location_written_out_is_the_same_run(project):
    before = stages(project.plan())
    project.write_yaml("config/studies/small.yaml", study_with(axes=STUDY["axes"] | {"method": ["lora"]}))
    one = stages(project.plan())
    project.write_yaml(
        "config/studies/small.yaml",
        study_with(axes=STUDY["axes"] | {"method": ["lora"], "location": ["both"]}),
    )
    two = stages(project.plan())
    assert one["train"] == two["train"] < before["train"]


@pytest.mark.parametrize(
    "main, changed",
    [
        ({"methods": {"lora": {"rank": 64}}}, {"train": 4, "predict": 4, "score": 4, **VIEWS}),
        ({"methods": {"lora": {"rank": 128}}}, {}),
        ({"methods": {"ia3": {"learning_rate": 0.5}}}, {}),
        ({"training": {"connector_learning_rate": 1e-3}}, {"train": 4, "predict": 4, "score": 4, **VIEWS}),
        ({"training": {"epochs": 2}}, {"train": 8, "predict": 8, "score": 8, **VIEWS}),
        ({"training": {"precision": "fp32"}}, {"train": 8, "predict": 10, "score": 10, **VIEWS}),
        ({"training": {"precision": "bf16"}}, {}),
        ({"training": {"weight_decay": 0}}, {}),
        ({"evaluation": {"batch_size": 3}}, {"predict": 10, "score": 10, **VIEWS}),
        ({"seeds": [7]}, {"train": 8, "predict": 8, "score": 8, **VIEWS}),
        ({"execution": {"micro_batch": 2, "workers": 3, "threads": 2, "gradient_checkpointing": True}}, {}),
        ({"report": {"gallery": 1}}, {"report": 1}),
        # of the fakes' code only the methods import peft, so the untuned model's predictions stay
        ({"identity": {"packages": []}}, {"train": 8, "predict": 8, "score": 8, **VIEWS}),
        ({"lineup": {"datasets": ["second", "first"]}}, VIEWS),
        ({"studies": []}, {}),
    ],
)
def test_a_setting_changes_exactly_its_jobs(project, main, changed):
    before = stages(project.plan())
    project.write_yaml("config/config.yaml", main_with(**main))
    assert changed_stages(before, stages(project.plan())) == changed


def test_a_models_own_settings_count_less_than_the_configurations(project):
    """Method's default, then the model's file, then config.yaml: the strongest that names a setting wins."""

    def rank() -> int:
        plan = project.plan()
        runs = (job for job in plan.jobs.values() if job.stage == "train")
        specs = (msgspec.json.decode(run.spec) for run in runs)
        return next(spec["settings"]["rank"] for spec in specs if spec["method"] == "lora")

    file = "config/models/tiny.yaml"
    before = (project.root / file).read_text()
    default = rank()
    project.write(file, before + "methods: {lora: {rank: 12}}\n")
    assert (default, rank()) == (128, 12)
    project.write_yaml("config/config.yaml", main_with(methods={"lora": {"rank": 8}}))
    assert rank() == 8


@pytest.mark.parametrize(
    "file, changes, changed",
    [
        ("second", {"title": "New", "table_label": "N"}, VIEWS),
        (
            "second",
            {"prompt": {"templates": ["{question}?"]}},
            {"train": 4, "predict": 5, "score": 5, **VIEWS},
        ),
        ("second", {"decoding": {"max_new_tokens": 9}}, {"predict": 5, "score": 5, **VIEWS}),
        ("second", {"metric": {"name": "vqa_score", "settings": {"replicates": 500}}}, {"score": 5, **VIEWS}),
        (
            "second",
            {"splits": {"train": 21, "test": 10}},
            {"prepare": 1, "subset": 1, "train": 4, "predict": 5, "score": 5, **VIEWS},
        ),
    ],
)
def test_a_data_set_file_changes_exactly_its_jobs(project, file, changes, changed):
    before = stages(project.plan())
    project.write_yaml(f"config/datasets/{file}.yaml", dataset("okvqa", **changes))
    assert changed_stages(before, stages(project.plan())) == changed


@pytest.mark.parametrize(
    "path, changed",
    [
        ("methods/lora.py", {"train": 4, "predict": 4, "score": 4, **VIEWS}),
        ("methods/prefix.py", {}),
        ("methods/base.py", {"predict": 2, "score": 2, **VIEWS}),
        ("training/loop.py", {"train": 8, "predict": 8, "score": 8, **VIEWS}),
        ("evaluation/generate.py", {"predict": 10, "score": 10, **VIEWS}),
        ("metrics/vqa_score.py", {"score": 10, **VIEWS}),
        ("analysis/table.py", VIEWS),
        ("analysis/plot.py", {"plot": 1, "report": 1}),
        ("report/build.py", {"report": 1}),
        ("data/subset.py", {"subset": 2, "train": 8, "predict": 8, "score": 8, **VIEWS}),
        ("models/templates/plain.jinja", {"train": 8, "predict": 10, "score": 10, **VIEWS}),
        ("models/templates/vicuna_v1.jinja", {}),
        ("store.py", {}),
        ("graph.py", {}),
        ("jobs.py", {}),
    ],
)
def test_an_edit_of_code_changes_exactly_its_jobs(project, path, changed):
    before = stages(project.plan())
    file = project.root / "src/peftbench" / path
    file.write_text(file.read_text() + ("\nEDITED = 1\n" if file.suffix == ".py" else " "))
    assert changed_stages(before, stages(project.plan())) == changed


def test_a_generator_counts_only_for_its_data_set(project):
    before = stages(project.plan())
    file = project.root / "src/peftbench/data/embedded/sqa_img.py"
    file.write_text(file.read_text() + "\nEDITED = 1\n")
    assert changed_stages(before, stages(project.plan()))["prepare"] == 1


def test_excluded_combinations_are_left_out(project):
    project.write_yaml(
        "config/studies/small.yaml",
        study_with(exclude=[{"method": "adapter", "connector": "tuned"}, {"dataset": ["first"]}]),
    )
    runs = project.plan().study("small").runs
    assert [(r.method, r.connector, r.dataset) for r in runs if r.method != "base"] == [
        ("lora", "tuned", "second"),
        ("lora", "frozen", "second"),
        ("adapter", "frozen", "second"),
    ]


def test_hyperparameters_are_axes(project):
    axes = STUDY["axes"] | {"method": ["lora"], "connector": "tuned", "rank": [8, 16], "epochs": [1, 2]}
    project.write_yaml("config/studies/small.yaml", study_with(axes=axes, include_base=False))
    plan = project.plan()
    assert len(plan.study("small").runs) == 8
    cell = msgspec.json.decode(plan.study("small").tabulate.spec)["cells"][0]
    assert cell["axes"] == {"rank": 8, "epochs": 1}


def test_a_size_draws_a_subset_of_its_own(project):
    axes = STUDY["axes"] | {"method": ["lora"], "train_size": [5, 10, "full"], "seed": [1, 2]}
    project.write_yaml("config/studies/small.yaml", study_with(axes=axes))
    found = stages(project.plan())
    assert len(found["subset"]) == 2 * (2 * 2 + 1)  # two sizes x two seeds, and "full", which has no seed
    assert len(found["train"]) == 2 * 2 * 3 * 2


def test_ten_thousand_runs_expand_linearly_and_fast(project):
    def seconds(seeds):
        axes = STUDY["axes"] | {"seed": list(range(seeds))}
        project.write_yaml("config/studies/small.yaml", study_with(axes=axes))
        plan = project.plan("small")
        plan = project.plan()  # files are read and parsed anew, but Python is warm
        del plan
        start = time.process_time()
        assert len(project.plan().study("small").runs) == 8 * seeds + 2
        return time.process_time() - start

    # The least of two each, without Python's collector, whose work grows faster: others may be at work here.
    gc.disable()
    try:
        times = [(seconds(125), seconds(1250)) for _ in range(2)]
    finally:
        gc.enable()
    small, large = (min(column) for column in zip(*times, strict=True))
    assert large < 5.0  # 10,000 runs; 2 s on an idle machine
    assert large < 15 * max(small, 0.1)


def test_planning_imports_nothing_heavy():
    script = (
        "import sys; import peftbench.graph, peftbench.config, peftbench.job, peftbench.warm, peftbench.cli;"
        "from peftbench.study import method_module;"
        "[method_module(m) for m in ('lora', 'adapter', 'prefix', 'ia3')];"
        "heavy = ('torch', 'transformers', 'peft', 'datasets', 'polars', 'numpy');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_target_is_what_is_tested_on(project):
    axes = {"model": "tiny", "method": ["lora"], "dataset": ["first"], "target": ["first", "second"]}
    project.write_yaml("config/studies/small.yaml", {"title": "Small", "axes": axes, "include_base": True})
    plan = project.plan()
    study = plan.study("small")
    assert [(run.method, run.dataset, run.target) for run in study.runs] == [
        ("lora", "first", "first"),
        ("lora", "first", "second"),
        ("base", "first", "first"),
        ("base", "second", "second"),
    ]
    counts = {stage: len(digests) for stage, digests in stages(plan).items()}
    assert (counts["train"], counts["predict"], counts["score"]) == (1, 4, 4)
    elsewhere = study.scores[1]
    assert elsewhere.inputs["data"] is plan.prepare("second")
    assert elsewhere.inputs["predictions"].inputs["run"].inputs["data"] is plan.prepare("first")
    assert elsewhere.label == "lora tiny first tuned on second"
    assert [info.name for info in tables(study).datasets] == ["first", "second"]


def tables(study):
    return msgspec.convert(msgspec.json.decode(study.tabulate.spec), VIEWS_OF["tabulate"])


def test_the_target_that_is_the_source_may_be_left_out(project):
    sets = ["first", "second"]
    axes = {"model": "tiny", "method": "lora", "dataset": sets, "target": sets}
    study = {"title": "Small", "axes": axes, "exclude": [{"target": "same"}]}
    project.write_yaml("config/studies/small.yaml", study)
    runs = project.plan().study("small").runs
    assert [(run.dataset, run.target) for run in runs] == [("first", "second"), ("second", "first")]


def test_epochs_of_a_run_share_its_training(project):
    axes = {"model": "tiny", "method": "lora", "dataset": "first", "epoch": [1, 2, 4]}
    project.write_yaml("config/studies/small.yaml", {"title": "S", "axes": axes, "training": {"epochs": 4}})
    plan = project.plan()
    study = plan.study("small")
    assert [run.epoch for run in study.runs] == [1, 2, "last"]
    (train,) = {job.inputs["predictions"].inputs["run"].digest for job in study.scores}
    assert msgspec.json.decode(plan.jobs[train].spec)["keep_epochs"] is True
    assert [cell.axes["epoch"] for cell in tables(study).cells] == [1, 2, 4]


def test_epochs_by_evaluation_loss_need_that_loss(project):
    axes = {"model": "tiny", "method": "lora", "dataset": "first", "epoch": ["best", "near1"]}
    study = {"title": "S", "axes": axes, "training": {"epochs": 4, "eval_loss": True}}
    project.write_yaml("config/studies/small.yaml", study)
    assert project.plan().study("small").runs[0].keep_epochs
    project.write_yaml("config/studies/small.yaml", study | {"training": {"epochs": 4}})
    with pytest.raises(UserError, match=r"axes.epoch: 'best' is found by the evaluation loss"):
        project.plan()
    axes["epoch"] = 5
    project.write_yaml("config/studies/small.yaml", study)
    with pytest.raises(UserError, match="there is no epoch 5 of 4"):
        project.plan()


def test_a_tuned_tower_is_another_run_and_its_features_are_not_kept(project):
    axes = {"model": "tiny", "method": "lora", "dataset": "first", "vision": ["frozen", "tuned"]}
    project.write_yaml("config/studies/small.yaml", {"title": "S", "axes": axes, "include_base": True})
    project.edit("config/models/tiny.yaml", "title: Tiny", "title: Tiny\ncache_vision: true")
    plan = project.plan()
    runs = [job.inputs["predictions"] for job in plan.study("small").scores]
    assert len({job.inputs["run"].digest for job in runs[:2]}) == 2
    assert [job.cache_vision for job in runs] == [True, False, True]


def test_several_grids_are_one_study(project):
    axes = {"model": "tiny", "dataset": ["first", "second"], "seed": [1, 2]}
    grids = [{"method": "lora", "rank": [4, 8]}, {"method": "prefix", "tokens": 5, "seed": 1}]
    study = {"title": "S", "axes": axes, "grids": grids, "rows": ["method", "setting"]}
    project.write_yaml("config/studies/small.yaml", study)
    runs = project.plan().study("small").runs
    assert len(runs) == 2 * 2 * 2 + 2
    assert {(run.method, *run.axes.items()) for run in runs} == {
        ("lora", ("rank", 4)),
        ("lora", ("rank", 8)),
        ("prefix", ("tokens", 5)),
    }
    grids[1]["rank"] = 4
    project.write_yaml("config/studies/small.yaml", study)
    with pytest.raises(
        UserError, match=r"axes.rank: neither an axis, nor a training setting, nor a setting of prefix"
    ):
        project.plan()


def test_a_method_that_cannot_be_merged_is_named_before_any_job(project):
    project.write_yaml("config/config.yaml", main_with(evaluation={"merge": "always"}))
    with pytest.raises(
        UserError, match=r"evaluation.merge: method adapter cannot be merged: set auto or never"
    ):
        project.plan()
    study = study_with(axes=STUDY["axes"] | {"method": ["lora", "spider"]})
    project.write_yaml("config/studies/small.yaml", study)
    specs = [msgspec.json.decode(job.spec) for job in project.plan().jobs.values() if job.stage == "predict"]
    assert {spec["merge"] for spec in specs} == {"always"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modules": []}, r"methods.spider.modules: .*length >= 1"),
        ({"modules": ["vision"]}, r"methods.spider.modules\[0\]: .*'vision'"),
        ({"blocks": 0}, "methods.spider.blocks: .*>= 1"),
    ],
)
def test_a_selection_of_nothing_is_named_before_any_job(project, settings, message):
    axes = STUDY["axes"] | {"method": ["spider"]}
    project.write_yaml("config/studies/small.yaml", study_with(axes=axes, methods={"spider": settings}))
    with pytest.raises(UserError, match=message) as caught:
        project.plan()
    assert "\n" not in str(caught.value)


def test_more_examples_than_there_are(project):
    axes = STUDY["axes"] | {"train_size": [10, 21]}
    project.write_yaml("config/studies/small.yaml", {"title": "S", "axes": axes})
    with pytest.raises(UserError, match=r"axes.train_size: first has 20 examples to train with, not 21"):
        project.plan()
    project.write_yaml("config/studies/small.yaml", {"title": "S", "axes": axes, "short": "all"})
    plan = project.plan()
    assert {
        job.directory.split("/")[2].split("-")[0] for job in plan.jobs.values() if job.stage == "subset"
    } == {"10", "full"}
    assert {cell.train_size for cell in tables(plan.study("small")).cells} == {10, 21}


def test_another_metric_takes_the_same_answers(project):
    before = stages(project.plan())
    project.write_yaml("config/studies/small.yaml", study_with(metric={"name": "exact_match"}))
    assert changed_stages(before, stages(project.plan())) == {"score": 10, **VIEWS}


def test_measures_are_cells_of_one_score(project):
    measures = {"overall": "value", "rate": "extra.rate"}
    project.write_yaml("config/studies/small.yaml", study_with(measures=measures, columns="measure"))
    study = project.plan().study("small")
    assert len(study.scores) == 10
    assert [cell.measure for cell in tables(study).cells] == ["overall", "rate"] * 10


def test_stand_ins_and_reductions(project):
    """The same study file for large models and data sets, run with small ones."""
    project.write_yaml("config/datasets/large.yaml", dataset("okvqa"))
    project.edit("config/studies/small.yaml", "dataset: lineup", "dataset: [large, second]")
    project.edit(
        "config/studies/small.yaml",
        "title: Small",
        "title: Small\nexclude:\n- {dataset: large, method: lora}",
    )
    reduced = {"stand_ins": {"large": "first"}, "reduce": {"small": {"axes": {"connector": "tuned"}}}}
    project.write_yaml("config/config.yaml", main_with(**reduced))
    runs = [run for run in project.plan().study("small").runs if run.method != "base"]
    assert [(run.dataset, run.method, run.connector) for run in runs] == [
        ("second", "lora", "tuned"),
        ("first", "adapter", "tuned"),
        ("second", "adapter", "tuned"),
    ]
    project.write_yaml("config/config.yaml", main_with(stand_ins={"large": "frist"}))
    with pytest.raises(UserError, match="stand_ins: no model or data set 'frist'; did you mean 'first'"):
        project.plan()
    project.write_yaml("config/config.yaml", main_with(reduce={"smal": {}}))
    with pytest.raises(UserError, match="reduce: unknown study 'smal'; did you mean 'small'"):
        project.plan()


def published(project, rows, **mapping):
    project.write("paper/tables/paper.csv", rows)
    project.write_yaml("config/studies/small.yaml", study_with(published={"file": "paper", **mapping}))
    return tables(project.plan().study("small")).published_rows


def test_published_values_get_our_names(project):
    rows = "source,kind,size,mean,std\nokvqa,LoRARank,16,56.1,0.2\n"
    found = published(
        project,
        rows,
        value="mean",
        columns={"dataset": "{source}", "setting": "{kind} {size}"},
        values={"kind": {"LoRARank": "rank"}},
        where={"connector": "tuned"},
    )
    assert found == [
        {
            "dataset": "okvqa",
            "setting": "rank 16",
            "connector": "tuned",
            "score": "56.1",
            "mean": "56.1",
            "std": "0.2",
        }
    ]
    with pytest.raises(UserError, match="has no column 'sorce'; did you mean 'source'"):
        published(project, rows, value="mean", columns={"dataset": "{sorce}"})
    with pytest.raises(UserError, match="has no column 'score'"):
        published(project, rows)


def test_an_exposed_base_is_another_base(project):
    axes = {"model": "tiny", "method": "lora", "dataset": "first", "exposure": [False, True]}
    project.write_yaml("config/studies/small.yaml", {"title": "S", "axes": axes, "include_base": True})
    plan = project.plan()
    counts = {stage: len(digests) for stage, digests in stages(plan).items()}
    assert (counts["build"], counts["expose"], counts["train"], counts["predict"]) == (1, 1, 2, 4)
    expose = plan.expose("tiny")
    assert set(expose.inputs) == {"base", "data.second"}, "the set of the lineup that is seen"
    bases = [job.inputs["predictions"].inputs["base"].stage for job in plan.study("small").scores]
    assert bases == ["build", "expose", "build", "expose"]
    project.write_yaml("config/config.yaml", main_with(exposure={"datasets": []}))
    with pytest.raises(UserError, match=r"exposure.datasets: no data set of the lineup is seen"):
        project.plan()


def test_equal_tuning_budget(project):
    """Each method gets the same number of trials; the best of them answers."""
    axes = {"model": "tiny", "method": ["lora", "ia3"], "dataset": "first"}
    study = {"title": "S", "axes": axes, "include_base": True, "tuning": {"factors": [0.5, 1, 2]}}
    project.write_yaml("config/studies/small.yaml", study)
    plan = project.plan()
    counts = {stage: len(digests) for stage, digests in stages(plan).items()}
    assert (counts["train"], counts["choose"], counts["predict"]) == (6, 2, 3)
    chosen = plan.study("small").scores[0].inputs["predictions"].inputs["run"]
    assert chosen.directory.startswith("runs/tiny/first/lora.chosen-")
    rates = [msgspec.json.decode(job.spec)["optim"]["learning_rate"] for job in chosen.inputs.values()]
    assert rates == [1e-4, 2e-4, 4e-4]
    assert {msgspec.json.decode(job.spec)["validation"] for job in chosen.inputs.values()} == {0.1}
    study["tuning"] = {"factors": [1, 1.0000001]}
    project.write_yaml("config/studies/small.yaml", study)
    with pytest.raises(UserError, match="two trials have the same learning rate"):
        project.plan()


def test_named_layers_are_no_location(project):
    """A setting that names layers stands in for the default place; naming that place does not."""
    project.write_yaml("config/config.yaml", main_with(methods={"lora": {"targets": ["self_attn.q_proj"]}}))
    axes = STUDY["axes"] | {"method": ["lora"], "location": ["default", "both"]}
    project.write_yaml("config/studies/small.yaml", study_with(axes=axes, include_base=False))
    plan = project.plan()
    assert {run.location for run in plan.study("small").runs} == {"default", "both"}
