"""A chat-completions service on this machine that judges, and misbehaves on request.

What it does is planned per item: ``plan["q3"] = ["429", "cut", "ok"]`` are its answers to the first three requests
whose prompt holds ``#q3#``; after them, and for all other items, it behaves.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

KEY = "sk-loopback-0123456789abcdef"
MARK = re.compile(r"#(\w+)#")


def rating_of(mark: str) -> int:
    """The rating that the service gives to an item when it behaves."""
    return hashlib.sha256(mark.encode()).digest()[0] % 7


class LoopbackJudge(ThreadingHTTPServer):
    """Use as a context manager; ``url`` is the base URL."""

    daemon_threads = True

    def __init__(self, key: str = KEY) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.key = key
        self.plan: dict[str, list[str]] = {}
        self.delay = 0.0
        """Seconds before each answer."""
        self.requests: list[tuple[str, str]] = []
        """(item, what was done), in the order of arrival."""
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        self.open = 0
        self.most_open = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def answered(self) -> list[str]:
        """The items that were answered well: those that cost money."""
        return [item for item, action in self.requests if action in ("ok", "slow", "two", "none")]

    def __enter__(self) -> LoopbackJudge:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: LoopbackJudge
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._json(405, {"error": {"message": "POST only"}})

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        found = MARK.search(prompt)
        mark = found[1] if found else ""
        with server.lock:
            planned = server.plan.get(mark, [])
            action = planned.pop(0) if planned else "ok"
            if server.key and self.headers["Authorization"] != f"Bearer {server.key}":
                action = "401"
            server.requests.append((mark, action))
            server.bodies.append(body)
            server.paths.append(self.path)
            server.times.append(time.monotonic())
            server.open += 1
            server.most_open = max(server.most_open, server.open)
        try:
            time.sleep(server.delay)
            self._act(action, mark, body)
        finally:
            with server.lock:
                server.open -= 1

    def _act(self, action: str, mark: str, body: dict[str, Any]) -> None:
        good = f"The answer was compared with what is known.\nRating: {rating_of(mark)}"
        if action == "429":
            self._json(429, {"error": {"message": "slow down"}}, {"Retry-After": "1"})
        elif action == "429 for a day":
            self._json(429, {"error": {"message": "daily limit"}}, {"Retry-After": "86400"})
        elif action == "quota":
            self._json(429, {"error": {"message": "no credit", "code": "insufficient_quota"}})
        elif action in ("400", "500", "503", "404"):
            self._json(int(action), {"error": {"message": f"failed for {self.headers['Authorization']}"}})
        elif action == "401":
            self._json(401, {"error": {"message": f"Incorrect key: {self.headers['Authorization']}"}})
        elif action == "redirect":
            self._json(307, {}, {"Location": f"http://127.0.0.1:{self.server.server_address[1]}/elsewhere"})
        elif action == "cut":  # fewer bytes than announced
            data = json.dumps(self._completion(good, body)).encode()
            self._send(200, data[: len(data) // 2], "application/json", len(data))
            self.close_connection = True
        elif action == "half":  # whole, but half a JSON
            data = json.dumps(self._completion(good, body)).encode()
            self._send(200, data[: len(data) // 2], "application/json")
        elif action == "html":
            self._send(200, b"<html><body>Please log in</body></html>", "text/html")
        elif action == "text":  # right, but called something else
            self._send(200, json.dumps(self._completion(good, body)).encode(), "text/plain")
        elif action == "odd":
            self._json(200, {"object": "list", "data": []})
        elif action == "hang up":
            self.close_connection = True
        elif action == "slow":
            time.sleep(1.5)
            self._json(200, self._completion(good, body))
        elif action == "drip":
            data = json.dumps(self._completion(good, body)).encode()
            self._send(200, b"", "application/json", len(data))
            for byte in data:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.1)
        elif action == "two":
            self._json(200, self._completion("Rating: 2\nOn reflection:\nRating: 5", body))
        elif action == "none":
            self._json(200, self._completion("I would rather not say.", body))
        elif action == "long":
            self._json(200, self._completion("The answer says that", body, "length"))
        elif action == "empty":
            self._json(200, self._completion(None, body))
        elif action == "parts":
            self._json(200, self._completion([{"type": "text", "text": good}], body))
        elif action == "echo key":
            self._json(200, self._completion(f"{self.headers['Authorization']} {good}", body))
        else:
            self._json(200, self._completion(good, body))

    def _completion(self, content: Any, body: dict[str, Any], finish: str = "stop") -> dict[str, Any]:
        return {
            "object": "chat.completion",
            "model": f"{body['model']}-2026-01-01",
            "choices": [
                {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content}}
            ],
            "usage": {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107},
        }

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", None, headers)

    def _send(
        self,
        status: int,
        data: bytes,
        kind: str,
        length: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()
