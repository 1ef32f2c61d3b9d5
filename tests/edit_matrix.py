"""Edits of a finished study, and exactly what each makes Snakemake run again.

``python tests/edit_matrix.py`` tries them all and prints the table; ``test_edit_matrix.py`` does it with pytest.

An expectation is a list of patterns over names of jobs, ``<stages> <what>``: ``train|predict lora/tiny/*``. Every job
that matches one must run, every other job of the plan must not. A pattern that matches nothing is a mistake.
"""

import ast
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from matrix_project import CONFIG, LARGE, ONE_RUN, OWN, ROWS, STUDIES, MatrixProject
from peftbench.store import RECORD, read_record
from snakemake_server import Done, Server

Do = Callable[[MatrixProject], object]
VIEW_STAGES = ("tabulate", "plot", "report", "describe", "claims")


@dataclass(frozen=True)
class Edit:
    """One edit, and the jobs that must run after it."""

    name: str
    do: Do
    runs: tuple[str, ...] = ()
    """Patterns; none: nothing runs."""
    arguments: tuple[str, ...] = ()
    """Of Snakemake, besides ``-n``."""
    variables: dict[str, str] = field(default_factory=dict)
    """Environment."""
    really: bool = False
    """Whether the jobs are also run, and the edit taken back afterwards."""


# What expectations are made of.


def of(runs: str) -> str:
    """Tuning and everything after it."""
    return f"train|choose|predict|judge|score {runs}"


def answers(runs: str) -> str:
    """Answers and everything after them."""
    return f"predict|judge|score {runs}"


def views(study: str) -> str:
    """Table, figure and page."""
    return f"tabulate|plot|report {study}"


def data(name: str) -> tuple[str, str, str]:
    """A data set, its draws, and every run on it."""
    return (f"prepare {name}", f"subset {name}/*", of(f"*/{name}/*"))


EXPOSED = ("expose tiny", of("*+exposed"), views("exposed"))
"""What follows from the seen data set: the model that was shown it."""
TUNED = ("train *", "choose *", of("lora/*"), of("adapter/*"), views("*"))
"""All trainings; the untuned models' answers stay."""
BUILT = ("build *", "expose *", of("*"), views("*"))
ANSWERED = (answers("*"), views("*"))
LORA = (of("lora/*"), views("*"))
ADAPTER = (of("adapter/*"), views("small"))
LARGE_RUNS = (of("*/large/*"), views("small"))
DESCRIBED = "describe described"

# What edits are made of.


def nothing(project: MatrixProject) -> None:
    """No edit of files."""


def both(*edits: Do) -> Do:
    """Several edits."""
    return lambda project: [edit(project) for edit in edits]


def config(**changes: Any) -> Do:
    """Change keys of ``config.yaml``; ``__`` goes deeper."""
    return lambda project: project.change("config/config.yaml", **changes)


def model(name: str, **changes: Any) -> Do:
    """Change keys of a model's file."""
    return lambda project: project.change(f"config/models/{name}.yaml", **changes)


def dataset(name: str, **changes: Any) -> Do:
    """Change keys of a data set's file."""
    return lambda project: project.change(f"config/datasets/{name}.yaml", **changes)


def study(name: str, **changes: Any) -> Do:
    """Change keys of a study's file."""
    return lambda project: project.change(f"config/studies/{name}.yaml", **changes)


def new_study(name: str, content: dict[str, Any], asked: bool = True) -> Do:
    """Add a study, and ask for it."""

    def do(project: MatrixProject) -> None:
        project.write_yaml(f"config/studies/{name}.yaml", content)
        if asked:
            project.change("config/config.yaml", studies=[*CONFIG["studies"], name])

    return do


def rename_study(old: str, new: str) -> Do:
    """Give a study's file another name."""

    def do(project: MatrixProject) -> None:
        folder = project.root / "config/studies"
        (folder / f"{old}.yaml").rename(folder / f"{new}.yaml")
        project.change("config/config.yaml", studies=[new if s == old else s for s in CONFIG["studies"]])

    return do


