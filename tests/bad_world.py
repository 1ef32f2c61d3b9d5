"""A small finished project in a folder, to be damaged and then used: what ``bad_inputs`` plays with.

The configuration is small, everything else is real: the tiny LLaVA that ships, a table of pictures of the user's own,
one LoRA run of two steps. Commands run inside this process where that shows the same (their exit status, what they
print), because a Python with torch costs five seconds; ``World.process`` starts the real command line.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from peftbench.config import Settings, read_yaml
from peftbench.errors import UserError
from peftbench.graph import Job, Plan
from peftbench.stages import RULES

ROOT = Path(__file__).parent.parent
STUDY = "small"
COLOURS = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (30, 50, 200), "grey": (120, 120, 120)}
MAIN = {
    "lineup": {"models": ["tiny"], "datasets": ["own", "drawn"]},
    "studies": [STUDY],
    "execution": {"worker": "none", "device": "cpu"},
}
STUDIES = {
    STUDY: {
        "title": "Small",
        "axes": {"model": "tiny", "dataset": "own", "method": "lora", "connector": "tuned"},
    },
    "judged": {
        "title": "Judged",
        "axes": {"model": "tiny", "dataset": "own", "method": "lora", "connector": "tuned"},
        "metric": {"name": "mmhal"},
        "figure": "dots",
    },
}
OWN = {
    "title": "Own",
    "table_label": "Own",
    "stands_for": "own",
    "seen": False,
    "source": {
        "kind": "table",
        "from": {"own": {"path": "my_data"}},
        "splits": {
            "train": {"rows": {"in": "own", "file": "train.csv"}},
            "test": {"rows": {"in": "own", "file": "test.csv"}},
        },
        "image": {"in": "own", "name": "pictures/{file}"},
        "row": {"id": "{file}-{_row}", "question": "question", "answers": "answers | split ;"},
    },
    "splits": {"train": 8, "test": 4},
    "prompt": {"templates": ["{question}"]},
    "metric": {"name": "exact_match"},
    "decoding": {"max_new_tokens": 3},
}
DRAWN = OWN | {
    "title": "Drawn",
    "table_label": "Drawn",
    "source": {"kind": "embedded", "generator": "okvqa", "seed": 1},
    "splits": {"train": 6, "test": 3},
}
CLAIMS = {
    "title": "Claims",
    "claims": {
        "adapter_best": {
            "quote": "Adapters are best.",
            "place": "here",
            "published": {"table": "table1"},
            "test": {"statistic": "best", "over": "method", "target": {"method": "adapter"}, "blocks": ["dataset"]},
        }
    },
}  # fmt: skip
PUBLISHED = "model,dataset,method,score\n" + "".join(
    f"tiny,{dataset},{method},{score}\n"
    for dataset in ("own", "drawn", "third")
    for method, score in (("adapter", 60), ("lora", 50))
)
UNTRACKED = (
    ".snakemake",
    "logs",
    ".locks",
    ".failed",
    ".staging",
    ".tickets",
    "images",
    "__pycache__",
    "cache",
    ".cache",
)
"""Folders whose files are no results: what a refused command may leave there is harmless."""


@dataclass
class Outcome:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that say what is wrong."""
        return [line for line in self.err.splitlines() if re.match(r"(\S+( \S+)?: )?error: ", line)]


