"""SLURM's programs, called so that no failure of theirs is taken for an answer."""

import re
import shlex
import subprocess
import time
from collections.abc import Callable
from threading import Event

QUERY_SECONDS = 60
FIRST_WAIT, LONGEST_WAIT = 2.0, 60.0
LIVE_FORMAT = "%i|%T|%r|%k"
STATE_FORMAT = "%i|%T|%r|%N"

BUSY = re.compile(
    r"unable to contact slurm controller|socket timed out|timed? ?out|connection refused|unable to connect"
    r"|temporarily|try again|zero bytes|unexpected message|transport|communication connection|slurm backup"
    r"|controller (not|is)|job submit limit|MaxSubmit|MaxJobs|AssocMaxSubmit|QOSMaxSubmit|too many|reached",
    re.IGNORECASE,
)
"""What sbatch says when the next try may well do: SLURM is away or busy, or has enough jobs for now."""
UNKNOWN_TRIES = 4
"""For what is neither that nor known."""
REFUSED = re.compile(
    r"invalid|not available|not permitted|can ?not be satisfied|denied|unrecognized|unknown|illegal|no such|violates",
    re.IGNORECASE,
)


class Refused(Exception):
    """SLURM does not take the job, in SLURM's words."""


class Stopped(Exception):
    """Snakemake ends."""


def ask(*command: str) -> str | None:
    """Output of a query; None where it failed, which says nothing about any job."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def submit(
    call: str, script: str, patience: float, stop: Event, again: Callable[[str, float], str | None]
) -> str:
    """Submit and return sbatch's output, waiting longer and longer while SLURM does not answer.

    ``again`` is told what went wrong and for how long, before each further try: what it returns is the id of the job,
    if it was taken after all. Raises ``Refused`` and ``Stopped``.
    """
    began, wait, tries = time.monotonic(), FIRST_WAIT, 0
    while True:
        tries += 1
        try:
            done = subprocess.run(
                shlex.split(call), input=script, capture_output=True, text=True, timeout=2 * QUERY_SECONDS
            )
            said = done.stderr.strip()
            if done.returncode == 0 and done.stdout.strip():
                return done.stdout
        except subprocess.TimeoutExpired:
            said = "sbatch timed out"
        except OSError as error:
            raise Refused(f"sbatch: {error}") from None
        said = " ".join(said.split()) or "sbatch failed and said nothing"
        busy = BUSY.search(said) is not None
        over = time.monotonic() - began >= patience
        if over or (not busy and (REFUSED.search(said) or tries >= UNKNOWN_TRIES)):
            raise Refused(said)
        if stop.wait(wait):
            raise Stopped
        wait = min(2 * wait, LONGEST_WAIT)
        found = again(said, time.monotonic() - began)
        if found is not None:
            return found


def minutes(limit: str) -> int | None:
    """A time limit as SLURM writes it (``1-12:00:00``, ``30:00``) in minutes; None for ``infinite`` and the like."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit.strip())
    if not found:
        return None
    days, hours, mins, _ = (int(part or 0) for part in found.groups())
    return days * 1440 + hours * 60 + mins