def remove_study(name: str) -> Do:
    """Delete a study's file."""

    def do(project: MatrixProject) -> None:
        (project.root / f"config/studies/{name}.yaml").unlink()
        project.change("config/config.yaml", studies=[s for s in CONFIG["studies"] if s != name])

    return do


def text(path: str, old: str, new: str) -> Do:
    """Replace a text."""
    return lambda project: project.edit(path, old, new)


def write(path: str, content: str) -> Do:
    """Write a file."""
    return lambda project: project.write(path, content)


def append(path: str, more: str) -> Do:
    """Append to a file."""
    return lambda project: project.write(path, (project.root / path).read_text(encoding="utf-8") + more)


def code(module: str) -> Do:
    """A real edit of a module of the package."""
    return append(f"src/peftbench/{module}.py", "\nEDITED = 1\n")


def file(path: str) -> Do:
    """A change of a data file of the package."""
    return append(f"src/peftbench/{path}", "\n ")


def each_module(change: Callable[[str], str]) -> Do:
    """Rewrite all modules and scripts."""

    def do(project: MatrixProject) -> None:
        for folder in ("src", "workflow/scripts"):
            for path in (project.root / folder).rglob("*.py"):
                path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8", newline="")

    return do


def other_docstrings(source: str) -> str:
    """The same code with another docstring in the module, its classes and its functions."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node) is not None:
                del node.body[0]
            node.body.insert(0, ast.Expr(ast.Constant("Another docstring.")))
    return ast.unparse(tree)


def each_yaml(change: Callable[[Any], Any]) -> Do:
    """Rewrite all YAML files of the configuration."""

    def do(project: MatrixProject) -> None:
        for path in (project.root / "config").rglob("*.yaml"):
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            project.write_yaml(str(path.relative_to(project.root)), change(content))

    return do


def backwards(content: Any) -> Any:
    """Mappings with their keys in the opposite order; the order of a study's axes is that of its rows."""
    if not isinstance(content, dict):
        return content
    kept = ("axes", "grids")
    return {k: v if k in kept else backwards(v) for k, v in reversed(list(content.items()))}


def touch(project: MatrixProject) -> None:
    """Results become older than all that they were made from, and code the newest."""
    for path in project.root.rglob("*"):
        seconds = 1_000_000_000 if "results" in path.parts else 1_900_000_000
        os.utime(path, (seconds, seconds))


