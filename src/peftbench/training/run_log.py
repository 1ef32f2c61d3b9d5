"""The two CSV files that a run leaves: losses step by step, and the loss on held-out examples per epoch."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

LOG, EVAL = "log.csv", "eval.csv"
LOG_COLUMNS = ("step", "epoch", "loss", "lr", "lr_connector", "tokens", "seconds")
"""``loss`` is the mean over the step's supervised ``tokens``, ``seconds`` counts from the start, pauses left out."""
EVAL_COLUMNS = ("epoch", "step", "loss", "tokens")


class RunLog:
    """A CSV file written line by line; nothing where ``folder`` is None."""

    def __init__(self, folder: Path | None, name: str, columns: Sequence[str]) -> None:
        self.path = folder / name if folder else None
        self.columns = columns
        self.file: IO[str] | None = None

    def begin(self, so_far: str = "") -> None:
        """Write what an earlier start had written, or the heading."""
        if self.file is None:
            return
        if so_far:
            self.file.write(so_far)
            self.file.flush()
        else:
            self.row(*self.columns)

    def row(self, *values: Any) -> None:
        """Add a line."""
        if self.file is not None:
            csv.writer(self.file, lineterminator="\n").writerow(values)
            self.file.flush()

    def text(self) -> str:
        """All that was written; empty where nothing is."""
        return "" if self.path is None else self.path.read_text(encoding="utf-8")

    def __enter__(self) -> RunLog:
        if self.path is not None:
            self.file = self.path.open("w", encoding="utf-8", newline="")
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()
