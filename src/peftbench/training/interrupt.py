"""When a training must stop early: SIGTERM, and the end of the time that SLURM gives a job.

SLURM sends SIGTERM at a time limit, on preemption and on ``scancel``, often twice, and SIGKILL after ``KillWait`` (30
seconds unless the site says otherwise). So the first one asks the loop to stop at the next step, and further ones
change nothing. A checkpoint that takes longer than that must be begun before the limit, for which the limit is asked
of SLURM: its end on the controller's clock, less the time on that same clock, as the clock of a node may be wrong.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from typing import Any

FINGERPRINT_EXEMPT = "ends a run early; what it is at its end does not depend on that"
KILL_WAIT = 30.0
"""Seconds from SIGTERM to SIGKILL under SLURM's defaults."""
ASKING = 10.0
"""Seconds that SLURM gets for an answer."""


class Notice:
    """Whether to stop, and why. As a context it listens for SIGTERM (in a process's main thread)."""

    def __init__(self) -> None:
        self.reason = ""
        self.started = time.monotonic()
        self.end: float | None = None
        """When the time is up, on the monotonic clock; None: nobody said."""
        self._previous: Any = None
        self._listening = False

    def ask_for_the_end(self) -> None:
        """Find out how long this job may run, if SLURM runs it."""
        left = seconds_left()
        self.end = None if left is None else time.monotonic() + left

    def check(self, needed: float) -> str:
        """Why to stop now, or nothing. ``needed``: seconds until a checkpoint begun now or a step later is written.

        Of a short time limit half is used in any case, or each start would only write its checkpoint.
        """
        if not self.reason and self.end is not None:
            margin = min(KILL_WAIT + needed, (self.end - self.started) / 2)
            if time.monotonic() > self.end - margin:
                self.reason = "the time limit of the job"
        return self.reason

    def _hear(self, number: int, frame: Any) -> None:
        self.reason = self.reason or signal.Signals(number).name

    def __enter__(self) -> Notice:
        self._listening = threading.current_thread() is threading.main_thread()
        if self._listening:
            self._previous = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._listening:
            signal.signal(signal.SIGTERM, self._previous)


def seconds_left() -> float | None:
    """Seconds until SLURM ends the job that this process is part of; None: no such job, no limit or no answer."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if not job:
        return None
    end = _seconds(os.environ.get("SLURM_JOB_END_TIME", ""))
    if end is None:
        with contextlib.suppress(ValueError):
            end = time.mktime(
                time.strptime(_answer("squeue", "-h", "-j", job, "-o", "%e"), "%Y-%m-%dT%H:%M:%S")
            )
    if end is None:
        return None
    said = re.search(r"\((\d{9,})\)", _answer("sdiag"))
    now = float(said.group(1)) if said else time.time()
    return max(0.0, end - now)


def _seconds(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _answer(*command: str) -> str:
    """What a command prints; nothing where it fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASKING, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
