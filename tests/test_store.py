import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from peftbench import store
from peftbench.canonical import digest
from peftbench.errors import UserError


def record(**changes):
    identity = {
        "stage": "subset",
        "spec": {"size": 5, "seed": 1},
        "code": {"modules": {}, "packages": {}},
        "inputs": {},
    }
    identity |= changes
    return store.Record(digest=digest(identity), label="x", facts={"n": 5}, provenance={}, **identity)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_whole_or_not_there(tmp_path):
    target = tmp_path / "deep" / "a.json"
    store.atomic_json(target, {"b": 1, "a": [1.5]})
    assert json.loads(target.read_text()) == {"a": [1.5], "b": 1}

    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.atomic_write(target, fail)
    assert json.loads(target.read_text()) == {"a": [1.5], "b": 1}
    assert names(target.parent) == ["a.json"]


def test_nan_in_a_record_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError):
        store.atomic_json(tmp_path / "a.json", {"loss": float("nan")})
    assert names(tmp_path) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    def full(path: Path) -> None:
        path.write_bytes(b"x" * 100)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(
        UserError, match=r"a.parquet: the disk is full: nothing was stored, make room"
    ) as caught:
        store.atomic_parquet(tmp_path / "a.parquet", full)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_really_full_device_is_recognised(tmp_path):
    with pytest.raises(UserError, match="the disk is full"):
        store.atomic_write(tmp_path / "a", lambda path: Path("/dev/full").write_bytes(b"x" * 10))


def test_files_get_the_usual_permissions(tmp_path):
    store.atomic_text(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_record_comes_back(tmp_path):
    made = record()
    store.atomic_json(tmp_path / "record.json", made)
    assert store.read_record(tmp_path / "record.json") == made


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda text: text[: len(text) // 2], "not a record"),
        (lambda text: "{}", "not a record"),
        (lambda text: text.replace('"seed": 1', '"seed": 2'), "its content belongs to digest"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, damage, said):
    path = tmp_path / "record.json"
    store.atomic_json(path, record())
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=said):
        store.read_record(path)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(UserError, match=r"record.json: no record \(No such file"):
        store.read_record(tmp_path / "record.json")


def test_a_partial_folder_moves_up_when_all_went_well(tmp_path):
    target = tmp_path / "run"
    (target / "adapter").mkdir(parents=True)
    (target / "adapter" / "old").touch()
    (target / ".partial-killed").mkdir()
    with store.partial_directory(target) as work:
        (work / "adapter").mkdir()
        (work / "adapter" / "new").touch()
        (work / "log.csv").touch()
    assert names(target) == ["adapter", "log.csv"]
    assert names(target / "adapter") == ["new"]


def test_a_partial_folder_goes_when_something_failed(tmp_path):
    target = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt), store.partial_directory(target) as work:
        (work / "half").touch()
        raise KeyboardInterrupt
    assert not target.exists()


HOLD = """
import sys, time
from pathlib import Path
from peftbench.store import locked
with locked(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(lock, seconds):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_process_waits_and_is_told_for_whom(tmp_path):
    lock = tmp_path / "locks" / "abc"
    with hold(lock, 1.0) as first:
        told = []
        start = time.monotonic()
        with store.locked(lock, told.append):
            assert time.monotonic() - start > 0.5
        assert told == [f"process {first.pid} on {os.uname().nodename}"]
    assert not lock.exists()


def test_a_killed_holder_holds_nothing(tmp_path):
    lock = tmp_path / "abc"
    with hold(lock, 60) as first:
        first.kill()
        first.wait()
        with store.locked(lock, pytest.fail):
            pass


def test_many_processes_never_hold_a_lock_together(tmp_path):
    script = """
import sys
from pathlib import Path
from peftbench.store import locked
log = Path(sys.argv[1]) / "log"
for _ in range(20):
    with locked(Path(sys.argv[1]) / "lock", lambda holder: None):
        with log.open("a") as stream:
            stream.write("in\\n")
        with log.open("a") as stream:
            stream.write("out\\n")
"""
    crowd = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(3)]
    assert [process.wait() for process in crowd] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "in\nout\n" * 60


def test_digest_of_a_folder():
    assert store.directory_digest(Path("runs/m/d/lora-0123456789abcdef")) == "0123456789abcdef"
    with pytest.raises(UserError, match="does not end in a digest"):
        store.directory_digest(Path("runs/m/d/lora-big"))
