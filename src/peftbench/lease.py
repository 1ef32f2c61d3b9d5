"""One process at a time, also on several nodes of a shared file system.

A lock is a file that says who holds it. On one machine the kernel's ``flock`` tells at once whether the holder is
still there. On many shared file systems ``flock`` does not reach other nodes, so the holder also changes the file every
few seconds; whoever waits and sees it stand still for long enough takes over. How long is measured by the waiting
process's own monotonic clock from one look to the next: no two clocks are ever compared.

A holder that stood still itself (suspended, cut off from the file system) finds its file replaced. It is interrupted,
``Lease.check`` raises before it publishes anything, and it ends with one line.
"""

import contextlib
import errno
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from peftbench.errors import UserError

FINGERPRINT_EXEMPT = "keeps processes apart; does not compute"
VARIABLE = "PEFTBENCH_LEASE_SECONDS"
"""Environment variable: seconds without a sign of life after which a holder counts as gone; the same on all nodes."""
SECONDS = 120.0
"""Its default. Long: taking over for no reason costs hours, waiting too long two minutes."""
BEATS = 24
"""Signs of life in that time."""
LONGEST_PAUSE = 2.0
"""Seconds between two looks of a process that waits."""


class LeaseLostError(UserError):
    """Another process took over from this one."""


class Lease:
    """A lock file that is ours. Its three lines: who, a token and the machine's boot, a counter."""

    interrupts = True
    """Whether its loss interrupts the main thread."""

    def __init__(self, path: Path, handle: int, content: bytes, token: str) -> None:
        self.path, self.token = path, token
        self._handle = handle
        self._counter_at = content.rindex(b"\n", 0, -1) + 1
        self._beats = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease {path.name}", daemon=True)
        self._in_main = threading.current_thread() is threading.main_thread()
        self._thread.start()

    def check(self) -> None:
        """Raise ``LeaseLostError`` where the lock is no longer ours: to be called before anything is published."""
        if not self.held():
            holder = "another process"
            with contextlib.suppress(OSError):
                holder = _owner(_read(self.path)) or holder
            raise LeaseLostError(
                f"{holder} took this over while this process stood still: stopped, nothing was stored"
            )

    def held(self) -> bool:
        """Whether the file is still ours; opened anew, so that a shared file system looks at its server."""
        try:
            return _token(_read(self.path)) == self.token
        except FileNotFoundError:
            return False
        except OSError:
            return True  # cannot tell: whatever is wrong with the file system will show where results are written

    def _beat(self) -> None:
        while not self._ended.wait(seconds() / BEATS):
            if not self.held():
                if self.interrupts and self._in_main and not self._ended.is_set():
                    with contextlib.suppress(OSError, ValueError):
                        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return
            self._beats += 1
            with contextlib.suppress(OSError):
                os.pwrite(self._handle, _counter(self._beats), self._counter_at)
                os.fsync(self._handle)  # or another node would not see it

    def release(self) -> None:
        """Give the lock up."""
        self._ended.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=1.0)
        with contextlib.suppress(OSError):
            if self.held():
                self.path.unlink(missing_ok=True)
        os.close(self._handle)


def seconds() -> float:
    """How long a holder may stand still."""
    try:
        return max(0.2, float(os.environ.get(VARIABLE) or SECONDS))
    except ValueError:
        raise UserError(f"{VARIABLE} is {os.environ[VARIABLE]!r}: give seconds, or unset it") from None


@contextlib.contextmanager
def locked(lock: Path, waiting: Callable[[str], object]) -> Iterator[Lease]:
    """Hold a lock file, first waiting for its holder; ``waiting`` is told once who that is.

    Whatever is raised in the block after another process took over becomes ``LeaseLostError``.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with _ending(_wait_for(lock, waiting)) as lease:
        yield lease


@contextlib.contextmanager
def unless_locked(lock: Path) -> Iterator[bool]:
    """Hold a lock file without waiting; tells whether it could be had."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    lease = _create(lock)
    with contextlib.suppress(FileNotFoundError):  # given up just now: its holder was there
        if lease is None and _abandoned(lock):
            lease = _replace(lock, _read(lock))
    if lease is None:
        yield False
        return
    with _ending(lease):
        yield True


