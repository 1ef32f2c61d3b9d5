"""A hub on 127.0.0.1 that serves plain folders to the real clients, and misbehaves when asked to.

    <root>/models/<owner>/<name>/...      model repositories
    <root>/datasets/<owner>/<name>/...    data set repositories
    <root>/files/<host>/<path>            plain files of the web (see ``LoopbackHub.mirrors``)

The protocol is the public hub's without xet: large files and binary ones are LFS files, which ``resolve`` redirects to
another origin (here ``localhost`` instead of ``127.0.0.1``), as the hub redirects to its CDN. Commit ids follow from
the content, so the same folder always has the same commit.

    with LoopbackHub(root) as hub:
        subprocess.run([...], env={**os.environ, **hub.environment(home)})

By hand: ``python tests/loopback_hub.py ROOT --port 8000``.
"""

import argparse
import contextlib
import fnmatch
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

LFS_SUFFIXES = frozenset(
    ".7z .arrow .avi .bin .bz2 .gguf .gif .gz .h5 .jpeg .jpg .model .mp4 .msgpack .npy .npz .onnx .parquet .pickle .pkl"
    " .png .pt .pth .safetensors .tar .tgz .webp .xz .zip .zst".split()
)
LFS_FROM_BYTES = 10_000_000
STATUS_FAULTS = {"gated": 401, "401": 401, "403": 403, "404": 404, "429": 429, "500": 500, "503": 503}
BODY_FAULTS = ("slow", "cut", "wrong", "length")
KINDS = (*STATUS_FAULTS, *BODY_FAULTS, "moved")
BLOCK = 1 << 16


@dataclass
class Request:
    """One request as it came, and what was answered."""

    method: str
    path: str
    range: str = ""
    token: str = ""
    status: int = 0
    sent: int = 0


@dataclass
class Fault:
    pattern: str
    kind: str
    times: int | None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class File:
    """One file of a repository: its git blob id (of the pointer where it is an LFS file), sha256 and size."""

    path: Path
    size: int
    blob: str
    sha256: str
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


