"""What a trainer is at the end of a step, taken out of it and put into a fresh one; and how that is written."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from peftbench.training.loop import Trainer

NOT_PLAIN = ("loss_scaler", "zero_stage", "param_slice_mappings")
"""Entries of DeepSpeed's optimizer state that are objects of its own; a fresh optimizer has the same."""


def capture(trainer: Trainer) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a trainer is at a step's end: the part that all processes share (in the first one), and its own."""
    import torch

    optimizer = trainer.optimizer.optimizer
    shared: dict[str, Any] = {}
    own: dict[str, Any] = {"counted": (trainer.padding, trainer.positions), "random": _random(trainer)}
    dynamics = getattr(trainer, "dynamics", None)
    if dynamics is not None:
        own["dynamics"] = dynamics.state_dict()
    state = optimizer.state_dict()
    if trainer.zero_stage:
        own["optimizer"] = {key: value for key, value in state.items() if key not in NOT_PLAIN}
    if trainer.rank == 0:
        shared["micro_batch"] = trainer.micro_batch
        shared["halved"] = trainer.halved
        if not trainer.zero_stage:
            shared["optimizer"] = state
        if trainer.zero_stage != 3:  # there the optimizer's parts are the weights
            with torch.no_grad():
                shared["weights"] = {name: p.detach() for name, p in trainer.tuned.trained.items()}
    return shared, own


def restore(trainer: Trainer, shared: dict[str, Any], own: dict[str, Any]) -> None:
    """Make a fresh trainer what the captured one was."""
    import numpy as np
    import torch

    optimizer = trainer.optimizer.optimizer
    if trainer.zero_stage != 3:
        with torch.no_grad():
            for name, parameter in trainer.tuned.trained.items():
                parameter.copy_(shared["weights"][name])
    if not trainer.zero_stage:
        optimizer.load_state_dict(shared["optimizer"])
    else:
        fresh = {key: value for key, value in optimizer.state_dict().items() if key in NOT_PLAIN}
        if trainer.zero_stage == 3:
            optimizer.checkpoint_event_prologue()
        # DeepSpeed wants the states of all processes and reads its own.
        states = {trainer.rank: {**fresh, **own["optimizer"]}}
        optimizer.load_state_dict(states, load_optimizer_states=True, load_from_fp32_weights=True)
        if trainer.zero_stage == 3:
            optimizer.checkpoint_event_epilogue()
    trainer.micro_batch = min(trainer.micro_batch, shared["micro_batch"])
    trainer.halved = shared["halved"]
    trainer.padding, trainer.positions = own["counted"]
    dynamics = getattr(trainer, "dynamics", None)
    if dynamics is not None:
        dynamics.load_state_dict(own["dynamics"])
    states = own["random"]
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], trainer.accelerator.device)
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))


def _random(trainer: Trainer) -> dict[str, Any]:
    """The states of all random number generators, as plain data and tensors."""
    import numpy as np
    import torch

    name, keys, *rest = np.random.get_state()
    states = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (name, [int(key) for key in keys], *rest),
    }
    if trainer.accelerator.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(trainer.accelerator.device)
    return states


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by relative path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                found[str(path.relative_to(folder))] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


class _Hashing:
    """A file to write that knows its sha256. Errors wait until the end: torch's writer must not meet them."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.digest = stream, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self.error is None:
            self.digest.update(view)
            try:
                self.stream.write(view)
            except OSError as error:
                self.error = error
        return len(view)

    def flush(self) -> None:
        """Nothing: it is synced at the end."""


def save_content(content: dict[str, Any], path: Path) -> str:
    """Write and sync a file; its sha256. ``OSError`` where that fails."""
    import torch

    with path.open("wb") as stream:
        hashing = _Hashing(stream)
        torch.save(content, cast(IO[bytes], hashing))
        if hashing.error is not None:
            raise hashing.error
        stream.flush()
        os.fsync(stream.fileno())
    return hashing.digest.hexdigest()


def layout_of(trainer: Trainer) -> dict[str, Any]:
    """How a run is spread: its state can be taken up in the same way alone."""
    return {
        "processes": trainer.world,
        "zero_stage": trainer.zero_stage,
        "device": trainer.accelerator.device.type,
    }


def in_words(layout: dict[str, Any]) -> str:
    """A layout, for a message."""
    count, stage = layout.get("processes"), layout.get("zero_stage")
    zero = "" if stage is None else f", ZeRO stage {stage}"
    return f"{count} process{'es' if count != 1 else ''} ({layout.get('device')}{zero})"
