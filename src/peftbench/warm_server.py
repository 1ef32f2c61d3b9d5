"""The warm worker's server: a program of its own that imports third-party packages and forks itself per job.

It is started by file name (``python -P warm_server.py SOCKET``), never imports peftbench, and starts no
thread: what a fork inherits must be exactly what a fresh interpreter would have after the same imports.

Per job there are two forks. The *keeper* reads the request, starts the *job*, hands signals on to it, kills
it when the client goes away, and reports its exit status. The job has a session of its own, so its whole
family can be killed. Protocol: client sends a length, three descriptors and JSON; gets ``S`` once the job
runs, then the status as an int32 (negative: the signal that ended it); sends ``I`` or ``T`` for SIGINT or
SIGTERM.
"""

import contextlib
import ctypes
import fcntl
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

MODULES: tuple[str, ...] = (
    "torch",
    "transformers",
    "transformers.models.llava.modeling_llava",
    "transformers.models.llava.processing_llava",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.image_processing_clip",
    "transformers.models.llama.modeling_llama",
    "transformers.generation",
    "transformers.trainer_utils",
    "tokenizers",
    "peft",
    "accelerate",
    "safetensors.torch",
    "jinja2.sandbox",
    "PIL.PngImagePlugin",
)
if "PEFTBENCH_WORKER_MODULES" in os.environ:
    MODULES = tuple(os.environ["PEFTBENCH_WORKER_MODULES"].split())
IDLE_SECONDS = float(os.environ.get("PEFTBENCH_WORKER_IDLE", "20"))
GRACE_SECONDS = 5.0
"""Between SIGTERM and SIGKILL for a job whose client is gone."""


def main() -> None:
    """Serve until idle."""
    path = Path(sys.argv[1])
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(64)  # before the imports: the first clients may queue
    for name in MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    keepers: set[int] = set()
    told: list[int] = []
    # SLURM sends SIGTERM to all processes of a job. The jobs here decide for themselves what it means to them.
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    idle_since = time.monotonic()
    while not told:
        ready, _, _ = select.select([listener], [], [], 0.5)
        keepers -= {pid for pid in keepers if os.waitpid(pid, os.WNOHANG)[0]}
        if ready:
            connection, _ = listener.accept()
            pid = os.fork()
            if pid == 0:
                listener.close()
                _keep(connection)
            keepers.add(pid)
            connection.close()
        if keepers or ready:
            idle_since = time.monotonic()
        elif time.monotonic() - idle_since > IDLE_SECONDS and _leave(listener, path):
            return
    path.unlink(missing_ok=True)  # whoever comes now starts another server
    listener.close()
    for pid in keepers:
        os.waitpid(pid, 0)


def _leave(listener: socket.socket, path: Path) -> bool:
    """Take the socket away under the lock that clients start servers with, unless one is just coming."""
    with path.with_suffix(".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if select.select([listener], [], [], 0)[0]:
            return False
        path.unlink(missing_ok=True)
        listener.close()
        return True


def _keep(connection: socket.socket) -> NoReturn:
    """The keeper of one job; never returns."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        request, streams = _receive(connection)
        job = os.fork()
        if job == 0:
            connection.close()
            _work(request, streams)
        for stream in streams:
            os.close(stream)
        connection.sendall(b"S")
        connection.sendall(struct.pack("!i", _attend(connection, job)))
    except BaseException:
        os._exit(1)
    os._exit(0)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    connection.settimeout(30)
    head, streams, _, _ = socket.recv_fds(connection, 4, 3)
    if len(head) != 4 or len(streams) != 3:
        raise ConnectionError("not a request")
    (length,) = struct.unpack("!I", head)
    data = b""
    while len(data) < length:
        piece = connection.recv(min(length - len(data), 1 << 20))
        if not piece:
            raise ConnectionError("request cut off")
        data += piece
    return json.loads(data), streams


def _attend(connection: socket.socket, job: int) -> int:
    """Wait for the job's end; its exit status, or minus the signal that ended it."""
    connection.settimeout(None)
    deadline: float | None = None
    listening = True
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    while True:
        pid, status = os.waitpid(job, os.WNOHANG)
        if pid:
            _kill(job, signal.SIGKILL)  # whatever it left behind in its session
            return os.waitstatus_to_exitcode(status)
        watched: list[Any] = [wake, connection] if listening else [wake]
        readable, _, _ = select.select(watched, [], [], 0.5)
        if wake in readable:
            os.read(wake, 64)
        if connection in readable:
            word = connection.recv(1)
            if word in (b"I", b"T"):
                # To the job alone, not to its family: it decides what becomes of its own children.
                os.kill(job, signal.SIGINT if word == b"I" else signal.SIGTERM)
            else:
                listening = False
                deadline = time.monotonic() + GRACE_SECONDS
                os.kill(job, signal.SIGTERM)
        if deadline is not None and time.monotonic() > deadline:
            _kill(job, signal.SIGKILL)


def _kill(leader: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def _work(request: dict[str, Any], streams: list[int]) -> NoReturn:
    """The job: become the process that the client is, and run its script; never returns."""
    status = 1
    try:
        os.setsid()
        _die_with_parent()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        for stream in streams:
            os.close(stream)
        os.umask(request["umask"])
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv[:] = request["argv"]
        sys.path[:] = [str(Path(request["argv"][0]).parent), *request["path"][1:]]
        importlib.invalidate_caches()
        for name, number in (("stdout", 1), ("stderr", 2)):
            setattr(
                sys,
                name,
                os.fdopen(number, "w", encoding="utf-8", errors="replace", closefd=False, buffering=1),
            )
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        runpy.run_path(request["argv"][0], run_name="__main__")
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status & 0xFF)


def _die_with_parent() -> None:
    """Ask the kernel to end this process with its keeper (Linux)."""
    with contextlib.suppress(Exception):
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)


if __name__ == "__main__":
    main()
