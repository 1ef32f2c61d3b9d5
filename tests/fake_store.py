"""Results folders made up for tests of tables, figures and pages: real records, no models."""

import csv
import hashlib
import io
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
from PIL import Image

from peftbench.canonical import canonical_json, digest_of_text, identity_text
from peftbench.data.example import Example
from peftbench.data.images import store_image
from peftbench.store import Record, atomic_json
from peftbench.views import Cell, DatasetInfo, ModelInfo, TabulateSpec

PROVENANCE = {
    "host": "node<1>",
    "device": "cpu",
    "cpu": "Some CPU & Co",
    "python": "3.11.2",
    "peftbench": "0.1.0",
    "versions": {"torch": "2.13.0", "peft": "0.19.1"},
    "started": "2026-01-01T00:00:00+00:00",
    "wall_seconds": 12.5,
    "cpu_seconds": 11.0,
    "gpu_seconds": 0.0,
    "peak_memory": 900_000_000,
    "peak_gpu_memory": 0,
}


class FakeStore:
    """Writes what the heavy stages would have left below ``results``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = root / "images"
        self.data: dict[str, tuple[str, list[Example]]] = {}

    def record(
        self, place: str, stage: str, spec: dict[str, Any], inputs: dict[str, str], facts: Any
    ) -> Path:
        """Leave a valid record in ``place`` (with ``{digest}``); return its folder."""
        code: dict[str, dict[str, str]] = {"modules": {}}
        texts = (canonical_json(part) for part in (spec, code, inputs))
        digest = digest_of_text(identity_text(stage, *texts))
        folder = self.root / place.format(digest=digest)
        record = Record(
            stage=stage,
            digest=digest,
            label=place,
            spec=spec,
            code=code,
            inputs=inputs,
            facts=facts,
            provenance=PROVENANCE,
        )
        atomic_json(folder / "record.json", record)
        return folder

    def dataset(self, name: str, examples: Sequence[Example]) -> None:
        """Store a test split."""
        folder = self.record(f"data/{name}-{{digest}}", "prepare", {"dataset": name}, {}, {})
        rows = [msgspec.to_builtins(example) for example in examples]
        pl.DataFrame(rows, schema=SCHEMA).write_parquet(folder / "test.parquet")
        self.data[name] = folder.name.rpartition("-")[2], list(examples)

    def run(
        self,
        dataset: str,
        method: str,
        connector: str = "tuned",
        *,
        answers: Sequence[str] = (),
        scores: Sequence[float] = (),
        model: str = "tiny",
        seed: int = 1,
        until: str = "score",
        failed: dict[str, str] | None = None,
        facts: dict[str, Any] | None = None,
        axes: dict[str, Any] | None = None,
        location: str = "default",
        train_size: Any = "full",
        losses: Sequence[float] = (),
        eval_losses: Sequence[float] = (),
    ) -> Cell:
        """One run up to a stage (none, train, predict, score); ``failed``: stage -> reason."""
        failed = failed or {}
        data, examples = self.data[dataset]
        point = {"model": model, "method": method, "connector": connector, "seed": seed, "axes": axes or {}}
        point |= {"location": location, "train_size": str(train_size)}
        trained = method != "base"
        reached = ["none", "train", "predict", "score"].index(until)
        run = self.root / f"runs/{model}/{dataset}/{method}-{'0' * 16}"
        predictions, scored = run / f"predictions-{'0' * 16}", None
        if trained and reached >= 1:
            spec = {"method": method, "settings": {}, "seed": seed, "connector": connector, "point": point}
            run = self.record(
                f"runs/{model}/{dataset}/{method}-{{digest}}",
                "train",
                spec,
                {"data": data},
                _train_facts(method, connector, losses) | _failed(failed, "train"),
            )
            if losses:
                _write_log(run / "log.csv", losses)
            if eval_losses:
                _write_eval(run / "eval.csv", eval_losses, len(losses))
            predictions = run / f"predictions-{'0' * 16}"
        if reached >= 2:
            predictions = self.record(
                f"{run.relative_to(self.root)}/predictions-{{digest}}",
                "predict",
                point,
                {"data": data},
                {"throughput": {"samples_per_s": 31.5}} | _failed(failed, "predict"),
            )
            table = {
                "id": [e.id for e in examples],
                "prediction": list(answers),
                "prompt": [f"USER: {e.question} ASSISTANT:" for e in examples],
                "n_tokens": [3] * len(examples),
                "finished": [True] * len(examples),
            }
            pl.DataFrame(table).write_parquet(predictions / "predictions.parquet")
        if reached >= 3:
            measured = facts if facts is not None else score_facts(scores)
            scored = self.record(
                f"{predictions.relative_to(self.root)}/scores-{{digest}}",
                "score",
                point,
                {"data": data},
                measured | _failed(failed, "score"),
            )
            frame = pl.DataFrame({"id": [e.id for e in examples], "score": list(map(float, scores))})
            frame.write_parquet(scored / "examples.parquet")
        folder = scored or predictions / f"scores-{'0' * 16}"
        return Cell(
            model=model,
            dataset=dataset,
            target=dataset,
            method=method,
            connector=connector,
            location=location,  # type: ignore[arg-type]
            train_size=train_size,
            seed=seed,
            axes=axes or {},
            scores=str(folder.relative_to(self.root)),
        )

    def fill(
        self,
        cell: Cell,
        value: float,
        *,
        stderr: float = 0.5,
        failed: str = "",
        losses: Sequence[float] = (),
        eval_losses: Sequence[float] = (),
    ) -> None:
        """What a planned run would have left at the cell's own place: records, logs, no answers.

        ``failed``: the reason of a training that failed, after which there is nothing but its record.
        """
        scores = Path(cell.scores)
        run = scores.parent.parent
        if cell.method != "base" and not (self.root / run).exists():
            self.record(str(run), "train", {}, {}, {"failed": failed} if failed else {})
            if losses:
                _write_log(self.root / run / "log.csv", losses, len(eval_losses) or 3)
            if eval_losses:
                _write_eval(self.root / run / "eval.csv", eval_losses, len(losses))
        if failed:
            return
        facts = {"value": value, "stderr": stderr, "n": 1000, "higher_is_better": True}
        self.record(str(scores.parent), "predict", {}, {}, {})
        self.record(str(scores), "score", {}, {}, facts)


SCHEMA = {
    "id": pl.String,
    "image": pl.String,
    "question": pl.String,
    "choices": pl.List(pl.String),
    "answer_index": pl.Int64,
    "answers": pl.List(pl.String),
    "target": pl.String,
    "question_type": pl.String,
    "answer_type": pl.String,
    "split": pl.String,
    "source": pl.String,
}


def _failed(failed: dict[str, str], stage: str) -> dict[str, str]:
    return {"failed": failed[stage]} if stage in failed else {}


def _train_facts(method: str, connector: str, losses: Sequence[float]) -> dict[str, Any]:
    own = 1000 * (1 + int(hashlib.sha256(method.encode()).hexdigest(), 16) % 90)
    return {
        "examples": 1000,
        "parameters": {"language": 3_000_000, "vision": 1_000_000, "connector": 50_000},
        "trainable": {
            "language": 0,
            "vision": 0,
            "connector": 50_000 * (connector == "tuned"),
            "method": own,
        },
        "seconds": 9.5,
        "steps": len(losses),
        "throughput": {"samples_per_s": 321.0, "tokens_per_s": 9000.0, "padding_share": 0.1},
    }


def _write_log(path: Path, losses: Sequence[float], epochs: int = 3) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["step", "epoch", "loss", "lr", "lr_connector", "tokens", "seconds"])
        for i, loss in enumerate(losses):
            writer.writerow([i + 1, 1 + epochs * i // len(losses), loss, 2e-4, 2e-5, 300, 0.3 * i])


def _write_eval(path: Path, losses: Sequence[float], steps: int) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["epoch", "step", "loss", "tokens"])
        for i, loss in enumerate(losses):
            writer.writerow([i + 1, steps * (i + 1) // len(losses), loss, 900])


def score_facts(scores: Sequence[float], higher_is_better: bool = True) -> dict[str, Any]:
    """Facts of a score record for a mean over examples."""
    n = len(scores)
    mean = sum(scores) / n
    stderr = math.sqrt(sum((s - mean) ** 2 for s in scores) / max(1, n - 1) / n)
    return {
        "value": mean,
        "n": n,
        "stderr": stderr,
        "interval": [mean - 1.96 * stderr, mean + 1.96 * stderr],
        "higher_is_better": higher_is_better,
        "extra": {},
    }


def picture(colour: tuple[int, int, int], side: int = 48) -> bytes:
    """A PNG of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(stream, "PNG")
    return stream.getvalue()


