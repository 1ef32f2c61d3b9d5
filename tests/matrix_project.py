"""The project that edits are tried on: every stage, every kind of study, with the real modules' imports.

``workflow_project`` replaces the functions that cost time. Here each replacement keeps the imports of the module that
it stands for, in a function that nobody calls: so what a stage's code reaches, and with it what an edit reruns, is
what it is in use.
"""

import ast
import os
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from workflow_project import FAKES, MAIN, NAMES, ROOT, Project, dataset

MORE_FAKES = {
    "training/expose.py": """
        def expose_base_model(spec, base_dir, data_dirs, image_store, out_dir, execution, staging):
            return {}
        """,
    "training/choose.py": """
        def choose_run(spec, trials, out_dir):
            return {}
        """,
    "judging/stage.py": """
        def judge_predictions(spec, predictions_dir, data_dir, out_dir, staging, execution, model_dir):
            return {}
        """,
    "analysis/describe.py": """
        from peftbench.store import atomic_text

        def describe_study(spec, results, out_dir):
            for suffix in ("csv", "md", "html", "tex"):
                atomic_text(out_dir / f"{spec.study}.{suffix}", spec.title)
            return {}
        """,
    "retrieve/hub.py": """
        FINGERPRINT_EXEMPT = "carries bytes that are verified; cannot change them"

        def retrieve(spec, out_dir, staging):
            (out_dir / "config.json").write_text(spec.revision)
            return {"files": {"config.json": {}}}
        """,
}
TRAINING_TYPES = (
    "\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from peftbench.training.notes import Note\n"
)

CONFIG: dict[str, Any] = MAIN | {
    "lineup": {"models": ["tiny"], "datasets": ["first", "second"]},
    "studies": ["small", "trials", "exposed", "judged", "described"],
    "training": {"epochs": 2, "weight_decay": 0, "beta1": 0.9, "beta2": 0.95},
    "methods": {"lora": {"rank": 16, "alpha": 32, "learning_rate": 2e-4}},
    "judge": {"kind": "facts"},
}
ONE_RUN = {"model": "tiny", "method": "lora", "connector": "tuned", "dataset": "first"}
STUDIES: dict[str, Any] = {
    "small": {
        "title": "Small",
        "axes": {},
        "grids": [
            {
                "model": "tiny",
                "method": ["lora", "adapter"],
                "connector": ["tuned", "frozen"],
                "dataset": "lineup",
            },
            {**ONE_RUN, "dataset": "own"},
            {**ONE_RUN, "model": "large"},
        ],
        "include_base": True,
        "rows": ["model", "method", "connector"],
        "published": {"file": "paper", "where": {"connector": "tuned"}},
    },
    "trials": {"title": "Trials", "axes": ONE_RUN, "tuning": {"factors": [0.5, 1]}},
    "exposed": {"title": "Exposed", "axes": {**ONE_RUN, "exposure": True}},
    "judged": {"title": "Judged", "axes": ONE_RUN, "metric": {"name": "mmhal"}},
    "described": {"title": "Described", "kind": "data_sets", "axes": {"dataset": ["first", "second"]}},
}
OWN = {
    "kind": "table",
    "from": {"own": {"path": "my_data"}},
    "splits": {
        "train": {"rows": {"in": "own", "file": "rows.csv"}, "where": {"part": "train"}},
        "test": {"rows": {"in": "own", "file": "rows.csv"}, "where": {"part": "test"}},
    },
    "image": {"in": "own", "name": "{file}"},
    "row": {"id": "{_row}", "question": "question", "answers": "answers", "target": "first"},
}
ROWS = "part,file,question,answers\ntrain,a.png,What is it?,rose\ntest,b.png,What is it?,tulip\n"
REVISION = "1" * 40
LARGE = {
    "title": "Large",
    "source": {"kind": "hub", "from": {"model": {"hub": "owner/large", "revision": REVISION}}},
    "names": NAMES | {"template": "vicuna_v1"},
}


class MatrixProject(Project):
    """A project whose stages reach the code that they reach in use."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        super().__init__(root)
        for name, text in (FAKES | MORE_FAKES).items():
            fake = re.sub(r"^ {8}", "", text, flags=re.MULTILINE)
            real = (ROOT / "src/peftbench" / name).read_text(encoding="utf-8")
            exempt = "FINGERPRINT_EXEMPT" in fake
            self.write(f"src/peftbench/{name}", fake if exempt else fake + _imports(real))
        loop = "src/peftbench/training/loop.py"
        self.write(loop, (root / loop).read_text() + TRAINING_TYPES)
        self.write("src/peftbench/training/notes.py", '"""Only types."""\n\nNote = str\n')
        pack = "src/peftbench/data/embedded/pack.py"
        self.write(pack, (root / pack).read_text() + '\nFINGERPRINT_FILES = ("pack/concepts.jsonl",)\n')
        self.write("my_data/rows.csv", ROWS)
        self.write("paper/tables/paper.csv", "dataset,method,score\nfirst,lora,50.0\n")
        self.write_yaml("config/config.yaml", CONFIG)
        self.write_yaml("config/models/large.yaml", LARGE)
        splits = {"train": 1, "test": 1}
        self.write_yaml("config/datasets/own.yaml", dataset("own", source=OWN, splits=splits))
        (root / "config/studies/small.yaml").unlink()
        for name, study in STUDIES.items():
            self.write_yaml(f"config/studies/{name}.yaml", study)

    def write(self, path: str, text: str) -> None:
        """Write a text file anew, its mode kept: copies of the project share their files."""
        target = self.root / path
        mode = target.stat().st_mode if target.exists() else None
        target.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text.encode())
        if mode is not None:
            target.chmod(mode)

    def change(self, path: str, **changes: Any) -> None:
        """Replace or add keys of a YAML file; dots go deeper, written as two underscores."""
        content = yaml.safe_load((self.root / path).read_text(encoding="utf-8"))
        for key, value in changes.items():
            *above, last = key.split("__")
            inner = content
            for part in above:
                inner = inner.setdefault(part, {})
            inner[last] = value
        self.write_yaml(path, content)

    def copy(self, root: Path) -> "MatrixProject":
        """A copy to edit: files are linked, as nobody writes into one in place; Snakemake does into its own."""
        shutil.copytree(self.root, root, copy_function=os.link, ignore=shutil.ignore_patterns(".snakemake"))
        shutil.copytree(self.root / ".snakemake", root / ".snakemake")
        return self._at(root)

    def restore(self, other: "MatrixProject") -> None:
        """Everything but results and Snakemake's own files as in another copy."""
        kept = ("results", ".snakemake")
        for path in self.root.iterdir():
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        ignored = shutil.ignore_patterns(*kept)
        shutil.copytree(other.root, self.root, copy_function=os.link, ignore=ignored, dirs_exist_ok=True)

    def _at(self, root: Path) -> "MatrixProject":
        other = object.__new__(MatrixProject)
        other.root = root
        return other


def _imports(source: str) -> str:
    """The imports of a module, and its declared files, in a form that imports nothing."""
    lines = []

    def collect(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            return
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.module != "__future__"):
            lines.append(f"    {ast.unparse(node)}\n")
        for child in ast.iter_child_nodes(node):
            collect(child)

    tree = ast.parse(source)
    collect(tree)
    declared = [
        ast.unparse(node)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("FINGERPRINT_")
    ]
    return "\n\ndef _in_use():\n" + "".join(lines or ["    pass\n"]) + "\n".join(declared) + "\n"