class World:
    """One project folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # ---- files ------------------------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """A path in the project; ``*`` stands for the one file that there is."""
        if "*" in name:
            (found,) = self.root.glob(name)
            return found
        return self.root / name

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file anew: what it was linked with stays as it was."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def yaml(self, name: str, content: Any) -> None:
        """Write a YAML file."""
        self.write(name, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def change(self, name: str, key: str, value: Any) -> None:
        """Set one key (``a.b.c``) of a YAML or JSON file; ``...`` removes it."""
        text = self.path(name).read_text(encoding="utf-8")
        content = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
        *parents, last = key.split(".")
        inner = content
        for parent in parents:
            inner = inner.setdefault(parent, {})
        if value is ...:
            del inner[last]
        else:
            inner[last] = value
        self.write(name, json.dumps(content)) if name.endswith(".json") else self.yaml(name, content)

    def edit(self, name: str, change: Callable[[bytes], bytes]) -> None:
        """Change the bytes of a file."""
        self.write(name, change(self.path(name).read_bytes()))

    def files(self) -> set[str]:
        """All files but those that are no results."""
        found = set()
        for folder, folders, names in os.walk(self.root):
            folders[:] = [name for name in folders if name not in UNTRACKED]
            found |= {str(Path(folder, name).relative_to(self.root)) for name in names}
        return found

    def is_whole(self, name: str) -> bool:
        """Whether a file belongs to a result that has its record."""
        return any((self.root / folder / "record.json").exists() for folder in Path(name).parents)

    # ---- commands ---------------------------------------------------------------------------------------------------

    def plan(self, study: str = STUDY) -> Plan:
        """The plan of the present files."""
        with contextlib.chdir(self.root):
            plan = Plan(Settings.from_files(self.root))
            plan.study(study)
        return plan

    def cli(self, *arguments: str) -> Outcome:
        """``peftbench ...`` in the project's folder."""
        from peftbench.cli import main

        return self._inside(lambda: main(list(arguments)))

    def job_of(self, stage: str, study: str = STUDY, label: str = "") -> tuple[Plan, Job]:
        """The planned job of a stage."""
        plan = self.plan(study)
        views = [view for view in plan.study(study).views if view.stage == stage]
        found = views or [job for job in plan.jobs.values() if job.stage == stage and label in job.label]
        return plan, found[0]

    def job(self, stage: str, study: str = STUDY, label: str = "", **options: Any) -> Outcome:
        """Run the job of a stage by its script, once more where its record is there."""
        try:
            plan, job = self.job_of(stage, study, label)
        except UserError as error:
            return Outcome(1, "", f"error: {error}\n")
        return self._inside(lambda: self._script(stage, self.words(plan, job, **options)))

    def words(self, plan: Plan, job: Job, **options: Any) -> list[str]:
        """Arguments of a job's script."""
        view = job.directory.endswith(".made")
        output = plan.marker(job) if view else f"{plan.results}/{job.record}"
        with contextlib.suppress(OSError):
            (self.root / output).unlink()
        given = {"ticket": job.ticket, "output": output, "execution": plan.execution(job)} | options
        inputs = given.pop(
            "inputs", [] if view else [f"{plan.results}/{i.record}" for i in job.inputs.values()]
        )
        words = ["--inputs", *inputs] if inputs else []
        for name, value in given.items():
            words += [f"--{name}", str(value)]
        return words

    def _script(self, stage: str, words: list[str]) -> int:
        path = str(self.root / f"workflow/scripts/{RULES[stage]}.py")
        before = sys.argv, list(sys.meta_path)
        sys.argv = [path, *words]
        try:
            runpy.run_path(path, run_name="__main__")
        finally:
            sys.argv, sys.meta_path[:] = before
        return 0

    def _inside(self, call: Callable[[], int | None]) -> Outcome:
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
        environment, folder = dict(os.environ), Path.cwd()
        os.chdir(self.root)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    status = call() or 0
                except SystemExit as ending:
                    status = ending.code if isinstance(ending.code, int) else 1
        finally:
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
        out.flush()
        return Outcome(status, out.buffer.getvalue().decode(), err.getvalue())

    def process(self, *command: str, **environment: str) -> Outcome:
        """A command line as a process of its own: ``peftbench``, ``snakemake`` or a script of the workflow."""
        name, *arguments = command
        known = {
            "peftbench": [sys.executable, "-m", "peftbench.cli"],
            "snakemake": [sys.executable, "-m", "snakemake"],
        }
        words = known.get(name) or [sys.executable, str(self.root / f"workflow/scripts/{name}.py")]
        done = subprocess.run(
            [*words, *arguments],
            cwd=self.root,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PEFTBENCH_WORKER": "none"} | environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=300,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)


def picture(colour: str, seed: int, side: int = 24) -> bytes:
    """A PNG: one colour and some noise, so that no two are the same."""
    rng = random.Random(seed)
    rows = b""
    for _ in range(side):
        rows += b"\0" + bytes(
            max(0, min(255, part + rng.randrange(-20, 20))) for _ in range(side) for part in COLOURS[colour]
        )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def table(rows: list[list[str]]) -> str:
    """Rows as CSV below the header of the user's own data."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([["file", "question", "answers"], *rows])
    return stream.getvalue()


def own_rows(split: str, count: int) -> list[list[str]]:
    """File, question, answers."""
    names = [list(COLOURS)[i % len(COLOURS)] for i in range(count)]
    return [[f"{split}_{i}.png", "Which colour is it?", name] for i, name in enumerate(names)]


def new_world(root: Path) -> World:
    """A project with its configuration and data, and no results."""
    world = World(root)
    for part in ("workflow", "profiles", "envs", "config/hardware", "config/architectures"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("Snakefile", "config/planning.yaml"):
        shutil.copy(ROOT / part, root / part)
    world.yaml("config/config.yaml", MAIN)
    model = read_yaml(ROOT / "config/models/tiny-llava.yaml")
    model["training"] |= {"epochs": 1, "global_batch": 4}
    model["methods"]["lora"] |= {"rank": 2}
    world.yaml("config/models/tiny.yaml", model | {"cache_vision": False})
    for name, content in (("own", OWN), ("drawn", DRAWN)):
        world.yaml(f"config/datasets/{name}.yaml", content)
    for name, content in STUDIES.items():
        world.yaml(f"config/studies/{name}.yaml", content)
    world.yaml("config/claims.yaml", CLAIMS)
    world.write("paper/tables/table1.csv", PUBLISHED)
    for split, count in (("train", 8), ("test", 4)):
        rows = own_rows(split, count)
        world.write(f"my_data/{split}.csv", table(rows))
        for i, (name, _, colour) in enumerate(rows):
            world.write(f"my_data/pictures/{name}", picture(colour, 100 * len(split) + i))
    return world


STAGES = ("retrieve", "prepare", "subset", "build", "train", "predict", "score", "tabulate", "plot", "report")


def finish(world: World) -> None:
    """Run the study to its end."""
    for stage in STAGES:
        done = world.job(stage)
        assert done.status == 0, f"{stage}: {done.err}"


@contextlib.contextmanager
def copied(template: World, folder: Path, results: bool) -> Iterator[World]:
    """A world of its own, its files linked with those of the template, so that a copy costs next to nothing."""
    skipped = ("__pycache__", ".snakemake") if results else ("__pycache__", ".snakemake", "results")
    shutil.copytree(
        template.root, folder, copy_function=os.link, ignore=shutil.ignore_patterns(*skipped), symlinks=True
    )
    try:
        yield World(folder)
    finally:
        for path in folder.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(folder)
