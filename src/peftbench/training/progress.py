"""A line every few seconds, so that a person sees that it works and a log file stays short."""

from __future__ import annotations

import sys
import time

from peftbench.running import tell

FINGERPRINT_EXEMPT = "tells how far a job is; does not compute"
INTERVAL = 5.0
"""Seconds between two lines."""


class Progress:
    """Counts steps of a known total on stderr; silent unless ``enabled`` (one process of several speaks).

    ``done`` steps were made by an earlier start.
    """

    def __init__(self, label: str, total: int, enabled: bool = True, done: int = 0) -> None:
        self.label, self.total, self.enabled, self.first = label, total, enabled, done
        self.start = self.last = time.monotonic()

    def step(self, done: int, note: str = "") -> None:
        """Say how far it is, if the last line is old enough or this is the end."""
        if not self.enabled:
            return
        now = time.monotonic()
        elapsed = now - self.start
        own = done - self.first
        left = elapsed / own * (self.total - done) if own else 0.0
        tell(self.label, done, self.total, note, left)
        if now - self.last < INTERVAL and done < self.total:
            return
        self.last = now
        note = f" {note}" if note else ""
        line = f"{self.label} {done}/{self.total}{note}, {elapsed:.0f} s, {left:.0f} s left"
        print(line, file=sys.stderr, flush=True)
