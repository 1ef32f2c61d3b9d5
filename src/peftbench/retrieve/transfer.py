"""Bytes over HTTP, with patience: resumed, tried again a bounded number of times, hashed as they arrive.

One httpx2 client for the hub and for plain addresses, because huggingface_hub is built on it: proxies and
certificates are then configured in one way.
"""

import hashlib
import re
import sys
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar

import httpx2
from msgspec import Struct

from peftbench.errors import UserError

FINGERPRINT_EXEMPT = "carries bytes that are verified; cannot change them"
_T = TypeVar("_T")
_TRANSIENT = frozenset((408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524))
_ADVANCE = 1 << 20
"""Bytes that count as progress: after them the count of tries begins again."""
_REPORT_SECONDS = 15.0
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Policy(Struct, frozen=True):
    """How patient a transfer is; times in seconds."""

    tries: int = 6
    """In a row without progress."""
    first_tries: int = 3
    """Where no server has answered at all."""
    pause: float = 1.0
    """Before the second try; doubled for each further one."""
    longest_pause: float = 30.0
    longest_wait: float = 900.0
    """A server that wants us to wait longer (Retry-After) is not waited for."""
    timeout: float = 30.0
    """Without a byte."""
    connect_timeout: float = 10.0


POLICY = Policy()


class Refused(Exception):
    """An answer with an error status."""

    def __init__(self, response: httpx2.Response) -> None:
        super().__init__(f"HTTP {response.status_code}")
        self.status = response.status_code
        self.code: str = response.headers.get("X-Error-Code", "")
        """The hub's word for it: GatedRepo, RepoNotFound, RevisionNotFound, EntryNotFound."""
        self.message: str = response.headers.get("X-Error-Message", "")
        self.wait = _seconds_to_wait(response.headers)
        self.authorised = "authorization" in response.request.headers


class CutOff(Exception):
    """Fewer bytes than announced."""


class Stopped(Exception):
    """Another thread's error ended this one's work."""


FAULTS = (httpx2.TransportError, httpx2.DecodingError, Refused, CutOff)
"""What ``Transfer`` raises in the end."""
_NO_CONNECTION = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError)


def time_limits() -> httpx2.Timeout:
    """For one request."""
    return httpx2.Timeout(POLICY.timeout, connect=POLICY.connect_timeout)


class Digests:
    """Hashes of bytes in their order: sha256 and, where the size is known beforehand, git's blob id."""

    def __init__(self, size: int | None = None) -> None:
        self._sha256 = hashlib.sha256()
        self._blob = None if size is None else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        self.size = 0

    def update(self, data: bytes) -> None:
        """Append."""
        self._sha256.update(data)
        if self._blob is not None:
            self._blob.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        """Of all bytes so far."""
        return self._sha256.hexdigest()

    @property
    def blob(self) -> str:
        """Git's id of a blob with these bytes; empty where the size was not given."""
        return self._blob.hexdigest() if self._blob is not None else ""


def digests_of(path: Path, size: int | None = None) -> Digests:
    """Hashes of a file; of nothing where there is none. ``size`` is that of the whole, for git's id."""
    digests = Digests(size)
    if path.exists():
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digests.update(block)
    return digests


class Known(Struct, frozen=True):
    """What an answer tells of a file whose content nobody has announced."""

    address: str
    size: int | None
    validator: str
    """Names this state of the content in a later If-Range: a strong ETag, else the time of its last change."""

    @classmethod
    def of(cls, address: str, response: httpx2.Response) -> "Known":
        """From an answer with the whole content."""
        coded = response.headers.get("Content-Encoding", "identity").lower() != "identity"
        length = response.headers.get("Content-Length", "")
        etag = str(response.headers.get("ETag", ""))
        strong = etag if etag.startswith('"') else str(response.headers.get("Last-Modified", ""))
        return cls(address, int(length) if length.isdigit() and not coded else None, "" if coded else strong)


