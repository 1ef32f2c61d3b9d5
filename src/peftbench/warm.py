"""The warm worker's client: run this script as a fork of a process that has imported torch once.

Importing torch, transformers and peft takes five seconds, more than many small CPU jobs. The first job starts
a server (``warm_server.py``) that imports them and nothing of ours, and goes when it has been idle for a
while. Every job is a fork of it that starts this very script anew: with its own arguments, environment,
folder and streams, and with peftbench as it is on disk at that moment. A fork gives the same bits as a
process of its own.

Where the worker cannot be had, the script simply goes on in its own process.
"""

import array
import contextlib
import fcntl
import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.spec import Execution

FINGERPRINT_EXEMPT = "carries jobs; does not compute results"
OFF = "PEFTBENCH_WORKER"
"""Environment variable: ``none`` keeps a script in its own process."""
IMPORT_TIME = (
    "HF_",
    "TRANSFORMERS_",
    "TORCH",
    "PYTORCH",
    "CUDA",
    "OMP_",
    "MKL_",
    "LD_",
    "PYTHON",
    "DS_",
    "PEFTBENCH_WORKER_",
    "SLURM_JOB_ID",
)
"""Prefixes of variables that libraries read when imported: clients that differ there share no server. Nor do
SLURM jobs: a server ends with the allocation that it was started in."""
SERVER = Path(__file__).with_name("warm_server.py")
START_SECONDS = 120.0


def run_in_worker(execution: Execution) -> int | None:
    """Run this script, with its arguments, in a fork of the warm worker; its exit status.

    None where it must go on here: it is such a fork already, the worker is switched off or cannot be started,
    or a GPU may be used (CUDA contexts do not survive a fork).
    """
    if execution.worker == "none" or os.environ.get(OFF) == "none" or may_use_gpu(execution.device):
        return None
    if not hasattr(os, "fork") or not hasattr(socket, "send_fds"):
        return None
    request = {
        "argv": [str(Path(sys.argv[0]).resolve()), *sys.argv[1:]],
        "cwd": str(Path.cwd()),
        "environment": dict(os.environ) | {OFF: "none"},
        "path": sys.path,
        "umask": _umask(),
    }
    return submit(request)


def may_use_gpu(device: str) -> bool:
    """Whether a job with this setting could touch a GPU; told from device files, without importing torch."""
    if device != "auto" or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return device == "cuda"
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def submit(request: dict[str, Any]) -> int | None:
    """Hand a request to the worker and wait; None where no worker took it."""
    for attempt in range(3):
        try:
            connection = _connect(start=True)
        except OSError:
            return None
        with connection:
            try:
                _send(connection, request)
                if connection.recv(1) == b"S":
                    return _wait(connection)
            except (ConnectionError, TimeoutError):
                pass
        time.sleep(0.05 * attempt)  # the server was about to leave: the next attempt starts another
    return None


def _wait(connection: socket.socket) -> int:
    """Exit status of the running fork; signals that reach this process are handed on to it."""

    def hand_on(number: int, frame: Any) -> None:
        with contextlib.suppress(OSError):
            connection.send(b"I" if number == signal.SIGINT else b"T")

    previous = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        connection.settimeout(None)
        answer = b""
        while len(answer) < 4:
            piece = connection.recv(4 - len(answer))
            if not piece:
                raise UserError("the warm worker went away during this job: run again, or with worker: none")
            answer += piece
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    status: int = struct.unpack("!i", answer)[0]
    if status < 0:
        name = signal.Signals(-status).name
        hint = ": was the memory used up?" if name == "SIGKILL" else ""
        print(f"error: the job was ended by {name}{hint}", file=sys.stderr)
        return 128 - status
    return status


def _send(connection: socket.socket, request: dict[str, Any]) -> None:
    data = json.dumps(request).encode()
    connection.settimeout(START_SECONDS)  # the server may still be importing
    fds = array.array("i", [_fd(stream) for stream in (0, 1, 2)])
    connection.sendmsg([struct.pack("!I", len(data))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    connection.sendall(data)


def _fd(number: int) -> int:
    """The descriptor itself, or the null device where the caller closed it."""
    try:
        os.fstat(number)
    except OSError:
        return os.open(os.devnull, os.O_RDWR)
    return number


def _connect(start: bool) -> socket.socket:
    """A connection to the server of this environment, starting it first where there is none."""
    folder = socket_directory()
    path = folder / f"{_key()}.sock"
    with contextlib.suppress(OSError):
        return _dial(path)
    if not start:
        raise ConnectionRefusedError(path)
    with _start_lock(path):
        with contextlib.suppress(OSError):
            return _dial(path)  # another client was faster
        path.unlink(missing_ok=True)
        server = _start_server(path)
        deadline = time.monotonic() + START_SECONDS  # a busy machine starts an interpreter slowly
        while True:
            try:
                return _dial(path)
            except OSError:
                if time.monotonic() > deadline or server.poll() is not None:
                    raise
                time.sleep(0.02)


def _dial(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def _start_server(path: Path) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return subprocess.Popen(
        [sys.executable, "-P", str(SERVER), str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
        env=environment,
    )


@contextlib.contextmanager
def _start_lock(path: Path) -> Iterator[None]:
    """One client at a time starts a server, and no server leaves meanwhile."""
    with path.with_suffix(".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def socket_directory() -> Path:
    """A folder of this user for sockets, closed to others. Short: a socket's path has at most 107 bytes."""
    folder = Path(tempfile.gettempdir()) / f"peftbench-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o077 or folder.is_symlink():
        raise PermissionError(f"{folder} is not ours alone")
    return folder


def _key() -> str:
    """Clients with one key can share a server: same interpreter, server code, import-time environment."""
    variables = sorted((k, v) for k, v in os.environ.items() if k.startswith(IMPORT_TIME))
    host = os.uname().nodename
    parts = [sys.executable, sys.prefix, sys.version, host, SERVER.read_text(), repr(variables)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