class LoopbackHub:
    """The hub as a context manager; ``endpoint`` goes into HF_ENDPOINT, ``requests`` is the log."""

    def __init__(self, root: Path, port: int = 0, page_size: int = 1000) -> None:
        self.root = Path(root)
        self.page_size = page_size
        self.requests: list[Request] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._files: dict[Path, tuple[tuple[int, int], File]] = {}
        hub = self

        class Handler(_Handler):
            owner = hub

        self._server = _Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> "LoopbackHub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(self, pattern: str, kind: str, times: int | None = 1, **options: Any) -> None:
        """Misbehave for the next ``times`` requests (None: always) whose path matches the glob ``pattern``.

        - ``gated`` (401), ``401``, ``403``, ``404``, ``429`` (option ``retry_after``: seconds), ``500``, ``503``;
          option ``method`` limits it to GET or HEAD. A ``404`` on ``resolve`` says that the file is missing, on the API
          that the repository is (option ``code`` overrides: RepoNotFound, RevisionNotFound, EntryNotFound, GatedRepo);
        - while content is sent: ``slow`` (options ``block`` bytes, then ``pause`` seconds), ``cut`` (the connection
          ends after ``after`` bytes), ``wrong`` (as many bytes, but one of them is another), ``length`` (Content-Length
          off by the option ``by``);
        - ``moved``: the API names another commit than was asked for.
        """
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}")
        with self._lock:
            self._faults.append(Fault(pattern, kind, times, options))

    def mend(self) -> None:
        """Misbehave no more."""
        with self._lock:
            self._faults.clear()

    def take(self, path: str, method: str, kinds: tuple[str, ...]) -> Fault | None:
        """The first fault of these kinds for this request, used up by one."""
        with self._lock:
            for fault in self._faults:
                if (
                    fault.kind in kinds
                    and fault.times != 0
                    and fault.options.get("method", method) == method
                    and fnmatch.fnmatchcase(path, fault.pattern)
                ):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None

    @property
    def content(self) -> list[Request]:
        """The requests that were answered with content of files, not with names or redirects."""
        return [r for r in self.requests if r.method == "GET" and r.sent and not r.path.startswith("/api/")]

    def environment(self, home: Path) -> dict[str, str]:
        """Variables that make every client of a subprocess use this hub, with ``home`` as its own cache."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(Path(home) / "hub"),
            "HF_DATASETS_CACHE": str(Path(home) / "datasets"),
            "HF_MODULES_CACHE": str(Path(home) / "modules"),
            "HF_TOKEN": "",
            "HF_TOKEN_PATH": str(Path(home) / "token"),
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def mirrors(self) -> dict[str, str]:
        """Prefixes of the addresses under ``files`` and where this hub has them."""
        hosts = sorted(p.name for p in (self.root / "files").glob("*") if p.is_dir())
        return {
            f"{scheme}://{host}/": f"{self.endpoint}/files/{quote(host)}/"
            for host in hosts
            for scheme in ("http", "https")
        }

    def repository(self, kind: str, repo: str) -> dict[str, File] | None:
        """The files of a repository by their paths; None where there is no such repository."""
        base = self.root / kind / repo
        if not base.is_dir() or ".." in repo.split("/"):
            return None
        found = {}
        for here, folders, names in os.walk(base):
            folders.sort()
            for name in sorted(names):
                path = Path(here) / name
                found[path.relative_to(base).as_posix()] = self.file(path)
        return dict(sorted(found.items()))

    def file(self, path: Path) -> File:
        """Ids of a file, computed once for each of its states."""
        stat = path.stat()
        mark = (stat.st_mtime_ns, stat.st_size)
        known = self._files.get(path)
        if known is None or known[0] != mark:
            lfs = path.suffix.lower() in LFS_SUFFIXES or stat.st_size >= LFS_FROM_BYTES
            with path.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            blob = git_blob(lfs_pointer(sha256, stat.st_size) if lfs else path.read_bytes())
            known = mark, File(path, stat.st_size, blob, sha256, lfs)
            self._files[path] = known
        return known[1]

    def commit(self, repo_type: str, repo: str) -> str:
        """Commit of ``main`` of a model (``"model"``) or data set (``"dataset"``)."""
        files = self.repository(f"{repo_type}s", repo)
        if files is None:
            raise KeyError(f"{repo_type} {repo}")
        return commit_id(files)


def commit_id(files: dict[str, File]) -> str:
    return hashlib.sha1("".join(f"{f.blob} {path}\n" for path, f in files.items()).encode()).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are none of our business."""


class _Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message or {401: "Unauthorized", 403: "Forbidden", 404: "Not found"}.get(
            status, "Error"
        )
        self.headers = headers


