"""Requests to a chat-completions service, sent until they are answered.

Tried again: 408, 409, 425, 429, every 5xx, connections that break, time-outs, bodies that are cut off or no
JSON. The wait doubles each time; where the service says how long to wait (``Retry-After``), all requests wait
so long. The key is sent to that address only (redirects are refused) and never appears in a message.
"""

from __future__ import annotations

import email.utils
import http.client
import ipaddress
import json
import os
import random
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from peftbench.errors import UserError

FINGERPRINT_EXEMPT = "carries requests; what is asked and how the answer is read stands elsewhere"
FIRST_WAIT = 1.0
"""Seconds before the second attempt; doubled for each further one."""
LONGEST_WAIT = 60.0
LONGEST_TOLD = 600.0
"""The longest wait (seconds) that a service may ask for; with a longer one a request counts as failed."""
LARGEST = 8 << 20
"""Bytes of a body; more is no reply."""
AGAIN = {408, 409, 425, 429}
HOPELESS = {401: "the key is missing or wrong", 402: "the account has no credit", 403: "no permission"}
HOPELESS |= {404: "no such address or model", 405: "not a chat-completions address"}
R = TypeVar("R")


class NoReply(Exception):
    """A request that got no reply, with the reason in one line."""


class Stopped(Exception):
    """The client was told to stop."""


class _Retry(Exception):
    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would take the key along to wherever it is sent."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def read_key(variable: str) -> str:
    """The key in an environment variable; "" where none is named. Messages show neither key nor name.

    The name is not shown since a key may have been put in its place by mistake.
    """
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            "execution.judge_key_variable: the environment variable of that name is not set: export the key "
            "under it (or leave the setting out where the judge needs no key)"
        )
    if not key.isascii() or not key.isprintable():
        raise UserError("execution.judge_key_variable: the variable holds characters that no key has")
    return key


def check_address(base_url: str) -> str:
    """The address of chat completions under a base URL; ``UserError`` for one that cannot be used."""
    parts = urllib.parse.urlsplit(base_url)
    try:
        parts.port  # noqa: B018 (a bad one raises)
    except ValueError:
        raise UserError("judge: base_url: its port is no number") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError("judge: base_url must be an http or https address, such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(
            "judge: base_url must hold no name, password, query or fragment: it is stored with the results; "
            "keys belong into the environment variable that execution.judge_key_variable names"
        )
    return base_url.rstrip("/") + "/chat/completions"


def travels_open(base_url: str) -> bool:
    """Whether others on the network could read what is sent there."""
    parts = urllib.parse.urlsplit(base_url)
    return parts.scheme == "http" and not _is_loopback(parts.hostname or "")


class Client:
    """Posts JSON to one address. Safe to use from several threads."""

    def __init__(self, url: str, key: str, timeout: float, attempts: int) -> None:
        self.url = url
        self._key = key
        self._timeout = timeout
        self._attempts = attempts
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._not_before = 0.0
        handlers: list[Any] = [_NoRedirect]
        if _is_loopback(urllib.parse.urlsplit(url).hostname or ""):
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def stop(self) -> None:
        """Let waiting requests end with ``Stopped``."""
        self._stop.set()

    def post(self, body: Any, read: Callable[[Any], R]) -> R:
        """What ``read`` makes of the reply; its ``ValueError`` counts as a broken reply.

        Raises ``NoReply`` after the last attempt or a refusal, ``UserError`` where no request will succeed.
        """
        data = json.dumps(body).encode()
        for attempt in range(1, self._attempts + 1):
            self._wait_turn()
            try:
                return read(json.loads(self._send(data)))
            except ValueError as error:  # also what is no JSON
                problem = _Retry(f"broken reply ({' '.join(str(error).split())[:120]})")
            except _Retry as error:
                problem = error
            if problem.wait is not None and problem.wait > LONGEST_TOLD:
                raise NoReply(f"{problem}; the service asks for a wait of {problem.wait:.0f} s")
            if attempt < self._attempts:
                self._back_off(attempt, problem.wait)
        times = "attempt" if self._attempts == 1 else "attempts"
        raise NoReply(self.clean(f"{problem} after {self._attempts} {times}"))

    def clean(self, text: str) -> str:
        """A text without the key, should a service repeat it."""
        return text.replace(self._key, "[key]") if len(self._key) >= 8 else text

    def _send(self, data: bytes) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        request = urllib.request.Request(self.url, data, headers)
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        deadline = time.monotonic() + self._timeout
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                return self.clean(_read(response, deadline).decode("utf-8", "replace"))
        except urllib.error.HTTPError as error:
            with error:
                self._explain(error, deadline)
        except (TimeoutError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise UserError(
                    f"judge: {self.url}: its certificate is not trusted ({reason.verify_message}): check the "
                    "address"
                ) from None
            if isinstance(reason, TimeoutError | socket.timeout):
                raise _Retry(f"no reply within {self._timeout:g} s") from None
            if isinstance(reason, http.client.IncompleteRead):
                raise _Retry("reply cut off") from None
            text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
            raise _Retry(f"connection failed ({text})") from None

    def _explain(self, error: urllib.error.HTTPError, deadline: float) -> NoReturn:
        code = error.code
        try:
            text = _read(error, deadline).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            text = ""
        detail, kind = _detail(text)
        said = self.clean(f": {detail}") if detail and code != 401 else ""  # services repeat parts of keys
        if kind == "insufficient_quota":
            raise UserError(f"judge: {self.url}: the account's quota is used up: see its billing page")
        if code in AGAIN or code >= 500:
            raise _Retry(f"HTTP {code}{said}", _told_wait(error.headers.get("Retry-After")))
        if 300 <= code < 400:
            raise UserError(f"judge: {self.url} sends to another address (HTTP {code}): name it in base_url")
        if code in HOPELESS:
            raise UserError(f"judge: {self.url}: {HOPELESS[code]} (HTTP {code}{said})")
        raise NoReply(f"refused (HTTP {code}{said})")

    def _back_off(self, attempt: int, told: float | None) -> None:
        if told is not None:
            with self._lock:  # everyone's requests would be refused
                self._not_before = max(self._not_before, time.monotonic() + told)
            return
        longest = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1))
        if self._stop.wait(random.uniform(longest / 2, longest)):
            raise Stopped

    def _wait_turn(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                left = self._not_before - time.monotonic()
            if left <= 0:
                return
            self._stop.wait(left)
        raise Stopped


def _read(response: Any, deadline: float) -> bytes:
    """A body, unless it takes longer than the deadline in all: a time-out is per packet otherwise."""
    chunks: list[bytes] = []
    size = 0
    while chunk := response.read1(1 << 16):
        chunks.append(chunk)
        size += len(chunk)
        if size > LARGEST:
            raise ValueError(f"more than {LARGEST >> 20} MiB")
        if time.monotonic() > deadline:
            raise TimeoutError
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(chunks)


def _detail(text: str) -> tuple[str, str]:
    """The message and the code of an error in a service's JSON, in one line."""
    try:
        error = json.loads(text)["error"]
        if isinstance(error, str):
            return " ".join(error.split())[:200], ""
        message = " ".join(str(error.get("message") or "").split())
        return message[:200], str(error.get("code") or "")
    except (ValueError, TypeError, KeyError, AttributeError):
        return "", ""


def _told_wait(header: str | None) -> float | None:
    """Seconds that a ``Retry-After`` asks for, given as a number or as a date; None where it says nothing."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