class Transfer:
    """The requests of one retrieval. Threads may share it; ``stop`` ends them at their next byte."""

    def __init__(self, client: Callable[[], httpx2.Client], total: int = 0) -> None:
        self._client = client
        self.total = total
        """Bytes expected in all, for messages; 0: not known."""
        self.fetched = 0
        """Bytes of content that came over the wire."""
        self._reached = False
        """Whether any server has answered: where none has, patience is short."""
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._started = self._reported = time.monotonic()

    def stop(self) -> None:
        """End the downloads of all threads."""
        self._stopped.set()

    def persist(self, what: str, call: Callable[[], _T], size: Callable[[], int] = lambda: 0) -> _T:
        """The result of ``call``, tried again after faults that may pass; the last fault where all tries fail.

        ``size`` tells progress, after which the count of tries begins again.
        """
        tries, reached = 0, size()
        while True:
            try:
                result = call()
                self._reached = True
                return result
            except FAULTS as error:
                if isinstance(error, Refused) and error.status not in _TRANSIENT:
                    raise
                if isinstance(error, httpx2.UnsupportedProtocol):
                    raise
                if size() - reached >= _ADVANCE:
                    tries, reached = 0, size()
                tries += 1
                pause = min(POLICY.pause * 2 ** (tries - 1), POLICY.longest_pause)
                if isinstance(error, Refused) and error.wait is not None:
                    pause = max(pause, error.wait)
                unreachable = isinstance(error, _NO_CONNECTION) and not self._reached
                most = POLICY.first_tries if unreachable else POLICY.tries
                if tries >= most or pause > POLICY.longest_wait:
                    raise
                print(
                    f"{what}: {_reason(error)}: trying again in {pause:.0f} s ({tries} of {most - 1})",
                    file=sys.stderr,
                )
                if self._stopped.wait(pause):
                    raise Stopped from None

    def download(
        self,
        what: str,
        url: str,
        part: Path,
        headers: dict[str, str],
        size: int | None = None,
        git: bool = False,
        known: "Known | None" = None,
        started: Callable[[httpx2.Response], "Known | None"] = lambda response: None,
    ) -> Digests:
        """Complete ``part`` from ``url`` and return the hashes of the whole; what is there is not asked for again.

        ``size`` is that of the whole, where it cannot change (``git``: its blob id is wanted too); else ``known`` is
        what an earlier try learnt of it, and ``started`` sees each answer that begins at the first byte and tells
        what it learns from it.
        Raises as ``persist`` does; the part stays for the next time.
        """
        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()  # an empty file needs no request
        blob_size = size if git else None
        digests = digests_of(part, blob_size)
        whole = size if known is None else known.size
        guard = "" if known is None else known.validator

        def once() -> Digests:
            nonlocal digests, whole, guard
            if whole is not None and digests.size == whole:
                return digests
            if (whole is not None and digests.size > whole) or (size is None and not guard):
                digests = _emptied(
                    part, blob_size
                )  # too much, or nothing guards the part against a new state
            asked = {**headers, "Accept-Encoding": "identity"}
            if digests.size:
                asked |= {"Range": f"bytes={digests.size}-"} | ({"If-Range": guard} if guard else {})
            with self._client().stream(
                "GET", url, headers=asked, timeout=time_limits(), follow_redirects=True
            ) as response:
                self._reached = True
                if response.status_code == 416:
                    digests = _emptied(part, blob_size)
                    raise CutOff("the server has no such range")
                if response.status_code >= 400:
                    raise Refused(response)
                if not _continues(response, digests.size):
                    digests = _emptied(part, blob_size)
                    learnt = started(response)
                    if learnt is not None:
                        whole, guard = learnt.size, learnt.validator
                self._receive(response, part, digests, whole)
            if whole is not None and digests.size < whole:
                raise CutOff(f"{digests.size:,} of {whole:,} bytes came")
            return digests

        return self.persist(what, once, lambda: digests.size)

    def _receive(self, response: httpx2.Response, part: Path, digests: Digests, whole: int | None) -> None:
        # As sent: a coding that was not asked for would make sizes and ranges meaningless.
        coded = response.headers.get("Content-Encoding", "identity").lower() != "identity"
        with part.open("ab") as stream:
            for data in response.iter_bytes() if coded else response.iter_raw():
                if self._stopped.is_set():
                    raise Stopped
                stream.write(data)
                digests.update(data)
                self._count(len(data))
                if whole is not None and digests.size > whole:
                    return  # too much: the hash will not fit

    def _count(self, received: int) -> None:
        with self._lock:
            self.fetched += received
            now = time.monotonic()
            if now - self._reported < _REPORT_SECONDS:
                return
            self._reported = now
            of = f" of {in_words(self.total)}" if self.total else ""
            rate = in_words(int(self.fetched / (now - self._started)))
            print(f"{in_words(self.fetched)}{of} fetched, {rate}/s", file=sys.stderr)


def explain(error: Exception, what: str, where: str) -> UserError:
    """A fault that outlasted all tries, in one line. ``where`` is the address; ``what`` is wanted from there."""
    host = httpx2.URL(where).host
    if isinstance(error, httpx2.UnsupportedProtocol):
        return UserError(f"{what}: {where}: not an address of the web: it should begin with https://")
    if isinstance(error, CutOff):
        return UserError(
            f"{what}: the transfer broke off {POLICY.tries} times ({error}): run snakemake again, it continues"
            " where it stopped"
        )
    if isinstance(error, Refused):
        if error.status == 429:
            wait = f" (it asks to wait {error.wait:.0f} s)" if error.wait is not None else ""
            token = "" if error.authorised else " and set HF_TOKEN, if it is the hub"
            return UserError(f"{what}: {host} refuses so many requests{wait}: try again later{token} (429)")
        if error.status in _TRANSIENT:
            return UserError(
                f"{what}: {host} fails (HTTP {error.status}), {POLICY.tries} times: run snakemake again later"
            )
        said = f": {error.message}" if error.message else ""
        return UserError(f"{what}: {host} refuses it (HTTP {error.status}{said}): check {where}")
    if isinstance(error, _NO_CONNECTION):
        return UserError(
            f"{what}: no connection to {host} ({_reason(error)}): where there is no network, fetch on a login node"
            " first: snakemake prefetch"
        )
    return UserError(
        f"{what}: the connection to {host} broke {POLICY.tries} times ({_reason(error)}): run snakemake again, it"
        " continues where it stopped"
    )


def in_words(count: int) -> str:
    """A number of bytes for people: ``4.1 GB``."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _continues(response: httpx2.Response, at: int) -> bool:
    """Whether an answer goes on at that byte."""
    found = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    return at > 0 and response.status_code == 206 and found is not None and int(found[1]) == at


def _emptied(part: Path, size: int | None) -> Digests:
    part.unlink(missing_ok=True)
    return Digests(size)


def _reason(error: Exception) -> str:
    if isinstance(error, Refused):
        return f"HTTP {error.status}"
    if isinstance(error, httpx2.ConnectTimeout):
        return "no answer"
    if isinstance(error, httpx2.TimeoutException):
        return f"nothing came for {POLICY.timeout:.0f} s"
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def _seconds_to_wait(headers: httpx2.Headers) -> float | None:
    """Seconds that the server asks to wait, by ``Retry-After`` or the hub's ``RateLimit``; None: it does not."""
    limit = re.search(r"\br=0\s*;\s*t=(\d+)", headers.get("RateLimit", ""))
    if limit:
        return float(limit[1])
    value = headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
