"""One real training job in a folder of its own: the shipped scripts and code, the tiny model, its inputs laid out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import yaml

from peftbench.config import Settings
from peftbench.graph import Job, Plan
from peftbench.spec import Execution, TrainSpec
from peftbench.store import Record, atomic_json, read_record
from tiny_llava import NAMES, world

ROOT = Path(__file__).parent.parent


class RealJob:
    """The job ``train`` of a study of one run; ``training`` are settings of the study.

    ``kept``: with the weights of every epoch. ``settings`` are the method's, beside its learning rate.
    """

    def __init__(
        self,
        root: Path,
        method: str = "lora",
        settings: dict[str, Any] | None = None,
        kept: bool = False,
        **training: Any,
    ) -> None:
        self.root = root
        root.mkdir(exist_ok=True)
        (root / "workflow").symlink_to(ROOT / "workflow")
        names = {f: getattr(NAMES, f) for f in NAMES.__struct_fields__ if getattr(NAMES, f)}
        self._write("config", {"lineup": {"models": ["tiny"], "datasets": ["squares"]}, "studies": ["one"]})
        model = {"title": "Tiny", "source": {"kind": "tiny"}, "names": names, "precision": "fp32"}
        self._write("models/tiny", model)
        data = {
            **dict.fromkeys(("title", "table_label", "stands_for"), "squares"),
            "seen": False,
            "source": {"kind": "embedded", "generator": "okvqa"},
            "splits": {"train": 24, "test": 10},
            "prompt": {"templates": ["{question} Answer the question using a single word or phrase."]},
            "metric": {"name": "vqa_score"},
            "decoding": {"max_new_tokens": 4},
        }
        self._write("datasets/squares", data)
        study = {
            "title": "One",
            "axes": {"model": "tiny", "dataset": "squares", "method": method, "connector": "tuned"}
            | ({"epoch": [1, "last"]} if kept else {}),
            "rows": ["method", "epoch"] if kept else ["method"],
            "training": {
                **{"global_batch": 8, "max_length": 200, "eval_loss": True, "connector_learning_rate": 0.001},
                **training,
            },
            "methods": {
                method: {"learning_rate": 0.01}
                | ({"rank": 4} if settings is None and method == "lora" else settings or {})
            },
        }
        self._write("studies/one", study)
        self.plan = Plan(Settings.from_files(root))
        self.job: Job = self.plan.study("one").scores[0].inputs["predictions"].inputs["run"]
        for name, folder in (("base", world().base), ("data", world().data), ("subset", world().subset)):
            made = self.job.inputs[name]
            ticket = json.loads(made.ticket)
            target = root / "results" / made.directory
            shutil.copytree(folder, target)
            atomic_json(target / "record.json", Record(digest=made.digest, facts={}, provenance={}, **ticket))
        shutil.copytree(world().images, root / "results/images")

    def _write(self, name: str, content: Any) -> None:
        path = self.root / "config" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content, sort_keys=False))

    @property
    def folder(self) -> Path:
        """Where the result lies once it is there."""
        return self.root / "results" / self.job.directory

    @property
    def staging(self) -> Path:
        """What survives a killed job."""
        return self.root / "results/.staging" / self.job.digest

    def record(self) -> Record:
        """The record of the finished job."""
        return read_record(self.folder / "record.json")

    def command(self, **execution: Any) -> list[str]:
        """The command line of the job, as the rule has it."""
        settings = {"device": "cpu", "worker": "none", "checkpoint_interval": 0.0} | execution
        inputs = [f"results/{job.record}" for job in self.job.inputs.values()]
        words = [sys.executable, "workflow/scripts/train_adapter.py", "--ticket", self.job.ticket]
        words += ["--inputs", *inputs, "--output", f"results/{self.job.record}"]
        return [*words, "--execution", json.dumps(settings), "--log", "log.txt"]

    def start(self, command: list[str] | None = None, **execution: Any) -> subprocess.Popen[str]:
        """Start the job, or another command with its environment, in a session of its own."""
        return subprocess.Popen(
            command or self.command(**execution),
            cwd=self.root,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": os.environ.get("TMPDIR", "/tmp")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, **execution: Any) -> tuple[int, str]:
        """Run the job to its end; status and what it said."""
        process = self.start(**execution)
        _, errors = process.communicate(timeout=300)
        return process.returncode, errors

    def run_here(self, **execution: Any) -> dict[str, Any]:
        """Train in this process, which has all imported; the facts. There are the run's files, and no record."""
        from peftbench.training.loop import train_adapter

        spec = msgspec.convert(json.loads(self.job.ticket)["spec"], TrainSpec)
        inputs = [
            self.root / "results" / self.job.inputs[name].directory for name in ("base", "data", "subset")
        ]
        settings = Execution(device="cpu", **execution)
        return train_adapter(spec, *inputs, self.root / "results/images", self.folder, settings)

    def checkpoints(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted((self.staging / "checkpoints").glob("step-*"))
