"""A run from its first step to its last, or from its checkpoint: epochs, logs, held-out losses, kept weights."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.errors import RunFailed
from peftbench.training.adapt import save
from peftbench.training.batches import Encoded, global_batches
from peftbench.training.checkpoint import Checkpoints, State
from peftbench.training.distributed import whole_parameters
from peftbench.training.optimizer import lr_factor, set_learning_rates, warmup_steps
from peftbench.training.progress import Progress
from peftbench.training.run_log import EVAL, EVAL_COLUMNS, LOG, LOG_COLUMNS, RunLog
from peftbench.training.stepping import merge_back

if TYPE_CHECKING:
    from peftbench.training.loop import Trainer


def run_epochs(
    trainer: Trainer,
    eval_set: Sequence[Encoded],
    work: Path | None,
    base_name: str,
    staging: Path | None = None,
    interval: float = 0.0,
) -> dict[str, Any]:
    """Train through all epochs; return losses and throughput.

    ``work`` is where logs and the epochs' weights go (None: another process writes). With a ``staging`` folder the run
    goes on from the checkpoint that is there, and leaves one every ``interval`` seconds; ``Suspended`` where it has to
    stop early.
    """
    spec, train_set = trainer.spec, trainer.examples
    lengths = [len(encoded.ids) for encoded in train_set]
    total = math.ceil(len(train_set) / spec.global_batch) * spec.epochs
    per_epoch = total // spec.epochs
    warmup = warmup_steps(total, spec.optim.warmup_ratio)
    with (
        Checkpoints(trainer, staging, interval) as checkpoints,
        RunLog(work, LOG, LOG_COLUMNS) as log,
        RunLog(work if eval_set else None, EVAL, EVAL_COLUMNS) as evals,
    ):
        state = checkpoints.resume(total)
        log.begin(state.log)
        evals.begin(state.evals)
        progress = Progress("train", total, enabled=work is not None, done=state.step)
        start = time.monotonic() - state.seconds

        def now() -> State:
            state.seconds = time.monotonic() - start
            state.log, state.evals = log.text(), evals.text()
            return state

        for epoch in range(state.epoch, spec.epochs):
            batches = list(global_batches(lengths, spec.global_batch, spec.seed, epoch))
            batches = batches[state.step - epoch * per_epoch :]
            for indices, items in zip(batches, trainer.items(batches, train_set), strict=True):
                begun = time.monotonic()
                batch = [train_set[i] for i in indices]
                factor = lr_factor(spec.optim.schedule, state.step, warmup, total)
                rates = set_learning_rates(trainer.optimizer, factor)
                loss = trainer.step(items, batch)
                if not math.isfinite(loss):
                    raise RunFailed(
                        f"training diverged: the loss is {loss} at step {state.step + 1} of {total}: "
                        "lower the learning rate"
                    )
                state.step, state.last = state.step + 1, loss
                state.first = loss if state.first is None else state.first
                ended = time.monotonic()
                tokens = sum(encoded.supervised for encoded in batch)
                lr = (rates.get("method", 0.0), rates.get("connector", 0.0))
                log.row(state.step, epoch + 1, loss, *lr, tokens, round(ended - start, 3))
                progress.step(state.step, f"loss {loss:.4f}")
                if state.step < total or eval_set:  # else the end is nearer than a checkpoint
                    checkpoints.after_step(now, ended - begun)
            final = epoch + 1 == spec.epochs
            # a method that changes weights after training; what a checkpoint holds is how they were trained
            put_back = merge_back(trainer, final and not eval_set)
            if eval_set:
                loss_of_all = trainer.evaluate(eval_set, checkpoints.stop_wanted)
                if loss_of_all is None:
                    put_back()
                    checkpoints.after_step(now, 0.0)
                    raise AssertionError("asked to stop, and then not")
                state.evaluations.append(loss_of_all)
                evals.row(epoch + 1, state.step, loss_of_all, sum(e.supervised for e in eval_set))
            if spec.keep_epochs and not final:
                _keep(trainer, checkpoints, state, epoch + 1, work, base_name)
            if not final:
                put_back()
            state.epoch = epoch + 1
        seconds = time.monotonic() - start
        if work is not None:
            checkpoints.bring_kept(state, work)
    return {
        "steps": total,
        "seconds": round(seconds, 3),
        "losses": {"first": state.first, "last": state.last, "eval": state.evaluations},
        "throughput": {
            "samples_per_s": round(len(train_set) * spec.epochs / seconds, 3),
            "tokens_per_s": round(sum(lengths) * spec.epochs / seconds, 3),
            "padding_share": round(trainer.padding / max(1, trainer.positions), 5),
        },
        "restarts": checkpoints.facts(),
    }


def _keep(
    trainer: Trainer, checkpoints: Checkpoints, state: State, epoch: int, work: Path | None, base_name: str
) -> None:
    """Keep the weights as they are after an epoch. All processes come here: under ZeRO-3 each holds a part."""

    def write(folder: Path) -> None:
        with whole_parameters(trainer.zero_stage, trainer.tuned.trained.values()):
            if work is not None:
                save(trainer.tuned, folder, base_name, final=False)

    hashes = checkpoints.keep_epoch(epoch, work, write)
    state.kept = {**state.kept, str(epoch): hashes}
