"""A copy of the project in a temporary folder, with small studies and stages that cost nothing.

The Snakefile, the rules, the scripts and the workflow core are the real ones; only the functions that would
train, generate or draw are replaced, so that what decides about running is exactly what decides in use.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from peftbench.config import Settings
from peftbench.fingerprint import Fingerprinter
from peftbench.graph import Plan

ROOT = Path(__file__).parent.parent
PARTS = ("Snakefile", "workflow", "profiles", "envs", "src")
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.zip", "*.safetensors")

FAKES = {
    "data/prepare.py": """
        def prepare_dataset(spec, out_dir, image_store, files):
            (out_dir / "train.parquet").write_text(spec.dataset)
            return {"examples": spec.splits}
        """,
    "data/subset.py": """
        def draw_subset(spec, data_dir, out_dir):
            assert (data_dir / "train.parquet").exists()
            return {}
        """,
    "models/base.py": """
        def build_base_model(spec, out_dir, files):
            return {}
        """,
    "training/loop.py": """
        import os
        import time

        from peftbench.errors import RunFailed

        def train_adapter(spec, base_dir, data_dir, subset_dir, image_store, out_dir, execution, staging):
            if spec.optim.learning_rate > 100 or spec.method == os.environ.get("FAKE_DIVERGES"):
                raise RunFailed("training diverged: the loss is nan at step 3 of 9: lower the learning rate")
            (out_dir / "adapter").mkdir()
            (out_dir / "adapter" / "weights").write_text(repr(spec.settings))
            if counter := os.environ.get("FAKE_COUNTER"):
                with open(counter, "a") as stream:
                    print(spec.method, spec.connector, base_dir.name, data_dir.name, file=stream)
            print("half way", flush=True)
            time.sleep(float(os.environ.get("FAKE_TRAINING_SECONDS", "0")))
            return {"steps": spec.epochs}
        """,
    "evaluation/generate.py": """
        def generate_predictions(spec, base_dir, run_dir, data_dir, image_store, out_dir, execution):
            assert (run_dir is None) == (spec.method == "base")
            return {}
        """,
    "evaluation/score.py": """
        def score_predictions(spec, predictions_dir, data_dir, out_dir):
            return {"value": 50.0}
        """,
    "analysis/table.py": """
        from peftbench.store import atomic_text, read_record

        def tabulate_study(spec, results, out_dir):
            records = [read_record(results / cell.scores / "record.json") for cell in spec.cells]
            values = [record.facts.get("value", record.facts.get("failed")) for record in records]
            for suffix in ("csv", "md", "html", "tex"):
                text = f"{len(values)} cells, {sum(isinstance(v, str) for v in values)} failed"
                atomic_text(out_dir / f"{spec.study}.{suffix}", text)
            return {}
        """,
    "analysis/plot.py": """
        from peftbench.store import atomic_text

        def plot_study(spec, table, out_dir, results):
            for suffix in ("png", "svg"):
                atomic_text(out_dir / f"{spec.study}.{suffix}", table.read_text())
            return {}
        """,
    "report/build.py": """
        from peftbench.store import atomic_text

        def build_report(spec, results, out_dir):
            atomic_text(out_dir / f"{spec.study}.html", spec.title)
            return {}
        """,
}

MAIN = {
    "lineup": {"models": ["tiny"], "datasets": ["first", "second"]},
    "studies": ["small"],
    "execution": {"worker": "none", "device": "cpu"},
}
STUDY = {
    "title": "Small",
    "axes": {
        "model": "lineup",
        "method": ["lora", "adapter"],
        "connector": ["tuned", "frozen"],
        "dataset": "lineup",
    },
    "include_base": True,
}
NAMES = {
    "layers": r"model\.language_model\.layers\.\d+",
    "attention": ["self_attn.q_proj"],
    "mlp": ["mlp.up_proj"],
    "attention_module": "self_attn",
    "connector": ["model.multi_modal_projector"],
    "vision": ["model.vision_tower"],
    "embeddings": ["lm_head"],
    "template": "plain",
}


def dataset(generator: str, **changes: object) -> dict[str, object]:
    """Content of a data set's file."""
    return {
        "title": generator,
        "table_label": generator,
        "stands_for": generator,
        "seen": generator == "okvqa",
        "source": {"kind": "embedded", "generator": generator},
        "splits": {"train": 20, "test": 10},
        "prompt": {"templates": ["{question}"]},
        "metric": {"name": "vqa_score"},
        "decoding": {"max_new_tokens": 4},
    } | changes


class Project:
    """A project folder that tests may change at will."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, root / part, ignore=IGNORED)
            else:
                shutil.copy(source, root / part)
        for name, text in FAKES.items():
            self.write(f"src/peftbench/{name}", re.sub(r"^ {8}", "", text, flags=re.MULTILINE))
        for generator, file in (("sqa_img", "first"), ("okvqa", "second")):
            self.write_yaml(f"config/datasets/{file}.yaml", dataset(generator))
        self.write_yaml(
            "config/models/tiny.yaml", {"title": "Tiny", "source": {"kind": "tiny"}, "names": NAMES}
        )
        self.write_yaml("config/config.yaml", MAIN)
        self.write_yaml("config/studies/small.yaml", STUDY)
        pack = root / "src/peftbench/data/embedded/pack.py"
        self.write(
            str(pack.relative_to(root)), re.sub(r"FINGERPRINT_FILES = \([^)]*\)", "", pack.read_text())
        )

    def write(self, path: str, text: str) -> None:
        """Write a text file."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def write_yaml(self, path: str, content: object) -> None:
        """Write a YAML file."""
        self.write(path, yaml.safe_dump(content, sort_keys=False))

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace a text that must be there."""
        text = (self.root / path).read_text(encoding="utf-8")
        assert old in text, f"{old!r} is not in {path}"
        self.write(path, text.replace(old, new, 1))

    def plan(self, *studies: str) -> Plan:
        """The plan of the present files."""
        plan = Plan(Settings.from_files(self.root), Fingerprinter(self.root / "src/peftbench"))
        for study in studies or ("small",):
            plan.study(study)
        return plan

    def environment(self, **variables: str) -> dict[str, str]:
        """Environment in which the copy's code runs, not the installed one."""
        return os.environ | {"PYTHONPATH": str(self.root / "src"), "OMP_NUM_THREADS": "1"} | variables

    def snakemake(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run Snakemake in the folder; output and errors together."""
        return subprocess.run(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=self.root,
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )

    def jobs(self, *arguments: str) -> dict[str, int]:
        """Jobs per rule that a dry-run announces; empty where nothing is to be done."""
        done = self.snakemake("-n", *arguments)
        assert done.returncode == 0, done.stdout
        if "Nothing to be done" in done.stdout:
            return {}
        table = done.stdout.rsplit("Job stats:", 1)[1]
        found = re.findall(r"^(\w+) +(\d+)$", table, flags=re.MULTILINE)
        return {rule: int(count) for rule, count in found if rule != "total"}