class _Handler(BaseHTTPRequestHandler):
    owner: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = BLOCK
    log: Request

    def log_message(self, *_: object) -> None:
        """Quiet: ``LoopbackHub.requests`` is the log."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.log = Request(
            self.command, path, self.headers.get("Range", ""), self.headers.get("Authorization", "")
        )
        self.owner.requests.append(self.log)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        form = parse_qs(self.rfile.read(length).decode()) if length else {}
        try:
            self._refuse_on_request(path)
            self._route(parts.path, path, query, form)
        except _Refusal as refusal:
            headers = {"X-Error-Message": refusal.message, **refusal.headers}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self._json({"error": refusal.message}, refusal.status, headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _refuse_on_request(self, path: str) -> None:
        fault = self.owner.take(path, self.command, tuple(STATUS_FAULTS))
        if fault is None:
            return
        status = STATUS_FAULTS[fault.kind]
        codes = {"gated": "GatedRepo", "404": "EntryNotFound" if "/resolve/" in path else "RepoNotFound"}
        code = fault.options.get("code", codes.get(fault.kind, ""))
        headers = {}
        if "retry_after" in fault.options:
            headers["Retry-After"] = str(fault.options["retry_after"])
        messages = {
            "GatedRepo": "Access to this repository is restricted.",
            "": f"made to fail with {status}",
        }
        raise _Refusal(status, code, messages.get(code, f"{code}: made to fail"), **headers)

    def _route(self, raw: str, path: str, query: dict[str, str], form: dict[str, list[str]]) -> None:
        words = [unquote(word) for word in raw.strip("/").split("/")]  # a branch name may hold %2F
        if words[0] == "api" and len(words) >= 4 and words[1] in ("models", "datasets"):
            self._api(words[1], f"{words[2]}/{words[3]}", words[4:], query, form)
        elif path == "/api/whoami-v2":
            if not self.log.token:
                raise _Refusal(401, message="Invalid credentials in Authorization header")
            self._json({"type": "user", "name": "loopback", "auth": {"accessToken": {"role": "read"}}})
        elif words[0] == "cdn":
            file = self.owner.root.joinpath(*words[1:])
            self._content(self.owner.file(file), {})
        elif words[0] == "files":
            file = self.owner.root.joinpath(*words)
            if not file.is_file() or ".." in words:
                raise _Refusal(404)
            self._content(
                self.owner.file(file), {"Last-Modified": formatdate(file.stat().st_mtime, usegmt=True)}
            )
        else:
            kind = words.pop(0) if words[0] == "datasets" else "models"
            if len(words) < 5 or words[2] not in ("resolve", "raw"):
                raise _Refusal(404)
            self._resolve(kind, f"{words[0]}/{words[1]}", words[3], "/".join(words[4:]))

    def _repository(self, kind: str, repo: str, revision: str) -> tuple[dict[str, File], str]:
        files = self.owner.repository(kind, repo)
        if files is None:  # as the hub: who is not logged in is not told whether it exists
            raise _Refusal(404 if self.log.token else 401, "RepoNotFound", "Repository not found")
        commit = commit_id(files)
        if revision not in ("main", "refs/heads/main", commit, commit[:7]):
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return files, commit

    def _api(
        self, kind: str, repo: str, words: list[str], query: dict[str, str], form: dict[str, list[str]]
    ) -> None:
        what = words[0] if words else "revision"
        revision = words[1] if len(words) > 1 else "main"
        files, commit = self._repository(kind, repo, revision)
        if what == "revision":
            self._json(self._info(kind, repo, files, commit, blobs="blobs" in query))
        elif what == "tree":
            self._tree(files, "/".join(words[2:]), query)
        elif what == "paths-info":
            entries = {entry["path"]: entry for entry in _entries(files)}
            wanted = [path.strip("/") for path in form.get("paths", [])]
            self._json([entries[path] for path in wanted if path in entries])
        elif what == "refs":
            branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": commit}
            self._json({"branches": [branch], "converts": [], "tags": [], "pullRequests": []})
        elif what == "commits":
            author = [{"user": "loopback"}]
            self._json([{"id": commit, "title": "all", "message": "", "authors": author, "date": _DATE}])
        else:
            raise _Refusal(404)

    def _info(self, kind: str, repo: str, files: dict[str, File], commit: str, blobs: bool) -> dict[str, Any]:
        if self.owner.take(self.log.path, self.command, ("moved",)):
            commit = hashlib.sha1(commit.encode()).hexdigest()
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in files]
        if blobs:
            for sibling, file in zip(siblings, files.values(), strict=True):
                sibling |= {"size": file.size, "blobId": file.blob}
                if file.lfs:
                    pointer = len(lfs_pointer(file.sha256, file.size))
                    sibling["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": pointer}
        found = {"_id": commit[:24], "id": repo, "sha": commit, "author": repo.partition("/")[0]}
        found |= {
            "private": False,
            "gated": False,
            "disabled": False,
            "lastModified": _DATE,
            "createdAt": _DATE,
        }
        found |= {"tags": [], "downloads": 0, "likes": 0, "siblings": siblings}
        return found | ({"modelId": repo} if kind == "models" else {})

    def _tree(self, files: dict[str, File], folder: str, query: dict[str, str]) -> None:
        entries = _entries(files)
        if folder and not any(e["path"] == folder and e["type"] == "directory" for e in entries):
            raise _Refusal(404, "EntryNotFound", f"{folder} does not exist")
        prefix = folder + "/" if folder else ""
        found = [e for e in entries if e["path"].startswith(prefix)]
        if query.get("recursive", "").lower() not in ("1", "true"):
            found = [e for e in found if "/" not in e["path"].removeprefix(prefix)]
        start = int(query.get("cursor", 0))
        size = min(self.owner.page_size, int(query.get("limit", self.owner.page_size)))
        headers = {}
        if start + size < len(found):
            following = urlencode({**query, "cursor": start + size})
            headers["Link"] = f'<{self.owner.endpoint}{urlsplit(self.path).path}?{following}>; rel="next"'
        self._json(found[start : start + size], headers=headers)

    def _resolve(self, kind: str, repo: str, revision: str, path: str) -> None:
        files, commit = self._repository(kind, repo, revision)
        headers = {"X-Repo-Commit": commit}
        if path not in files:
            raise _Refusal(404, "EntryNotFound", "Entry not found", **headers)
        file = files[path]
        if not file.lfs:
            self._content(file, headers)
            return
        linked = {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"'}
        place = quote(f"/cdn/{kind}/{repo}/{path}")
        headers |= linked | {"Location": f"http://localhost:{self.owner.port}{place}", "ETag": '"redirect"'}
        self._json({}, 302, headers)

    def _content(self, file: File, headers: dict[str, str]) -> None:
        """A file or a range of it, with the faults of content."""
        start, end = 0, file.size - 1
        status = 200
        asked = self.headers.get("Range", "")
        condition = self.headers.get("If-Range")
        valid = condition in (None, f'"{file.etag}"', headers.get("Last-Modified"))
        if asked.startswith("bytes=") and "," not in asked and valid:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start = int(first) if first else max(0, file.size - int(last))
            end = min(int(last), end) if first and last else end
            if start > end:
                raise _Refusal(416, message="range", **{"Content-Range": f"bytes */{file.size}"})
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end}/{file.size}"
        length = end - start + 1
        fault = self.owner.take(self.log.path, self.command, BODY_FAULTS) if self.command == "GET" else None
        kind, options = (fault.kind, fault.options) if fault else ("", {})
        announced = length + int(options.get("by", 1)) if kind == "length" else length
        headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes", "Content-Length": str(announced)}
        self._head(status, {"Content-Type": "application/octet-stream", **headers})
        if self.command == "HEAD":
            return
        left = min(length, int(options.get("after", length // 2))) if kind == "cut" else length
        left = min(left, announced)
        block = int(options.get("block", 1024)) if kind == "slow" else BLOCK
        with file.path.open("rb") as stream:
            stream.seek(start)
            while left > 0:
                data = stream.read(min(block, left))
                if kind == "wrong" and data and not self.log.sent:
                    data = bytes([data[0] ^ 1]) + data[1:]
                self.wfile.write(data)
                self.log.sent += len(data)
                left -= len(data)
                if kind == "slow":
                    self.wfile.flush()
                    time.sleep(float(options.get("pause", 0.05)))
        self.wfile.flush()
        if kind in ("cut", "length"):
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        length = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        self._head(status, length | (headers or {}))
        if self.command != "HEAD":
            self.wfile.write(body)
            if status == 200:
                self.log.sent += len(body)
        self.wfile.flush()

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.log.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()


_DATE = "2024-01-01T00:00:00.000Z"


def _entries(files: dict[str, File]) -> list[dict[str, Any]]:
    """The rows of the tree: folders and files, in order of their paths."""
    rows: dict[str, dict[str, Any]] = {}
    for path, file in files.items():
        for folder in _folders(path):
            oid = hashlib.sha1(folder.encode()).hexdigest()
            rows.setdefault(folder, {"type": "directory", "oid": oid, "size": 0, "path": folder})
        rows[path] = {"type": "file", "oid": file.blob, "size": file.size, "path": path}
        if file.lfs:
            pointer = len(lfs_pointer(file.sha256, file.size))
            rows[path]["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": pointer}
    return [rows[path] for path in sorted(rows)]


def _folders(path: str) -> Iterator[str]:
    words = path.split("/")
    for end in range(1, len(words)):
        yield "/".join(words[:end])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    with LoopbackHub(arguments.root, arguments.port) as hub:
        print(f"export HF_ENDPOINT={hub.endpoint} HF_HUB_DISABLE_XET=1")
        print(f"mirrors: {json.dumps(hub.mirrors(), indent=1)}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
