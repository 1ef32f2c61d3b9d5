import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download

from loopback_hub import LoopbackHub
from peftbench.errors import UserError
from peftbench.retrieve import hub as hub_module
from peftbench.retrieve import hub_cache, local, pin, transfer, url
from peftbench.retrieve.fetch import retrieve
from peftbench.retrieve.origin import content_digest
from peftbench.spec import RetrieveSpec

MODEL = "owner/model"
BIG = 3_000_000
ARCHIVE = "http://images.example.org/zips/pictures.zip"


def noise(size, seed):
    return random.Random(seed).randbytes(size)


FILES = {
    "config.json": b'{"model_type": "none"}\n',
    "nested/vocab.txt": b"a\nb\n",
    "nested/again.txt": b"a\nb\n",
    "empty.txt": b"",
    "weights-1.safetensors": noise(BIG, 1),
    "weights-2.safetensors": noise(200_000, 2),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    for name, data in FILES.items():
        path = root / "models" / MODEL / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    data = root / "datasets/owner/data/data"
    data.mkdir(parents=True)
    (data / "train.parquet").write_bytes(noise(5000, 3))
    (root / "files/images.example.org/zips").mkdir(parents=True)
    (root / "files/images.example.org/zips/pictures.zip").write_bytes(noise(BIG, 4))
    return root


@pytest.fixture
def hub(root, tmp_path, monkeypatch):
    """The loopback hub as this process's hub, with an empty cache and little patience."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home/hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    policy = transfer.Policy(pause=0.01, longest_pause=0.05, timeout=5.0, connect_timeout=2.0)
    monkeypatch.setattr(transfer, "POLICY", policy)
    with LoopbackHub(root) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


@pytest.fixture
def fetch(hub, tmp_path):
    """Run a retrieval into a fresh folder: (folder, facts). The staging folder is the same each time."""
    count = iter(range(100))

    def fetch(local_path="", **fields):
        out = tmp_path / f"out-{next(count)}"
        out.mkdir()
        return out, retrieve(RetrieveSpec(**fields), out, tmp_path / "staging", local_path, hub.mirrors())

    return fetch


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(fetch, match, **fields):
    """The one line that a retrieval ends with."""
    with pytest.raises(UserError, match=match) as caught:
        fetch(**fields)
    line = str(caught.value)
    assert "\n" not in line
    return line


def manifest(files):
    return {n: {"size": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in files.items()}


# A repository of the hub


@pytest.mark.parametrize("pinned", [True, False])
def test_a_repository_arrives_whole(hub, fetch, tmp_path, pinned):
    commit = hub.commit("model", MODEL)
    out, facts = fetch(hub=MODEL, revision=commit if pinned else "main")
    assert contents(out) == FILES
    total = sum(map(len, FILES.values()))
    again = len(FILES["nested/again.txt"])  # the same content comes once
    expected = {"files": manifest(FILES), "bytes": total, "resolved": commit, "fetched": total - again}
    assert facts == expected
    assert not (tmp_path / "staging").exists()


def test_patterns_choose_files(fetch):
    out, _ = fetch(hub=MODEL, revision="main", files=["*.json", "nested/*"])
    assert set(contents(out)) == {"config.json", "nested/vocab.txt", "nested/again.txt"}
    out, _ = fetch(hub=MODEL, revision="main", files=["*.json", "*.jinja"])  # kinds of files, not all there
    assert set(contents(out)) == {"config.json"}
    for pattern in ("weight-1.safetensor", "nest/*", "weight-*.bin"):
        line = refused(fetch, "no file matches", hub=MODEL, revision="main", files=["*.json", pattern])
        assert repr(pattern) in line and ("weights-1.safetensors" in line or "nested/vocab.txt" in line)
    refused(fetch, "no file matches '\\*.jinja'", hub=MODEL, revision="main", files=["*.jinja"])


def test_data_sets_have_names_of_their_own(fetch, hub):
    out, facts = fetch(hub="owner/data", repo_type="dataset", revision="main")
    assert set(contents(out)) == {"data/train.parquet"}
    assert facts["resolved"] == hub.commit("dataset", "owner/data")
    refused(fetch, "no such model", hub="owner/data", revision="main")


def test_a_long_listing_comes_in_pages(hub, fetch):
    hub.page_size = 2
    assert contents(fetch(hub=MODEL, revision="main")[0]) == FILES


def test_the_cache_is_used_and_filled(hub, fetch):
    fetch(hub=MODEL, revision="main")
    before = len(hub.content)
    out, facts = fetch(hub=MODEL, revision=hub.commit("model", MODEL), files=["*.safetensors"])
    assert facts["fetched"] == 0 and len(hub.content) == before
    blob = (
        Path(constants.HF_HUB_CACHE) / "models--owner--model/blobs" / sha256(FILES["weights-1.safetensors"])
    )
    assert (out / "weights-1.safetensors").samefile(blob)  # no second copy
    # and huggingface_hub finds there what we have fetched
    folder = snapshot_download(MODEL, endpoint=hub.endpoint)
    assert contents(Path(folder)) == FILES and len(hub.content) == before


def test_what_huggingface_hub_has_fetched_is_not_fetched_again(hub, fetch):
    snapshot_download(MODEL, endpoint=hub.endpoint)
    before = len(hub.content)
    out, facts = fetch(hub=MODEL, revision="main")
    assert contents(out) == FILES and facts["fetched"] == 0 and len(hub.content) == before
    assert facts["files"] == manifest(FILES)


def test_a_damaged_cache_is_mended(hub, fetch):
    folder = Path(snapshot_download(MODEL, endpoint=hub.endpoint))
    weights = (folder / "weights-2.safetensors").resolve()
    weights.write_bytes(noise(200_000, 9))
    out, facts = fetch(hub=MODEL, revision="main")
    assert contents(out) == FILES and facts["fetched"] == 200_000
    assert weights.read_bytes() == FILES["weights-2.safetensors"]


def test_without_links_files_are_copied(hub, fetch, monkeypatch):
    def no_links(*_, **__):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    out, _ = fetch(hub=MODEL, revision="main")
    assert contents(out) == FILES


@pytest.mark.parametrize("kind, options", [("500", {}), ("503", {}), ("429", {"retry_after": 0})])
@pytest.mark.parametrize("pattern", ["/api/*/revision/*", "/api/*/tree/*", "*/weights-1.safetensors"])
def test_passing_faults_are_outlasted(hub, fetch, pattern, kind, options):
    hub.fail(pattern, kind, times=3, **options)
    out, _ = fetch(hub=MODEL, revision="main")
    assert contents(out) == FILES


@pytest.mark.parametrize(
    "kind, options",
    [
        ("cut", {"after": 1_000_000, "times": 2}),
        ("cut", {"after": 0}),
        ("length", {"by": 1000}),
        ("length", {"by": -1000}),
        ("wrong", {}),
        ("slow", {"block": 500_000, "pause": 0.02}),
    ],
)
def test_faults_of_content_are_outlasted(hub, fetch, kind, options):
    hub.fail("/cdn/*/weights-1.safetensors", kind, **options)
    out, facts = fetch(hub=MODEL, revision="main")
    assert contents(out) == FILES
    ranges = [r.range for r in hub.requests if r.path.startswith("/cdn/") and "weights-1" in r.path]
    if kind == "cut" and options["after"]:
        assert ranges == ["", "bytes=1000000-", "bytes=2000000-"]
        assert facts["fetched"] == facts["bytes"] - len(FILES["nested/again.txt"])


def test_retry_after_is_honoured(hub, fetch, monkeypatch, capsys):
    hub.fail("*/config.json", "429", retry_after=1)
    begin = time.monotonic()
    fetch(hub=MODEL, revision="main", files=["config.json"])
    assert time.monotonic() - begin >= 1
    assert "trying again in 1 s (1 of 5)" in capsys.readouterr().err
    hub.fail("*/config.json", "429", retry_after=5000)
    hub_home = Path(constants.HF_HUB_CACHE)
    shutil.rmtree(hub_home)
    refused(fetch, "asks to wait 5000 s", hub=MODEL, revision="main", files=["config.json"])


@pytest.mark.parametrize(
    "pattern, kind, options, match",
    [
        (
            "*/config.json",
            "gated",
            {},
            r"model owner/model: config.json: gated: accept the licence at .* set HF_TOKEN",
        ),
        (
            "/api/*",
            "gated",
            {},
            r"model owner/model: gated: accept the licence at http.*/owner/model and set HF_TOKEN",
        ),
        ("*/config.json", "403", {}, "access forbidden .*: accept the licence .*, and set HF_TOKEN"),
        ("/api/*", "401", {}, "no such model at .*: check its name; if it is private, set HF_TOKEN"),
        ("/api/*", "404", {}, "no such model at .*: check its name"),
        ("/api/*", "404", {"code": "RevisionNotFound"}, "no revision main: see .*/owner/model/commits/main"),
        ("*/config.json", "404", {}, "config.json: not found at revision"),
        ("*/config.json", "429", {}, r"127.0.0.1 refuses so many requests: try again later and set HF_TOKEN"),
        ("*/config.json", "500", {}, r"127.0.0.1 fails \(HTTP 500\), 6 times: run snakemake again later"),
        ("/api/*/tree/*", "500", {}, r"127.0.0.1 fails \(HTTP 500\), 6 times: run snakemake again later"),
        ("*/weights-2*", "wrong", {}, "weights-2.safetensors: wrong bytes came, twice"),
        (
            "*/weights-2*",
            "cut",
            {"after": 10},
            r"broke|broke off 6 times .*: run snakemake again, it continues",
        ),
        ("/api/*", "moved", {}, "revision moved: [0-9a-f]{40} was asked for, the hub gives [0-9a-f]{40}"),
    ],
)
def test_lasting_faults_are_told_in_one_line(hub, fetch, pattern, kind, options, match):
    hub.fail(pattern, kind, times=None, **options)
    revision = hub.commit("model", MODEL) if kind == "moved" else "main"
    refused(fetch, match, hub=MODEL, revision=revision)


def test_gated_with_a_token_says_that_the_account_has_no_access(hub, fetch, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    hub.fail("/api/*", "gated", times=None)
    refused(
        fetch, "the account of your HF_TOKEN has no access: accept the licence", hub=MODEL, revision="main"
    )
    hub.mend()
    fetch(hub=MODEL, revision="main")
    assert all(r.token == "Bearer hf_mine" for r in hub.requests if not r.path.startswith("/cdn/"))
    assert not any(r.token for r in hub.requests if r.path.startswith("/cdn/"))


def test_an_unknown_commit_is_no_revision(hub, fetch):
    refused(fetch, "no revision 0{40}", hub=MODEL, revision="0" * 40)


def test_no_network_is_told_soon(fetch, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    refused(fetch, "no connection to 127.0.0.1 .*: snakemake prefetch", hub=MODEL, revision="main")
    assert capsys.readouterr().err.count("trying again") == 2
    refused(fetch, "no connection to 127.0.0.1 .*: snakemake prefetch", url="http://127.0.0.1:9/a.zip")


def test_an_endpoint_that_is_no_hub(hub, fetch, monkeypatch, root):
    page = root / "files/portal.example.org/api/models/owner/model/revision/main"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("<html>Please log in</html>")
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.endpoint}/files/portal.example.org")
    refused(fetch, "does not answer as a hub does: check HF_ENDPOINT", hub=MODEL, revision="main")
    monkeypatch.setenv("HF_ENDPOINT", "huggingface.co")
    refused(fetch, "huggingface.co: not an address of the web", hub=MODEL, revision="main")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set: unset it"):
        hub_module.resolve_revision(MODEL, "model", "main")


def test_a_failed_retrieval_goes_on_where_it_stopped(hub, fetch, monkeypatch):
    monkeypatch.setattr(hub_module, "THREADS", 1)  # one after the other, in order
    hub.fail("*/weights-2.safetensors", "404", times=1)
    refused(fetch, "weights-2.safetensors: not found", hub=MODEL, revision="main")
    out, facts = fetch(hub=MODEL, revision="main")
    assert contents(out) == FILES
    assert facts["fetched"] == 200_000


def test_names_that_lead_outside_are_refused(fetch, monkeypatch):
    evil = [hub_cache.Entry("../evil.json", 2, "0" * 40)]
    monkeypatch.setattr(hub_module._Hub, "_tree", lambda self, commit: evil)
    refused(fetch, "'../evil.json', which would lie outside", hub=MODEL, revision="main")


def test_a_file_named_like_the_record_is_refused(fetch, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/record.json").write_text("{}")
    content = content_digest(tmp_path / "mine")
    refused(fetch, "holds a file record.json", content=content, local_path=str(tmp_path / "mine"))


# Without a network


def test_offline_from_the_cache_of_huggingface_hub(hub, fetch, monkeypatch):
    snapshot_download(MODEL, endpoint=hub.endpoint)
    before = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = hub.commit("model", MODEL)
    out, facts = fetch(hub=MODEL, revision=commit)
    assert contents(out) == FILES
    assert facts == {"files": manifest(FILES), "bytes": facts["bytes"], "resolved": commit, "fetched": 0}
    assert fetch(hub=MODEL, revision="main")[1]["resolved"] == commit
    assert len(hub.requests) == before


def test_offline_from_what_we_cached_ourselves(hub, fetch, monkeypatch, capsys):
    fetch(hub=MODEL, revision="main")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    out, _ = fetch(hub=MODEL, revision=hub.commit("model", MODEL))
    assert contents(out) == FILES
    assert "nobody tells which files" in capsys.readouterr().err


def test_offline_what_is_damaged_or_missing_is_named(hub, fetch, monkeypatch):
    folder = Path(snapshot_download(MODEL, endpoint=hub.endpoint))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (folder / "config.json").resolve().write_bytes(b'{"model_type": "evil"}\n')
    commit = hub.commit("model", MODEL)
    refused(fetch, "config.json: HF_HUB_OFFLINE is set, and .* does not hold it", hub=MODEL, revision=commit)
    refused(fetch, "does not hold revision v2", hub=MODEL, revision="v2")
    refused(fetch, "does not hold revision main", hub="owner/other", revision="main")


def test_offline_caches_without_links_are_verified_by_their_listing(hub, fetch, monkeypatch):
    folder = Path(snapshot_download(MODEL, endpoint=hub.endpoint))
    for path in [p for p in folder.rglob("*") if p.is_symlink()]:
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
    shutil.rmtree(folder.parents[1] / "blobs")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = hub.commit("model", MODEL)
    assert contents(fetch(hub=MODEL, revision=commit)[0]) == FILES
    (folder / "weights-2.safetensors").write_bytes(noise(200_000, 8))
    refused(fetch, "weights-2.safetensors: .* does not hold it", hub=MODEL, revision=commit)


def test_a_pinned_commit_in_the_cache_needs_no_network(hub, fetch, monkeypatch, capsys):
    fetch(hub=MODEL, revision="main")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert contents(fetch(hub=MODEL, revision=hub.commit("model", MODEL))[0]) == FILES
    assert "no connection" in capsys.readouterr().err
    refused(fetch, "no connection", hub=MODEL, revision="main")  # a branch may have moved


# Killed, and no room


def killed_in_the_middle(hub, tmp_path, fields):
    """Kill a retrieval with SIGKILL once a part of it is on the disk; how many bytes that part has."""
    program = """
        import json, sys
        from pathlib import Path
        from peftbench.retrieve.fetch import retrieve
        from peftbench.spec import RetrieveSpec
        fields, out, staging, mirrors = json.loads(sys.argv[1])
        Path(out).mkdir()
        retrieve(RetrieveSpec(**fields), Path(out), Path(staging), "", mirrors)
        """
    arguments = json.dumps([fields, str(tmp_path / "killed"), str(tmp_path / "staging"), hub.mirrors()])
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), arguments],
        env={**os.environ, **hub.environment(tmp_path / "home")},
    )
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            sizes = [p.stat().st_size for p in (tmp_path / "staging").glob("*") if p.suffix != ".json"]
            if max(sizes, default=0) > 300_000:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finally:
        process.kill()
    return max(p.stat().st_size for p in (tmp_path / "staging").glob("*") if p.suffix != ".json")


@pytest.mark.parametrize(
    "fields, name",
    [
        ({"hub": MODEL, "revision": "main", "files": ["weights-1*"]}, "weights-1.safetensors"),
        ({"url": ARCHIVE}, "pictures.zip"),
    ],
)
def test_a_killed_download_goes_on(hub, fetch, tmp_path, fields, name):
    hub.fail(f"*/{name}", "slow", block=60_000, pause=0.05)
    size = killed_in_the_middle(hub, tmp_path, fields)
    assert 300_000 < size < BIG
    seen = len(hub.requests)
    out, facts = fetch(**fields)
    [content] = [r for r in hub.requests[seen:] if r.status == 206]
    assert content.range == f"bytes={size}-"
    assert facts["fetched"] == BIG - size
    whole = next((hub.root).rglob(name)).read_bytes()
    assert contents(out) == {name: whole} and facts["files"] == manifest({name: whole})


def test_a_full_disk_is_told_before_and_while(hub, fetch, tmp_path, monkeypatch):
    plain = Path.open

    def full(self, mode="r", *rest, **options):
        return plain(Path("/dev/full") if mode == "ab" else self, mode, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        refused(fetch, "the disk is full: nothing was stored", hub=MODEL, revision="main")
        refused(fetch, "the disk is full: nothing was stored", url=ARCHIVE)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    refused(fetch, r"needs 3.2 MB, .* has 1.0 kB free: make room", hub=MODEL, revision="main")
    refused(fetch, r"needs 3.0 MB, .* has 1.0 kB free: make room", url=ARCHIVE)


# A file of the web


def sha256(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def archive(root):
    return (root / "files/images.example.org/zips/pictures.zip").read_bytes()


@pytest.mark.parametrize("known", [True, False])
def test_a_file_of_the_web(hub, fetch, archive, known):
    out, facts = fetch(url=ARCHIVE, sha256=sha256(archive) if known else "")
    assert contents(out) == {"pictures.zip": archive}
    address = f"{hub.endpoint}/files/images.example.org/zips/pictures.zip"
    files = manifest({"pictures.zip": archive})
    assert facts == {"files": files, "bytes": BIG, "resolved": address, "fetched": BIG}


@pytest.mark.parametrize(
    "kind, options",
    [
        ("500", {"times": 2}),
        ("cut", {"times": 3, "after": 500_000}),
        ("length", {"by": 10}),
        ("slow", {"block": 10**6}),
    ],
)
def test_faults_of_the_web_are_outlasted(hub, fetch, archive, kind, options):
    hub.fail("*.zip", kind, **options)
    assert contents(fetch(url=ARCHIVE)[0]) == {"pictures.zip": archive}


def test_wrong_bytes_are_fetched_once_more(hub, fetch, archive):
    hub.fail("*.zip", "wrong")
    out, facts = fetch(url=ARCHIVE, sha256=sha256(archive))
    assert contents(out) == {"pictures.zip": archive} and facts["fetched"] == 2 * BIG
    refused(fetch, f"came twice with sha256 {sha256(archive)} instead of 0000", url=ARCHIVE, sha256="0" * 64)


@pytest.mark.parametrize(
    "kind, options, match",
    [
        ("404", {}, r"pictures.zip: there is no such file \(by way of http"),
        ("403", {}, r"pictures.zip: access is refused .*: download it by hand and use 'path:'"),
        ("429", {}, "refuses so many requests"),
        ("500", {}, r"fails \(HTTP 500\), 6 times"),
        ("cut", {"after": 100}, "6 times .*: run snakemake again, it continues"),
    ],
)
def test_lasting_faults_of_the_web_are_told(hub, fetch, kind, options, match):
    hub.fail("*.zip", kind, times=None, **options)
    refused(fetch, match, url=ARCHIVE)


def test_a_file_that_changed_between_two_tries_comes_whole(hub, fetch, root, archive):
    hub.fail("*.zip", "cut", times=None, after=1000)
    refused(fetch, "broke", url=ARCHIVE)
    hub.mend()
    path = root / "files/images.example.org/zips/pictures.zip"
    path.write_bytes(noise(BIG + 5, 6))
    try:
        out, facts = fetch(url=ARCHIVE)
        assert contents(out) == {"pictures.zip": noise(BIG + 5, 6)} and facts["fetched"] == BIG + 5
    finally:
        path.write_bytes(archive)


def test_a_mirror_may_be_a_folder(tmp_path, archive, fetch, hub, monkeypatch):
    (tmp_path / "coco/zips").mkdir(parents=True)
    (tmp_path / "coco/zips/pictures.zip").write_bytes(archive)
    mirrors = {"http://images.example.org/": f"{tmp_path}/coco/", "http://images.": "http://127.0.0.1:9/"}
    monkeypatch.setattr(hub, "mirrors", lambda: mirrors)
    out, facts = fetch(url=ARCHIVE, sha256=sha256(archive))
    assert contents(out) == {"pictures.zip": archive} and facts["fetched"] == 0
    refused(fetch, "its mirror .* does not exist", url="http://images.example.org/none.zip")
    refused(fetch, "its mirror .* with sha256", url=ARCHIVE, sha256="0" * 64)


def test_names_in_addresses():
    assert url.base_name("https://example.org/a/b%20c.zip?dl=1#x") == "b c.zip"
    for address in ("https://example.org/", "https://example.org/a/..", "https://example.org/..%2Fx"):
        with pytest.raises(UserError, match="ends in no file name"):
            url.base_name(address)


def test_a_part_that_nothing_guards_begins_anew(hub, fetch, monkeypatch, archive):
    from loopback_hub import _Handler

    head = _Handler._head

    def bare(self, status, headers):
        head(self, status, {n: v for n, v in headers.items() if n not in ("ETag", "Last-Modified")})

    monkeypatch.setattr(_Handler, "_head", bare)
    hub.fail("*.zip", "cut", after=1000)
    out, _ = fetch(url=ARCHIVE)
    assert contents(out) == {"pictures.zip": archive}
    assert [r.range for r in hub.content] == ["", ""]
    hub.fail("*.zip", "cut", times=None, after=1000)
    refused(fetch, "broke", url=ARCHIVE)
    hub.mend()
    assert contents(fetch(url=ARCHIVE)[0]) == {"pictures.zip": archive}


def test_a_web_page_is_no_archive(fetch, hub, monkeypatch, root):
    from loopback_hub import _Handler

    head = _Handler._head

    def page(self, status, headers):
        head(self, status, {**headers, "Content-Type": "text/html; charset=utf-8"})

    monkeypatch.setattr(_Handler, "_head", page)
    refused(fetch, "a web page came instead of the file", url=ARCHIVE)


# Local files


def test_a_local_folder_is_copied_as_planned(fetch, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    (mine / "pictures").mkdir(parents=True)
    (mine / "rows.jsonl").write_text("{}\n")
    (mine / "pictures/a.png").write_bytes(noise(1000, 7))
    (mine / ".hidden").write_text("x")
    monkeypatch.setattr(local, "LINK_FROM_BYTES", 500)
    content = content_digest(mine)
    out, facts = fetch(content=content, local_path=str(mine))
    expected = {"rows.jsonl": b"{}\n", "pictures/a.png": noise(1000, 7)}
    assert contents(out) == expected and facts["files"] == manifest(expected)
    assert facts["resolved"] == content and facts["fetched"] == 0
    assert (out / "pictures/a.png").samefile(mine / "pictures/a.png")
    assert not (out / "rows.jsonl").samefile(mine / "rows.jsonl")
    (mine / "rows.jsonl").write_text("{}\n{}\n")
    refused(
        fetch, "changed while being read or since it was planned: run", content=content, local_path=str(mine)
    )
    (mine / "pictures/a.png").rename(mine / "b.png")
    refused(fetch, "changed while being read", content=content, local_path=str(mine))
    refused(fetch, "gone: not found", content=content, local_path=str(tmp_path / "gone"))


def test_a_local_file_is_copied(fetch, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n")
    out, facts = fetch(content=content_digest(file), local_path=str(file))
    assert contents(out) == {"rows.jsonl": b"{}\n"} and facts["bytes"] == 3


# Pinning


CONFIG = """\
# A model, and why.
title: a model   # short
source:
  kind: hub
  from:
    weights:
      hub: owner/model  # the original
      revision: main    # to be pinned
      files: ["*.json", '*.safetensors']
    flow: {hub: owner/model, files: [config.json]}
    other:
      hub:   "owner/other"
      files: [a]
    done: {hub: owner/model, revision: 0123456789012345678901234567890123456789}
    pictures: {url: "http://images.example.org/a.zip"}
revision: main
"""


def test_pinning_changes_revisions_only(hub, tmp_path):
    path = tmp_path / "models/m.yaml"
    path.parent.mkdir()
    path.write_bytes(CONFIG.replace("\n", "\r\n").encode())
    commit, other = "a" * 40, "b" * 40
    asked = []

    def resolve(repo, repo_type, revision):
        asked.append((repo, repo_type, revision))
        return commit if repo == "owner/model" else other

    lines = pin.pin_file(path, resolve)
    expected = CONFIG.replace("revision: main    #", f"revision: {commit}    #")
    expected = expected.replace("{hub: owner/model, files", f"{{hub: owner/model, revision: {commit}, files")
    expected = expected.replace('"owner/other"\n', f'"owner/other"\n      revision: {other}\n')
    assert path.read_bytes() == expected.replace("\n", "\r\n").encode()
    assert asked == [("owner/model", "model", "main")] * 2 + [("owner/other", "model", "main")]
    assert lines[0] == f"{path}: weights: owner/model: main -> {commit}"
    assert lines[-1] == f"{path}: done: owner/model stays at {'0123456789' * 4}"
    assert len(lines) == 4
    before = path.read_bytes()
    assert all("stays at" in line for line in pin.pin_file(path, resolve))
    assert path.read_bytes() == before


def test_pinning_asks_the_hub(hub, tmp_path):
    (tmp_path / "datasets").mkdir()
    path = tmp_path / "datasets/d.yaml"
    path.write_text("source: {kind: x, from: {data: {hub: owner/data, revision: main}}}")
    pin.pin_file(path)
    commit = hub.commit("dataset", "owner/data")
    assert path.read_text() == f"source: {{kind: x, from: {{data: {{hub: owner/data, revision: {commit}}}}}}}"
    path.write_text("source: {from: {data: {hub: owner/none}}}")
    with pytest.raises(UserError, match="no such dataset"):
        pin.pin_file(path)
    assert path.read_text() == "source: {from: {data: {hub: owner/none}}}"
    path.write_text("source: {from: [")
    with pytest.raises(UserError, match="not YAML"):
        pin.pin_file(path)
    path.write_text("source: {kind: embedded}")
    assert pin.pin_file(path) == []
    with pytest.raises(UserError, match="neither in config/models nor"):
        pin.pin_file(tmp_path / "x.yaml")


def test_pinned_text_of_every_shape(tmp_path):
    path = tmp_path / "models/m.yaml"
    path.parent.mkdir()
    for text, expected in (
        (
            "source:\n  from:\n    w:\n      hub: o/m",
            "source:\n  from:\n    w:\n      hub: o/m\n      revision: C",
        ),
        ("source:\n  from:\n    w:\n      revision:\n      hub: o/m\n", None),
        (
            "source:\n  from:\n    w: {revision: 'v1.0', hub: o/m}\n",
            "source:\n  from:\n    w: {revision: C, hub: o/m}\n",
        ),
    ):
        path.write_text(text)
        pin.pin_file(path, lambda *_: "C" * 40)
        expected = expected or text.replace("revision:", "revision: C")
        assert path.read_text() == expected.replace("C", "C" * 40)
