"""The words of the edit matrix: what an edit does to a project, and which jobs are expected to run after it."""

import ast
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import yaml

from matrix_project import CONFIG, MatrixProject

Do = Callable[[MatrixProject], object]


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
                project.write(str(path.relative_to(project.root)), change(path.read_text(encoding="utf-8")))

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
    rewrite(project)  # the copy's files are linked
    for path in project.root.rglob("*"):
        seconds = 1_000_000_000 if "results" in path.parts else 1_900_000_000
        os.utime(path, (seconds, seconds))


def delete(*patterns: str) -> Do:
    """Delete files and folders."""

    def do(project: MatrixProject) -> None:
        for path in [path for pattern in patterns for path in project.root.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return do


def rewrite(project: MatrixProject) -> None:
    """All files written anew, without their times."""
    copy = project.root.with_name(f"{project.root.name}-clone")
    shutil.copytree(project.root, copy, copy_function=shutil.copyfile)
    shutil.rmtree(project.root)
    copy.rename(project.root)
    for script in (project.root / "workflow/scripts").iterdir():
        script.chmod(0o755)


def fresh_clone(project: MatrixProject) -> None:
    """A clone into which results were copied."""
    rewrite(project)
    shutil.rmtree(project.root / ".snakemake")


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