def example(store: FakeStore, name: str, i: int, **changes: Any) -> Example:
    """A question about a coloured square."""
    fields: dict[str, Any] = {
        "id": f"{name}-{i}",
        "image": store_image(store.images, picture((i * 17 % 256, 90, 160))),
        "question": f"What colour is square {i}?",
        "choices": [],
        "answer_index": -1,
        "answers": ["red"] * 10,
        "target": "red",
        "question_type": "",
        "answer_type": "",
        "split": "test",
        "source": json.dumps({"i": i}),
    }
    return Example(**(fields | changes))


def coin(share: float, n: int, seed: int) -> list[float]:
    """0 or 100, about ``share`` of them 100."""
    source = random.Random(seed)
    return [100.0 if source.random() < share else 0.0 for _ in range(n)]


def table_spec(cells: Sequence[Cell], **changes: Any) -> TabulateSpec:
    """A study over these cells: data sets across, model, method and connector down."""
    names = list(dict.fromkeys(cell.dataset for cell in cells))
    models = list(dict.fromkeys(cell.model for cell in cells))
    fields: dict[str, Any] = {
        "study": "trial",
        "title": "A <trial> & more",
        "columns": "dataset",
        "rows": ["model", "method", "connector"],
        "averages": ["all", "seen", "unseen"],
        "published": None,
        "published_rows": [],
        "models": [ModelInfo(name=m, title=f"Model {m}", parameters={}) for m in models],
        "datasets": [
            DatasetInfo(
                name=d,
                title=f"Set {d}",
                label=d.upper(),
                stands_for=f"paper_{d}",
                seen=i % 2 == 1,
                metric="exact_match",
            )
            for i, d in enumerate(names)
        ],
        "cells": list(cells),
    }
    return TabulateSpec(**(fields | changes))
