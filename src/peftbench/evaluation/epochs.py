"""Which epoch's weights answer: by number, or by the evaluation loss."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from peftbench.errors import UserError

if TYPE_CHECKING:
    from peftbench.spec import Epoch


def epoch_of(run_dir: Path, wanted: Epoch) -> int | None:
    """The number of the epoch that ``wanted`` names in a run; None for the last one.

    ``best`` has the lowest evaluation loss (the first of equals); ``near1`` to ``near4`` are the others in the order
    of their distance to it, of two equally near the later one first (the paper's section 5.5 takes the four
    "overfitting epochs" nearest to the minimum). Raises ``UserError`` where the run logged no evaluation loss or
    has too few epochs.
    """
    if wanted == "last" or isinstance(wanted, int):
        return None if wanted == "last" else wanted
    losses = evaluation_losses(run_dir)
    best = min(losses, key=lambda epoch: (losses[epoch], epoch))
    if wanted == "best":
        return best
    others = sorted(
        (epoch for epoch in losses if epoch != best), key=lambda epoch: (abs(epoch - best), -epoch)
    )
    place = int(wanted.removeprefix("near"))
    if place > len(others):
        raise UserError(f"{run_dir}: epoch {wanted}: the run has {len(losses)} epochs: train longer")
    return others[place - 1]


def evaluation_losses(run_dir: Path) -> dict[int, float]:
    """Epoch -> evaluation loss of a run, from its ``eval.csv``."""
    path = run_dir / "eval.csv"
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            losses = {int(row["epoch"]): float(row["loss"]) for row in csv.DictReader(stream)}
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{path}: no evaluation losses ({error}): set eval_loss: true, or delete the run and train again"
        ) from None
    if not losses:
        raise UserError(f"{path}: empty: delete the run and train again")
    return losses


def weights_of(run_dir: Path, epoch: int | None) -> Path:
    """Folder of the weights after an epoch: the run's own for the last one."""
    if epoch is None:
        return run_dir
    folder = run_dir / "epochs" / str(epoch)
    if folder.is_dir():
        return folder
    kept = [path.name for path in (run_dir / "epochs").glob("*")]
    if kept and epoch == max(map(int, kept)) + 1:
        return run_dir  # the last epoch, by its number
    raise UserError(f"{folder}: the weights of epoch {epoch} were not kept: delete the run and train again")