def delete(*patterns: str) -> Do:
    """Delete files and folders."""

    def do(project: MatrixProject) -> None:
        for path in [path for pattern in patterns for path in project.root.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return do


def fresh_clone(project: MatrixProject) -> None:
    """Another folder's files, written anew; results copied without their times."""
    copy = project.root.with_name(f"{project.root.name}-clone")
    shutil.copytree(project.root, copy, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns(".snakemake"))
    shutil.rmtree(project.root)
    copy.rename(project.root)
    for script in (project.root / "workflow/scripts").iterdir():
        script.chmod(0o755)


def move_results(project: MatrixProject) -> None:
    """Results lie in another folder."""
    (project.root / "elsewhere").mkdir()
    (project.root / "results").rename(project.root / "elsewhere/store")


def branch(edit: Do, back: bool) -> Do:
    """Commit, switch to a branch with an edit, and perhaps back."""

    def do(project: MatrixProject) -> None:
        def git(*words: str) -> None:
            who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
            subprocess.run(["git", *who, *words], cwd=project.root, check=True, capture_output=True)

        git("init", "-b", "main")
        project.write(".git/info/exclude", "results\n.snakemake\n__pycache__\n")
        git("add", ".")
        git("commit", "-m", "One")
        git("switch", "-c", "other")
        edit(project)
        git("commit", "-am", "Two")
        if back:
            git("switch", "main")

    return do


def package(name: str, place: int) -> Do:
    """Another version of an installed package: its number at ``place`` one higher."""
    parts = [re.match(r"\d*", part)[0] for part in version(name).partition("+")[0].split(".")]  # type: ignore[index]
    parts[place] = str(int(parts[place]) + 1)
    number = ".".join(parts)
    place_of_it = f"src/{name}-{number}.dist-info/METADATA"
    return write(place_of_it, f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")


def trial(factor: float) -> str:
    """Name of a trial's run."""
    return f"lora/tiny/first/tuned+rate={2e-4 * factor:g}"


SMALL = STUDIES["small"]
EXECUTION = {
    "device": "auto",
    "micro_batch": 2,
    "gradient_checkpointing": True,
    "workers": 3,
    "threads": 2,
    "worker": "shared",
    "mirrors": {"http://images.cocodataset.org": "http://mirror"},
    "judge_concurrency": 9,
    "cache_dir": "/tmp/somewhere",
}

EDITS = [
    Edit("nothing at all", nothing),
    # --- Settings of methods and of training ---
    Edit("LoRA's rank", config(methods__lora__rank=8), LORA),
    Edit("LoRA's rank and alpha swapped", config(methods__lora__rank=32, methods__lora__alpha=16), LORA, really=True),
    Edit("beta1 and beta2 swapped", config(training__beta1=0.95, training__beta2=0.9), TUNED),
    Edit("LoRA's rank in an overlay", write("o.yaml", "methods: {lora: {rank: 8}}"), LORA, ("--configfile", "o.yaml")),
    Edit("epochs by --config", nothing, TUNED, ("--config", "training={epochs: 3}")),
    Edit("a setting of a method that no study uses", config(methods__ia3={"learning_rate": 0.5})),
    Edit(
        "the adapter's width on one model",
        model("tiny", methods={"adapter": {"bottleneck": 4}}),
        ADAPTER,
        really=True,
    ),
    Edit("the connector's learning rate", config(training__connector_learning_rate=1e-3), (of("*/tuned*"), views("*"))),
    Edit("epochs of one study", study("exposed", training={"epochs": 3}), (of("*+exposed"), views("exposed")), really=True),
    Edit("a second seed", config(seeds=[42, 7]), (of("*+seed=7*"), views("*"))),
    Edit("another seed", config(seeds=[7]), TUNED),
    Edit(
        "a smaller training set in one study",
        study("judged", axes__train_size=5),
        ("subset first/5", of("*+size=5*"), views("judged")),
        really=True,
    ),
    Edit(
        "a third trial of the learning rate",
        study("trials", tuning={"factors": [0.5, 1, 2]}),
        (f"train {trial(2)}", of("*+chosen"), views("trials")),
        really=True,
    ),
    Edit("epochs of the exposure", config(exposure={"epochs": 2}), EXPOSED, really=True),
    Edit("int to float of equal value", config(training__weight_decay=0.0, methods__lora__alpha=32.0), really=True),
    Edit("a float written otherwise", text("config/config.yaml", "learning_rate: 0.0002", "learning_rate: 2.0E-4")),
    Edit("keys of all YAML files the other way round", each_yaml(backwards), really=True),
    Edit("comments in all YAML files, other style", both(each_yaml(lambda c: c), append("config/config.yaml", "# why\n"))),
    Edit(
        "defaults written out",
        both(
            config(training__schedule="cosine", methods__lora__dropout=0.05, evaluation={"batch_size": 16}),
            config(methods__adapter={}, identity={"granularity": "minor"}),
            model("tiny", precision="bf16", training={"global_batch": 128}),
            model("large", source=LARGE["source"] | {"image_processor": {}}),
            dataset("own", source=OWN | {"tolerate": 0}, evaluation_only=False),
            study("small", averages=[], columns="dataset"),
            study("judged", axes__connector="tuned", axes__train_size="full"),
        ),
        really=True,
    ),
    Edit(
        "a default that another value hides",
        both(config(training__precision="bf16"), study("trials", tuning={"factors": [0.5, 1.0], "validation": 0.1})),
    ),
    # --- Models ---
    Edit("a model's title", model("large", title="Larger"), (views("small"),), really=True),
    Edit(
        "a model's revision",
        model("large", source__from__model__revision="2" * 40),
        ("retrieve owner/large", "build large", *LARGE_RUNS),
        really=True,
    ),
    Edit("a model's precision", model("large", precision="fp32"), LARGE_RUNS),
    Edit(
        "a model's layers",
        model("tiny", names__attention=["self_attn.k_proj"]),
        ("build tiny", "expose tiny", of("*/tiny/*"), views("*")),
    ),
    Edit("features of the vision tower kept", model("tiny", cache_vision=True)),
    Edit(
        "a model that no study names",
        write("config/models/third.yaml", yaml.safe_dump(LARGE | {"title": "Third"})),
    ),
    # --- Data sets and prompts ---
    Edit(
        "a data set's prompt",
        dataset("own", prompt={"templates": ["{question}?"]}),
        (of("*/own/*"), views("small")),
        really=True,
    ),
    Edit(
        "the prompt of a seen data set",
        dataset("second", prompt={"templates": ["{question}?"]}),
        (of("*/second/*"), *EXPOSED, views("small"), DESCRIBED),
    ),
    Edit("length of its answers", dataset("own", decoding={"max_new_tokens": 9}), (answers("*/own/*"), views("small")), really=True),
    Edit("a metric's setting", dataset("own", metric__settings={"variant": "official"}), ("score */own/*", views("small")), really=True),
    Edit("its metric", dataset("own", metric={"name": "exact_match"}), ("score */own/*", views("small")), really=True),
    Edit("its label in tables", dataset("first", table_label="1st"), (views("*"), DESCRIBED)),
    Edit("its number of examples", dataset("first", splits__train=21), (*data("first"), views("*"), DESCRIBED)),
    Edit(
        "its generator",
        dataset("second", source__generator="vizwiz"),
        (*data("second"), *EXPOSED, views("small"), DESCRIBED),
    ),
    Edit("a data file with the same bytes", write("my_data/rows.csv", ROWS), really=True),
    Edit(
        "one row of a data file",
        write("my_data/rows.csv", ROWS.replace("tulip", "daisy")),
        ("retrieve my_data", *data("own"), views("small")),
        really=True,
    ),
    Edit(
        "a file more beside it",
        write("my_data/more.csv", ROWS),
        ("retrieve my_data", *data("own"), views("small")),
    ),
    Edit("a hidden file beside it", write("my_data/.notes", "x")),
    Edit(
        "the data moved to another folder",
        both(
            lambda project: (project.root / "my_data").rename(project.root / "their_data"),
            dataset("own", source__from__own__path="their_data"),
        ),
    ),
    Edit(
        "a file of the embedded data",
        file("data/embedded/pack/concepts.jsonl"),
        (*data("first"), *data("second"), *EXPOSED, views("*"), DESCRIBED),
    ),
    Edit(
        "a published value",
        text("paper/tables/paper.csv", "50.0", "51.0"),
        (views("small"),),
        really=True,
    ),
    # --- Templates ---
    Edit("a chat template", file("models/templates/vicuna_v1.jinja"), LARGE_RUNS, really=True),
    Edit("the other chat template", file("models/templates/plain.jinja"), ("expose tiny", of("*/tiny/*"), views("*"))),
    Edit("a chat template that nobody uses", file("models/templates/gemma3.jinja")),
    Edit("answers generated in other batches", config(evaluation={"batch_size": 8}), ANSWERED),
    Edit("adapters never merged", config(evaluation={"merge": "never"}), ANSWERED),
    # --- Judge ---
    Edit("failures tolerated of the judge", config(judge__tolerated=0.5), ("judge|score *+judged", views("judged")), really=True),
    Edit("the judge's prompt", file("metrics/scales/mmhal.txt"), ("judge|score *+judged", views("judged")), really=True),
    Edit("the judge's module", code("judging/facts"), ("judge|score *+judged", views("judged")), really=True),
    Edit("a judge that nobody asks", code("judging/endpoint")),
    # --- Tables, figures, pages, studies ---
    Edit("the aggregation only", code("analysis/table"), (views("*"),)),
    Edit("the plots only", code("analysis/plot"), ("plot|report *",), really=True),
    Edit("the kind of figure that is used", code("analysis/figures/dots"), ("plot|report *",)),
    Edit("a kind of figure that is not", code("analysis/figures/losses")),
    Edit("the page only", code("report/build"), ("report *",), really=True),
    Edit("the page's style sheet", file("report/page.css"), ("report *",)),
    Edit("pictures on the page", config(report={"gallery": 1}), ("report *",)),
    Edit("a study's title", study("small", title="Smaller"), (views("small"),), really=True),
    Edit("a study's note", study("small", note="Mind."), ("report small",)),
    Edit("a table's rows reordered", study("small", rows=["connector", "method", "model"]), (views("small"),), really=True),
    Edit("data sets in another order", config(lineup__datasets=["second", "first"]), (views("small"),), really=True),
    Edit("a row left out", study("small", exclude=[{"method": "adapter", "dataset": "first"}]), (views("small"),), really=True),
    Edit(
        "a method more",
        study("trials", axes__method=["lora", "ia3"], tuning={"factors": [1]}),
        (of("ia3/*"), of("lora/*+chosen"), views("trials")),
    ),
    Edit("a study of the same runs", new_study("more", {"title": "More", "axes": ONE_RUN}), (views("more"),), really=True),
    Edit(
        "a study of other runs",
        new_study("more", {"title": "More", "axes": ONE_RUN | {"method": ["lora", "prefix"]}}),
        (of("prefix/*"), views("more")),
        really=True,
    ),
    Edit("a study that nobody asks for", new_study("more", {"title": "More", "axes": ONE_RUN | {"method": "ia3"}}, False)),
    Edit("a study removed", remove_study("judged")),
    Edit("a study renamed", rename_study("judged", "rated"), (views("rated"),), really=True),
    Edit("what describes: its module", code("analysis/descriptions/data_sets"), (DESCRIBED,), really=True),
    # --- Code: what cannot change a result ---
    Edit("comments in every module", each_module(lambda source: f"# why\n{source}\n# why not\n"), really=True),
    Edit("docstrings of every module", each_module(other_docstrings)),
    Edit("every module reformatted", each_module(lambda source: ast.unparse(ast.parse(source))), really=True),
    Edit("every module with other line ends", each_module(lambda source: source.replace("\n", "\r\n"))),
    Edit("a module imported under TYPE_CHECKING only", code("training/notes"), really=True),
    Edit("modules that carry, not compute", both(code("store"), code("job"), code("fingerprint"), code("retrieve/hub"))),
    Edit("planning and configuration", both(code("graph"), code("study"), code("config"), code("config_types"), code("cli"))),
    Edit("a method that no study uses", code("methods/prefix")),
    Edit("a metric that no study uses", code("metrics/cider")),
    Edit("a new method, and an empty package", both(write("src/peftbench/methods/new.py", "Config = 1\n"), write("src/peftbench/x/__init__.py", ""))),
    # --- Code: what can ---
    Edit("one method's module", code("methods/adapter"), ADAPTER, really=True),
    Edit("another method's module", code("methods/lora"), LORA),
    Edit("the layers of that method alone", code("tuners/bottleneck"), ADAPTER),
    Edit("the method that does nothing", code("methods/base"), (answers("base/*"), views("small")), really=True),
    Edit("a method imports another module", append("src/peftbench/methods/adapter.py", "\nimport peftbench.data.draw\n"), ADAPTER),
    Edit("a metric", code("metrics/mmhal"), ("score *+judged", views("judged")), really=True),
    Edit("a helper of one metric", code("metrics/_vqa_text"), ("score */frozen", "score */tuned", "score *+chosen", "score *+exposed", views("small"), views("trials"), views("exposed"))),
    Edit("a data set's generator", code("data/embedded/okvqa"), (*data("second"), *EXPOSED, views("small"), DESCRIBED)),
    Edit("the reader of tables", code("data/tables/split"), (*data("own"), views("small"))),
    Edit("training", code("training/loop"), ("expose tiny", *TUNED)),
    Edit("the optimiser", code("training/optimizer"), ("expose tiny", *TUNED)),
    Edit("the choice among trials", code("training/choose"), ("choose *", answers("*+chosen"), views("trials")), really=True),
    Edit("batches, for training and answering", code("training/batches"), ("expose tiny", of("*"), views("*"))),
    Edit("loading of models, for all that need one", code("models/load"), BUILT),
    Edit(
        "reading of data, for all but its preparation",
        code("data/load"),
        ("subset *", "expose *", of("*"), views("*")),
    ),
    Edit("where models of the hub come from", code("models/sources/hub"), ("build large", *LARGE_RUNS), really=True),
    Edit("generation", code("evaluation/generate"), ANSWERED),
    Edit("scoring", code("evaluation/score"), ("score *", views("*"))),
    Edit("a script", append("workflow/scripts/score_predictions.py", "\nEDITED = 1\n"), ("score *", views("*"))),
    Edit("a comment in a script", append("workflow/scripts/train_adapter.py", "\n# why\n")),
    Edit(
        "message, threads and log of a rule",
        both(
            text("workflow/rules/train.smk", '"Tuning ', '"Training '),
            text("workflow/rules/train.smk", "    resources:\n", "    threads: 3\n    resources:\n        mem_mb=999,\n"),
            text("workflow/rules/score.smk", "<logs>/score_predictions/", "<logs>/scoring/"),
        ),
        really=True,
    ),
    Edit("a rule renamed", text("workflow/rules/train.smk", "rule train_adapter:", "rule fine_tune:"), really=True),
    # --- Versions of packages ---
    Edit("peft: patch", package("peft", 2), really=True),
    Edit("peft: minor", package("peft", 1), ("expose *", of("*"), views("*"))),
    Edit("torch: patch", package("torch", 2)),
    Edit("torch: minor", package("torch", 1), BUILT),
    Edit("peft: patch, where patches count", both(config(identity={"granularity": "patch"}), package("peft", 2)), BUILT),
    Edit("a package that is not listed", package("polars", 1)),
    # --- Execution ---
    Edit("GPUs, micro-batch, workers, threads, mirrors", config(execution=EXECUTION), really=True),
    Edit("wall time, partition, memory", nothing, (), ("--default-resources", "runtime=600", "mem_mb=9000", "slurm_partition=gpu")),
    Edit("log level, cores, retries", nothing, (), ("--verbose", "--retries", "2", "--show-failed-logs", "-c7")),
    Edit("environment", nothing, (), (), {"CUDA_VISIBLE_DEVICES": "0", "HF_HOME": "/tmp/hf", "OMP_NUM_THREADS": "2"}),
    Edit("the profile", append("profiles/default/profile.yaml", "\nlatency-wait: 60\n")),
    Edit("documents and locks", both(write("README.md", "x"), append("envs/requirements.in", "\n# why\n"))),
    # --- Places and times ---
    Edit("touch of everything", touch, really=True),
    Edit(".snakemake deleted", delete(".snakemake"), really=True),
    Edit("tickets, logs and cached code deleted", delete("results/.tickets", "results/logs", "src/**/__pycache__")),
    Edit("a fresh clone with copied results", fresh_clone, really=True),
    Edit("results in another folder", move_results, (), ("--config", "execution={results: elsewhere/store}")),
    Edit("a branch with an edit", branch(code("methods/adapter"), False), ADAPTER),
    Edit("a branch switched and switched back", branch(each_module(lambda s: s + "\nX = 1\n"), True), really=True),
    Edit("a setting changed and changed back", both(config(training__epochs=3), config(training__epochs=2)), really=True),
    Edit("a lost table", delete("results/tables/small.md"), ("tabulate small",)),
    Edit("a lost figure of one study", delete("results/figures/judged.png"), ("plot judged",)),
    Edit("lost scores that a lost table needs", delete("results/runs/**/scores-*", "results/tables/judged.csv"), ("score lora/tiny/first/tuned+judged", "tabulate judged")),
    Edit("left-overs of a killed job", write("results/runs/tiny/first/lora-0123456789abcdef/.partial-x/adapter", "half")),
]  # fmt: skip


class Outcome:
    """What an edit led to."""

    def __init__(self, edit: Edit, names: Counter[str], ran: Counter[str]) -> None:
        self.edit = edit
        self.plan = set(names)
        assert len(self.plan) == names.total(), f"two jobs of one name: {names - Counter(self.plan)}"
        self.ran = ran
        self.idle = [p for p in edit.runs if not any(_matches(name, p) for name in names)]
        """Patterns that match nothing."""
        self.expected = Counter({n: c for n, c in names.items() if any(_matches(n, p) for p in edit.runs)})
        self.missing = sorted((self.expected - ran).elements())
        """Must run, and does not."""
        self.extra = sorted((ran - self.expected).elements())
        """Runs, and must not."""

    @property
    def holds(self) -> bool:
        """Whether exactly the expected jobs ran."""
        return not (self.missing or self.extra or self.idle)

    @property
    def got(self) -> str:
        """In words."""
        stages = Counter(name.partition(" ")[0] for name in self.ran.elements())
        counts = ", ".join(f"{count} {stage}" for stage, count in stages.items()) or "nothing"
        kept = len(self.plan - set(self.ran))
        if self.holds:
            return f"as expected: {counts}; {kept} jobs kept"
        wrong = [f"does not run: {name}" for name in self.missing] + [f"runs: {name}" for name in self.extra]
        wrong += [f"nothing matches {pattern!r}" for pattern in self.idle]
        return "; ".join(wrong)

    @property
    def row(self) -> tuple[str, str, str]:
        """Edit, expected, got."""
        return self.edit.name, "; ".join(self.edit.runs) or "nothing", self.got


def _matches(name: str, pattern: str) -> bool:
    stage, what = name.split(" ", 1)
    stages, wanted = pattern.split(" ", 1)
    return stage in stages.split("|") and fnmatchcase(what, wanted)


class Matrix:
    """The finished studies, and copies of them to edit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = Server()
        self.finished = MatrixProject(folder / "finished")
        done = self.server.call(self.finished.root, "-c2")
        assert done.returncode == 0, done.stdout
        self._copies = 0

    def copy(self) -> MatrixProject:
        """A copy of the finished project, in a folder of its own."""
        self._copies += 1
        return self.finished.copy(self.folder / f"copy{self._copies}")

    def dry_run(self, project: MatrixProject, *arguments: str, **variables: str) -> tuple[Done, Counter[str]]:
        """What would run: names of jobs."""
        done = self.server.call(project.root, "-n", "-p", "-c2", *arguments, **variables)
        assert done.returncode == 0, done.stdout
        return done, announced(done)

    def look(self, edit: Edit) -> Outcome:
        """Apply an edit to a copy and compare; for ``really``, run it and take it back too."""
        project = self.copy()
        try:
            edit.do(project)
            done, ran = self.dry_run(project, *edit.arguments, **edit.variables)
            outcome = Outcome(edit, Counter(done.names.values()), ran)
            if edit.really and outcome.holds:
                self._really(project, edit, outcome)
            return outcome
        finally:
            shutil.rmtree(project.root, ignore_errors=True)

    def _really(self, project: MatrixProject, edit: Edit, outcome: Outcome) -> None:
        """Run the jobs, look at the records, take the edit back, and look what would run then."""
        before = contents(project)
        done = self.server.call(project.root, "-c2", *edit.arguments, **edit.variables)
        assert done.returncode == 0, done.stdout
        after = contents(project)
        assert before.items() <= after.items(), "a finished result changed"
        results = project.root / "results"
        heavy = {name for name in outcome.expected if name.partition(" ")[0] not in VIEW_STAGES}
        assert after.keys() - before.keys() == {results / done.records[name] for name in heavy}
        digests = {name: digest for digest, name in done.names.items()}
        for name in heavy:
            assert read_record(results / done.records[name]).digest == digests[name]
        assert not self.dry_run(project, *edit.arguments, **edit.variables)[1], "it would run twice"
        for path in project.root.iterdir():
            if path.name not in ("results", ".snakemake"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        back = self.finished.copy(project.root)
        _, again = self.dry_run(back)
        # Tables, figures and pages have names without digests: they are made again, from what is there.
        known = {name.partition(" ")[2] for name in done.names.values()} & set(CONFIG["studies"])
        redone = {n for n in outcome.expected if n.partition(" ")[0] in VIEW_STAGES and n.partition(" ")[2] in known}
        assert set(again) == redone, f"after taking it back: {sorted(set(again) ^ redone)}"


def announced(done: Done) -> Counter[str]:
    """Names of the jobs that a dry-run announces, from the commands that it prints."""
    digests = re.findall(r"\.py --ticket '?\S*?\.tickets/([0-9a-f]{16})\.json", done.stdout)
    if "Nothing to be done" not in done.stdout:
        table = done.stdout.rsplit("Job stats:", 1)[1]
        counts = dict(re.findall(r"^(\w+) +(\d+)$", table, flags=re.MULTILINE))
        assert int(counts["total"]) - int(counts.get("all", 0)) == len(digests), done.stdout
    return Counter(done.names[digest] for digest in digests)


def contents(project: MatrixProject) -> dict[Path, bytes]:
    """All records, and their bytes."""
    return {path: path.read_bytes() for path in (project.root / "results").rglob(RECORD)}


def table(rows: list[tuple[str, str, str]]) -> str:
    """Rows of (edit, expected, got) as text."""
    lines = []
    for name, expected, got in [("edit", "expected to run", "got"), *rows]:
        cells = [textwrap.wrap(cell, width) for cell, width in ((name, 44), (expected, 52), (got, 60))]
        height = max(map(len, cells))
        padded = [[*cell, *[""] * (height - len(cell))] for cell in cells]
        lines += ["  ".join(f"{c:{w}}" for c, w in zip(line, (44, 52, 60), strict=True)).rstrip() for line in zip(*padded, strict=True)]
    return "\n".join(lines)


@contextlib.contextmanager
def matrix(folder: Path) -> Iterator[Matrix]:
    """The matrix; its server ends with the block."""
    made = Matrix(folder)
    try:
        yield made
    finally:
        made.server.close()


def main(words: list[str]) -> int:
    """Print the table for all edits, or those whose name contains one of the words."""
    chosen = [edit for edit in EDITS if not words or any(word in edit.name for word in words)]
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        made = Matrix(Path(folder))
        for number, edit in enumerate(chosen, 1):
            print(f"\r{number} of {len(chosen)}: {edit.name:60}", end="", file=sys.stderr, flush=True)
            outcomes.append(made.look(edit))
        seconds = made.server.close()
    print(file=sys.stderr)
    print(table([outcome.row for outcome in outcomes]))
    wrong = sum(not outcome.holds for outcome in outcomes)
    print(f"\n{len(outcomes)} edits, {sum(edit.really for edit in chosen)} of them run and taken back, {wrong} wrong")
    print(f"{seconds:.0f} s of CPU in Snakemake and its jobs")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
