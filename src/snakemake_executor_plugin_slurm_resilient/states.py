"""What SLURM says about a job, and what that means: alive, done, or ended for one of several causes."""

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

START = "== start of SLURM job"
"""Begins the line that each start of a job leaves in its log: a requeued job appends to the same one."""
GO_ON = 75
"""Exit status (EX_TEMPFAIL of sysexits.h) of a command that wants to run again, such as one that saved its state
before its time limit."""
TAIL = 65536


class Cause(Enum):
    """How a job ended."""

    DONE = "done"
    PROGRAM = "its program failed"
    TIME = "its time limit was reached"
    MEMORY = "it needed more memory"
    PREEMPTED = "it was preempted"
    GO_ON = "it stopped in order to go on later"
    NODE = "its node failed"
    CANCELLED = "somebody cancelled it"
    LOST = "SLURM knows nothing of it any more"


ENDED = {
    "COMPLETED": Cause.DONE,
    "FAILED": Cause.PROGRAM,
    "TIMEOUT": Cause.TIME,
    "DEADLINE": Cause.TIME,
    "OUT_OF_MEMORY": Cause.MEMORY,
    "PREEMPTED": Cause.PREEMPTED,
    "NODE_FAIL": Cause.NODE,
    "BOOT_FAIL": Cause.NODE,
    "LAUNCH_FAILED": Cause.NODE,
    "RECONFIG_FAIL": Cause.NODE,
    "CANCELLED": Cause.CANCELLED,
    "REVOKED": Cause.CANCELLED,
}
"""Final states; every other word that is not in ``NOTHING`` is of a job that is still to end."""
NOTHING = {"", "UNKNOWN", "NONE"}
SHORT_OF_MEMORY = re.compile(
    r"^(slurmstepd|srun)[\w.-]*: error: .*(oom[-_ ]?kill|exceeded .*memory limit|out[- ]of[- ]memory)",
    re.IGNORECASE | re.MULTILINE,
)
GOES_ON = re.compile(rf"non-zero exit status {GO_ON}\b|\(exit code:? {GO_ON}\)")


@dataclass(frozen=True)
class Row:
    """A job as squeue or sacct has it."""

    state: str
    """One word, upper case."""
    reason: str = ""
    """Why it waits."""
    nodes: str = ""

    @property
    def known(self) -> bool:
        """Whether the state says anything."""
        return self.state not in NOTHING

    @property
    def ended(self) -> bool:
        """Whether it is final."""
        return self.state in ENDED


def word(state: str) -> str:
    """The state alone: ``CANCELLED by 0``, ``CANCELLED+`` and ``cancelled`` are ``CANCELLED``."""
    return (state.split() or [""])[0].rstrip("+").upper()


def rows(text: str) -> dict[str, Row]:
    """Rows of ``id|state|reason|nodes``, by id; later lines of one id count."""
    found = {}
    for line in text.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) >= 2 and parts[0]:
            parts += [""] * (4 - len(parts))
            found[parts[0]] = Row(state=word(parts[1]), reason=parts[2], nodes=parts[3])
    return found


def node_names(row: Row) -> str:
    """The nodes that a job ran on, fit for ``--exclude``; empty for one that never had any (``None assigned``)."""
    return (
        row.nodes
        if re.fullmatch(r"[\w.\-]+(\[[\d,\-]+\][\w.\-]*)?(,[\w.\-]+(\[[\d,\-]+\])?)*", row.nodes)
        else ""
    )


def last_log(path: Path) -> str:
    """The end of a job's log, from its last start on; empty where there is none."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - TAIL))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    return text[max(0, text.rfind(START)) :]


def cause_of(state: str, log: str, steps: str = "") -> Cause:
    """Why a job ended, by its final state, the log of its last start and the states of its steps (sacct's words).

    A job whose process was killed for its memory has the state FAILED or CANCELLED: only a step or a line of
    slurmstepd in the log says why.
    """
    cause = ENDED[state]
    if cause in (Cause.PROGRAM, Cause.CANCELLED):
        if "OUT_OF_MEMORY" in steps or SHORT_OF_MEMORY.search(log):
            return Cause.MEMORY
        if "DUE TO TIME LIMIT" in log:
            return Cause.TIME
        if "DUE TO PREEMPTION" in log:
            return Cause.PREEMPTED
        if "DUE TO NODE FAILURE" in log:
            return Cause.NODE
    if cause is Cause.PROGRAM and GOES_ON.search(log):
        return Cause.GO_ON
    return cause
