"""The best of some trial runs, by their validation loss: the result is a run like any other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.errors import RunFailed
from peftbench.store import FAILED, RECORD, link_or_copy, read_record

if TYPE_CHECKING:
    from peftbench.spec import ChooseSpec


def choose_run(spec: ChooseSpec, trials: list[Path], out_dir: Path) -> dict[str, Any]:
    """Link the files of the trial with the lowest last validation loss into ``out_dir``; the facts of its record.

    Of equal losses the lower learning rate counts. Trials that failed are left out and said so; ``RunFailed``
    where all did.
    """
    losses: dict[int, float] = {}
    failed: dict[str, str] = {}
    records = [read_record(folder / RECORD) for folder in trials]
    for place, record in enumerate(records):
        if FAILED in record.facts:
            failed[f"{spec.trials[place]:g}"] = str(record.facts[FAILED])
        else:
            losses[place] = float(record.facts["losses"]["eval"][-1])
    if not losses:
        raise RunFailed(f"all {len(trials)} trials failed; the first: {next(iter(failed.values()))}")
    best = min(losses, key=lambda place: (losses[place], spec.trials[place]))
    for path in sorted(trials[best].rglob("*")):
        relative = path.relative_to(trials[best])
        # answers of the trial itself, if a study asked for them, are no part of the run
        own = not relative.parts[0].startswith(("predictions-", "."))
        if path.is_file() and relative.name != RECORD and own:
            target = out_dir / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(path, target)
    chosen = {
        "learning_rate": spec.trials[best],
        "digest": records[best].digest,
        "validation_losses": {f"{spec.trials[place]:g}": loss for place, loss in losses.items()},
        "failed_trials": failed,
    }
    return {**records[best].facts, "chosen": chosen}
