"""The one exception for what a user can mend."""

import difflib
from collections.abc import Iterable
from typing import Any

FINGERPRINT_EXEMPT = "says what went wrong; a result is what went right"


class UserError(Exception):
    """Bad input, said in one line: what is wrong, where it is, what to do.

    Scripts and the command line print it as ``error: ...`` and exit with status 1, without a traceback.
    """


class RunFailed(UserError):
    """A run that ended without a result for reasons of its own, such as a diverged loss: the same every time.

    It leaves a record whose facts hold the reason under ``failed``; what is made from it fails with the same
    reason, tables show it, and the other runs go on.
    """


class Suspended(Exception):
    """A run that stopped before its end, for want of time, and left a checkpoint: started again, it goes on."""


class OutOfMemory(UserError):
    """Memory ran out in one of several processes; ``micro_batch`` is what was tried."""

    def __init__(self, micro_batch: int) -> None:
        super().__init__(
            f"out of memory at micro-batch {micro_batch}: set a smaller micro_batch or gradient_checkpointing: true"
        )
        self.micro_batch = micro_batch


def did_you_mean(name: Any, valid: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the nearest valid name, else the list of them where it is short."""
    names = sorted(valid)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there is {', '.join(names)}" if 0 < len(names) <= 24 else ""
