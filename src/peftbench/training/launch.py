"""One training as several processes: started here, on this node or by ``srun`` on several, watched, and ended together.

The script of a stage starts itself once more per process, with torch's usual variables (RANK, WORLD_SIZE,
MASTER_ADDR ...), as torchrun would. It stays outside: it holds the lock, waits, hands SIGTERM on, and leaves the
record. Each process writes to a file how it ended; where one fails, the others, which would wait for it for ever, are
ended, and its reason becomes the run's one line. Where memory ran out, all start again with half the micro-batch.

Not torchrun itself: it takes the second of SLURM's two SIGTERMs as a reason to leave its processes alone in the midst
of their checkpoints, and imports torch in a process that only waits.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from peftbench.errors import OutOfMemory, RunFailed, Suspended, UserError
from peftbench.spec import Execution

FINGERPRINT_EXEMPT = "starts the processes that compute; how many there are changes no result"
RANKS = "PEFTBENCH_RANKS"
"""Environment variable of a process of a launch: JSON with its folders."""
TICKET = "ticket.json"
GRACE = 10.0
"""Seconds that the others get after one process has failed."""
SUM, HIGHEST = ("cpu_seconds", "gpu_seconds"), ("peak_memory", "peak_gpu_memory")
"""What the record gives of all processes together, and of the one that has most."""


class Ended(msgspec.Struct, kw_only=True):
    """How one process of a launch ended."""

    facts: dict[str, Any] | None = None
    measured: dict[str, Any] = {}
    """What ``Meter`` gives."""
    failed: str = ""
    """Reason of a ``RunFailed``."""
    suspended: str = ""
    error: str = ""
    """One line of a ``UserError``, or of a bug."""
    micro_batch: int | None = None
    """Where memory ran out: what was tried."""


def is_rank() -> bool:
    """Whether this process is one of a launch."""
    return RANKS in os.environ


# --- the process that waits ---


def launch(
    ticket: str, work: Path, staging: Path, execution: Execution, interrupted: type[BaseException]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run this script as several processes; the facts of the first one, and what all of them took.

    ``ticket`` is the text of theirs, ``work`` the folder that they fill. Raises what they ended with:
    ``RunFailed``, ``Suspended``, ``UserError``; ``interrupted`` where SIGTERM came before the first step.
    """
    halved = 0
    while True:
        try:
            facts, measured = _launch_once(ticket, work, staging, execution, interrupted)
        except OutOfMemory as error:
            if error.micro_batch == 1:
                raise UserError(str(error)) from None
            halved += 1
            execution = msgspec.structs.replace(execution, micro_batch=error.micro_batch // 2)
            print(
                f"out of memory at micro-batch {error.micro_batch}: all processes start again with "
                f"{execution.micro_batch}",
                file=sys.stderr,
                flush=True,
            )
            continue
        return facts | {"halved": facts.get("halved", 0) + halved}, measured


def _launch_once(
    ticket: str, work: Path, staging: Path, execution: Execution, interrupted: type[BaseException]
) -> tuple[dict[str, Any], dict[str, Any]]:
    staging.mkdir(parents=True, exist_ok=True)
    reports = Path(tempfile.mkdtemp(dir=staging, prefix="processes-"))
    world = execution.processes * execution.nodes
    try:
        (reports / TICKET).write_text(ticket, encoding="utf-8")
        processes = _start(work, reports, execution)
        with _ending(processes), _handing_on(processes) as signalled:
            blamed = _watch(processes)
        ended = [_report(reports, rank) for rank in range(world)]
        _raise(ended, processes, blamed, interrupted if signalled else None)
        assert ended[0] is not None and ended[0].facts is not None
        return ended[0].facts, _measured([one for one in ended if one is not None])
    finally:
        shutil.rmtree(reports, ignore_errors=True)


def _start(work: Path, reports: Path, execution: Execution) -> list[subprocess.Popen[bytes]]:
    """The processes of this node; of several nodes the one ``srun`` that starts them."""
    command = [sys.executable, *_replaced(sys.argv, reports / TICKET, execution)]
    folders = {"work": str(work.resolve()), "reports": str(reports.resolve()), "parent": 0}
    several = execution.nodes > 1
    common = {
        "WORLD_SIZE": str(execution.processes * execution.nodes),
        "LOCAL_WORLD_SIZE": str(execution.processes),
        "MASTER_ADDR": socket.gethostname() if several else "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": str(execution.threads),
        "PEFTBENCH_WORKER": "none",
    }
    if execution.device == "cpu":
        common["DS_ACCELERATOR"] = "cpu"
    if several:
        return [_popen([*_srun(execution), *command], common | {RANKS: json.dumps(folders)})]
    folders["parent"] = os.getpid()
    return [
        _popen(command, common | {RANKS: json.dumps(folders), "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(execution.processes)
    ]


def _popen(command: list[str], variables: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env=os.environ | variables, stdin=subprocess.DEVNULL)


def _srun(execution: Execution) -> list[str]:
    """One task per process, on all nodes of the job that this process is part of."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job or shutil.which("srun") is None:
        raise UserError(
            f"execution: nodes: {execution.nodes} needs a SLURM job with as many nodes, and this is none: set nodes "
            "to 1, or submit it (profiles/slurm)"
        )
    nodes, tasks = execution.nodes, execution.nodes * execution.processes
    return [
        "srun",
        f"--jobid={job}",
        f"--nodes={nodes}",
        f"--ntasks={tasks}",
        f"--ntasks-per-node={execution.processes}",
        "--overlap",  # this process itself may be a step that holds the job's resources
        "--kill-on-bad-exit=1",
        "--cpu-bind=none",
    ]


def _replaced(argv: list[str], ticket: Path, execution: Execution) -> list[str]:
    """The script's arguments, with the ticket as a file and the execution settings as they are by now."""
    result, skip = [str(Path(argv[0]).resolve())], False
    for word in argv[1:]:
        if skip:
            skip = False
        elif word in ("--ticket", "--execution"):
            skip = True
        elif not word.startswith(("--ticket=", "--execution=")):
            result.append(word)
    settings = json.dumps(msgspec.to_builtins(execution))
    return [*result, "--ticket", str(ticket), "--execution", settings]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _watch(processes: list[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all; the number of the first that failed. The others are ended soon after it."""
    blamed: int | None = None
    deadline = float("inf")
    while any(process.poll() is None for process in processes):
        if blamed is None:
            failed = [i for i, p in enumerate(processes) if p.returncode not in (None, 0)]
            if failed:
                # one that was killed is the cause of what the others say of a lost connection
                blamed = min(failed, key=lambda i: (processes[i].returncode > 0, i))
                deadline = time.monotonic() + GRACE
        if time.monotonic() > deadline:
            for process in processes:
                if process.poll() is None:
                    process.kill()
            deadline = float("inf")
        time.sleep(0.05)
    if blamed is None:
        failed = [i for i, p in enumerate(processes) if p.returncode]
        blamed = min(failed, key=lambda i: (processes[i].returncode > 0, i)) if failed else None
    return blamed


@contextlib.contextmanager
def _ending(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Leave no process behind, however this ends."""
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate() if len(processes) == 1 else process.kill()
        for process in processes:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _handing_on(processes: list[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Give SIGTERM to all processes, as often as it comes; the list is not empty once it came."""
    seen: list[int] = []

    def hand_on(number: int, frame: Any) -> None:
        seen.append(number)
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    previous = signal.signal(signal.SIGTERM, hand_on)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGTERM, previous)


def _report(reports: Path, rank: int) -> Ended | None:
    """How a process says that it ended; None where it could not."""
    try:
        return msgspec.convert(json.loads((reports / f"{rank}.json").read_bytes()), Ended)
    except FileNotFoundError:
        return None


def _raise(
    ended: list[Ended | None],
    processes: list[subprocess.Popen[bytes]],
    blamed: int | None,
    interrupted: type[BaseException] | None,
) -> None:
    """Raise what the processes ended with, unless all is well."""
    reports = [one for one in ended if one is not None]
    short = [one.micro_batch for one in reports if one.micro_batch is not None]
    if short:
        raise OutOfMemory(min(short))
    for one in reports:
        if one.failed:
            raise RunFailed(one.failed)
    if len(reports) == len(ended) and all(one.suspended for one in reports):
        raise Suspended(next(one.suspended for one in reports))
    if all(one is not None and one.facts is not None for one in ended) and blamed is None:
        return
    if interrupted is not None:
        raise interrupted
    order = ([blamed] if blamed is not None and len(processes) == len(ended) else []) + [*range(len(ended))]
    for rank in order:
        report, where = ended[rank], f"process {rank + 1} of {len(ended)}"
        code = processes[rank].returncode if len(processes) == len(ended) else None
        if report is not None and report.error:
            raise UserError(f"{where}: {report.error}")
        if report is None and code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = ": was the memory used up?" if name == "SIGKILL" else ""
            raise UserError(f"{where} was ended by {name}{hint}")
    raise UserError(
        f"a process of {len(ended)} ended without a word (status {[p.returncode for p in processes]}): see the log"
    )


def _measured(ended: list[Ended]) -> dict[str, Any]:
    """What all processes took together."""
    found = dict(ended[0].measured)
    for names, of_all in ((SUM, sum), (HIGHEST, max)):
        for name in names:
            found[name] = round(of_all(one.measured[name] for one in ended), 3)
    return {name: found[name] for name in (*SUM, *HIGHEST, "device")}


# --- the processes that compute ---


def rank_folder() -> Path:
    """The folder that the processes of a launch fill."""
    return Path(json.loads(os.environ[RANKS])["work"])


def prepare_rank() -> None:
    """Name this process by torch's variables where ``srun`` started it; let it end with its launcher elsewhere."""
    for name, slurm in (("RANK", "SLURM_PROCID"), ("LOCAL_RANK", "SLURM_LOCALID")):
        if name not in os.environ:
            os.environ[name] = os.environ[slurm]
    parent = json.loads(os.environ[RANKS])["parent"]
    if parent:
        with contextlib.suppress(Exception):
            ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(1)


def run_rank(
    work: Callable[[], dict[str, Any]],
    measure: Callable[[], dict[str, Any]],
    log: Path | None,
) -> int:
    """Do one process's part, and leave word of how it ended; its exit status. A bug's traceback goes to ``log``."""
    reports = Path(json.loads(os.environ[RANKS])["reports"])
    status = 1
    try:
        ended = Ended(facts=work())
        status = 0
    except OutOfMemory as error:
        ended = Ended(micro_batch=error.micro_batch)
    except RunFailed as failure:
        ended = Ended(failed=str(failure))
    except UserError as error:
        ended = Ended(error=str(error))
    except Suspended as stop:
        ended, status = Ended(suspended=str(stop)), 75
    except Exception as error:
        with contextlib.ExitStack() as stack:
            stream = sys.stderr if log is None else stack.enter_context(log.open("a", encoding="utf-8"))
            traceback.print_exc(file=stream)
        first = str(error).splitlines()[0] if str(error) else ""
        ended = Ended(error=f"{type(error).__name__}: {first}")
    ended.measured = measure()
    path = reports / f"{os.environ['RANK']}.json"
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.encode(ended))
    partial.replace(path)
    return status
