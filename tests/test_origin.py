"""Where files come from: the ``from:`` block, local content, and the retrievals of a plan."""

import os
import shutil
import sys
from types import ModuleType

import pytest

from peftbench.errors import UserError
from peftbench.retrieve.origin import content_digest, parse_origins
from workflow_project import NAMES, Project, dataset


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/peftbench/hashes.json"


@pytest.fixture
def folder(tmp_path):
    own = tmp_path / "own"
    (own / "pictures").mkdir(parents=True)
    (own / "rows.csv").write_text("id,image")
    (own / "pictures/a.png").write_bytes(b"png")
    for path in (own / "rows.csv", own / "pictures/a.png"):
        os.utime(path, (1e9, 1e9))
    return own


def test_content_is_names_and_bytes(folder, tmp_path):
    first = content_digest(folder)
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    (moved / ".DS_Store").write_text("hidden files do not count")
    assert content_digest(moved) == first
    (moved / "pictures/a.png").write_bytes(b"gnp")
    assert content_digest(moved) != first
    (folder / "pictures/a.png").rename(folder / "pictures/b.png")
    assert content_digest(folder) != first


def test_content_is_remembered_until_a_file_changes(folder, cache, monkeypatch):
    first = content_digest(folder)
    assert cache.exists()
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("read again"))
    assert content_digest(folder) == first
    monkeypatch.undo()
    (folder / "rows.csv").write_text("id,imagE")
    os.utime(folder / "rows.csv", (1e9 + 1, 1e9 + 1))
    assert content_digest(folder) != first


def test_a_file_that_changed_just_now_is_not_remembered(folder, cache):
    (folder / "rows.csv").write_text("id,imagE")
    content_digest(folder)
    assert "rows.csv" not in cache.read_text() and "a.png" in cache.read_text()


def test_a_damaged_or_read_only_memory_does_no_harm(folder, cache):
    first = content_digest(folder)
    cache.write_text("{")
    assert content_digest(folder) == first
    cache.unlink()
    cache.parent.rmdir()
    cache.parent.write_text("a file where the folder should be")
    assert content_digest(folder) == first


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ([], "source.from: expected names"),
        ({"a": {"hub": "x/y", "url": "http://z"}}, "source.from.a: give exactly one of hub, url and path"),
        ({"a": {}}, "give exactly one"),
        ({"a": {"hub": "justaname"}}, "'justaname' is not of the form owner/name"),
        ({"a": {"url": "ftp://x"}}, "does not start with http"),
        ({"a": {"hubb": "x/y"}}, "unknown field `hubb`"),
        ({"a": {"path": "/no/such/folder"}}, "/no/such/folder: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line(block, said):
    with pytest.raises(UserError) as caught:
        parse_origins(block)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_only_names_that_cannot_move_are_pinned():
    origins = parse_origins(
        {
            "commit": {"hub": "a/b", "revision": "0" * 40},
            "branch": {"hub": "a/b"},
            "hashed": {"url": "https://x/y.zip", "sha256": "ab" * 32},
            "plain": {"url": "https://x/y.zip"},
        }
    )
    assert {name: origin.pinned for name, origin in origins.items()} == {
        "commit": True,
        "branch": False,
        "hashed": True,
        "plain": False,
    }
    assert origins["commit"].slug == "a--b" and origins["plain"].slug == "y.zip"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Two data sets from one archive and a folder, two models that share a repository."""
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project")
    taking = "RETRIEVES = True\n"
    for area in ("data", "models"):
        name = f"peftbench.{area}.sources.files"
        project.write(f"src/{name.replace('.', '/')}.py", taking)
        kind = ModuleType(name)  # plans made in this process import the installed package, not the copy
        kind.RETRIEVES = True
        monkeypatch.setitem(sys.modules, name, kind)
    coco = {"url": "http://images/train.zip"}
    for name in ("first", "second"):
        own = {"kind": "files", "from": {"coco": coco, "own": {"path": str(tmp_path / "own")}}}
        project.write_yaml(f"config/datasets/{name}.yaml", dataset("okvqa", source=own))
    model = {"title": "Tiny", "names": NAMES, "source": {"kind": "files", "from": {"hub": {"hub": "a/b"}}}}
    project.write_yaml("config/models/tiny.yaml", model)
    project.write_yaml(
        "config/models/variant.yaml", {"title": "Variant", "extends": "tiny", "precision": "fp32"}
    )
    return project


def test_equal_origins_are_one_retrieval(project, folder):
    project.edit("config/config.yaml", "- tiny", "- tiny\n  - variant")
    plan = project.plan()
    retrievals = {
        job.directory.partition("/")[2].rpartition("-")[0]
        for job in plan.jobs.values()
        if job.stage == "retrieve"
    }
    assert retrievals == {"train.zip", "own", "a--b"}
    prepare = plan.prepare("first")
    assert set(prepare.inputs) == {"files.coco", "files.own"}
    assert prepare.inputs["files.coco"] is plan.prepare("second").inputs["files.coco"]
    assert plan.build("variant") is plan.build("tiny")
    assert len(plan.retrievals(plan.study("small"))) == 3
    assert f'"local":"{folder}"' in plan.execution(prepare.inputs["files.own"])


def test_a_local_path_is_no_part_of_the_identity(project, folder, tmp_path):
    before = project.plan().prepare("first").digest
    folder.rename(tmp_path / "moved")
    for name in ("first", "second"):
        project.edit(f"config/datasets/{name}.yaml", str(folder), str(tmp_path / "moved"))
    assert project.plan().prepare("first").digest == before
    (tmp_path / "moved/rows.csv").write_text("id,other")
    assert project.plan().prepare("first").digest != before


def test_another_revision_is_another_base_model(project, folder):
    before = project.plan().build("tiny").digest
    project.edit("config/models/tiny.yaml", "hub: a/b", "hub: a/b\n      revision: v2")
    assert project.plan().build("tiny").digest != before


def test_a_kind_that_takes_nothing_refuses_origins(project, folder):
    del sys.modules["peftbench.data.sources.files"].RETRIEVES
    with pytest.raises(
        UserError, match=r"config/datasets/first.yaml: source: kind 'files' takes nothing from elsewhere"
    ):
        project.plan()


def test_prefetch_plans_exactly_the_retrievals(project, folder):
    assert project.jobs("prefetch") == {"prefetch": 1, "retrieve_source": 3}
    assert project.jobs("prefetch_small") == {"prefetch_small": 1, "retrieve_source": 3}