@contextlib.contextmanager
def holding(lock: Path) -> Iterator[None]:
    """Hold a lock file of a name that nobody else uses, as a sign of life; its loss is of no consequence."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    lease = _create(lock)
    if lease is not None:
        lease.interrupts = False
    try:
        yield
    finally:
        if lease is not None:
            lease.release()


def held_by_other(lock: Path, trusted_seconds: float) -> bool:
    """Whether a process holds a lock file; one of another machine is believed for so long after its last sign of life.

    That is told by the file's time, so ``trusted_seconds`` has to be far above what clocks may differ by.
    """
    try:
        if _abandoned(lock):
            return False
        content, age = _read(lock), time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return _boot(content) == _this_boot() or age < trusted_seconds


@contextlib.contextmanager
def _ending(lease: Lease) -> Iterator[Lease]:
    try:
        try:
            yield lease
        except BaseException:
            lease.check()
            raise
    except LeaseLostError as error:
        raise error from None
    finally:
        lease.release()


def _wait_for(lock: Path, waiting: Callable[[str], object]) -> Lease:
    """Get the lock, however long it takes."""
    told, seen, since, pause, claims = False, b"", time.monotonic(), 0.1, 0
    while True:
        lease = _create(lock)
        if lease is not None:
            return lease
        try:
            content = _read(lock)
            gone = _abandoned(lock)
        except FileNotFoundError:
            continue  # it was given up just now
        now = time.monotonic()
        if content != seen:
            seen, since, claims = content, now, 0
        if gone or now - since > seconds():
            lease = _replace(lock, content)
            if lease is not None:
                return lease
            # Another one is taking over. Should it die on the way, its claim must not stand for ever.
            if now - since > seconds():
                claims += 1
                since = now
                if claims > 1:
                    _claim(lock, content).unlink(missing_ok=True)
        elif not told:
            waiting(_owner(content) or "another process")
            told = True
        time.sleep(min(pause, seconds() / BEATS))
        pause = min(pause * 1.2, LONGEST_PAUSE)


def _create(lock: Path) -> Lease | None:
    """The lock, if there is no file; creation is exclusive on all nodes."""
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return None
    return _own(lock, handle, lock)


def _replace(lock: Path, content: bytes) -> Lease | None:
    """Take the lock over from a holder that is gone, whose file has this content; None if another one does.

    The claim is named by the token of the old holder, so of all that wait one replaces the file, once.
    """
    claim = _claim(lock, content)
    try:
        os.close(os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        return None
    try:
        try:
            if _token(_read(lock)) != _token(content):
                return None
        except FileNotFoundError:
            return None
        mine = lock.with_name(f".{lock.name}.{os.urandom(4).hex()}")
        handle = os.open(mine, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        return _own(lock, handle, mine)
    finally:
        claim.unlink(missing_ok=True)


def _own(lock: Path, handle: int, file: Path) -> Lease:
    """Write who we are into a new file and give it the lock's name."""
    token = os.urandom(16).hex()
    content = f"{myself()}\n{token} {_this_boot()}\n".encode() + _counter(0)
    try:
        with contextlib.suppress(OSError):  # a file system without flock: then only the signs of life count
            fcntl.flock(handle, fcntl.LOCK_EX)  # at most those who look hold it, for a moment
        os.write(handle, content)
        os.fsync(handle)
        if file != lock:
            file.replace(lock)
        return Lease(lock, handle, content, token)
    except BaseException:
        os.close(handle)
        file.unlink(missing_ok=True)
        raise


def _abandoned(lock: Path) -> bool:
    """Whether the holder was a process of this machine that has ended; ``FileNotFoundError`` without a file."""
    handle = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _boot(os.pread(handle, 1000, 0)) == _this_boot()
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        return False
    finally:
        os.close(handle)


def _read(lock: Path) -> bytes:
    handle = os.open(lock, os.O_RDONLY)
    try:
        return os.pread(handle, 1000, 0)
    finally:
        os.close(handle)


def _claim(lock: Path, content: bytes) -> Path:
    return lock.with_name(f".{lock.name}.over-{_token(content) or 'unknown'}")


def _owner(content: bytes) -> str:
    return content.partition(b"\n")[0].decode(errors="replace")


def _token(content: bytes) -> str:
    lines = content.split(b"\n")
    return lines[1].split(b" ")[0].decode(errors="replace") if len(lines) > 2 else ""


def _boot(content: bytes) -> str:
    lines = content.split(b"\n")
    return lines[1].partition(b" ")[2].decode(errors="replace") if len(lines) > 2 else ""


def _counter(number: int) -> bytes:
    return b"%012d\n" % number


def myself() -> str:
    """This process, in words."""
    job, restarts = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_RESTART_COUNT", "")
    slurm = f" (SLURM job {job}{f', restart {restarts}' if restarts else ''})" if job else ""
    return f"process {os.getpid()} on {os.uname().nodename}{slurm}"


def _this_boot() -> str:
    """What tells this machine, since it started, from all others: within it ``flock`` holds."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return os.uname().nodename
