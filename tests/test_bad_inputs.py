"""Every malformed input of ``bad_inputs`` is one clear line, a status, and nothing half-written; odd ones are none."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bad_case import Case, run
from bad_inputs import CASES
from bad_world import World, copied, finish, new_world

pytestmark = pytest.mark.filterwarnings("ignore")
LEAST, LEAST_REAL = 100, 15


@pytest.fixture(scope="module")
def template() -> Iterator[World]:
    """The finished project; in a folder that other users may read too."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        world = new_world(Path(folder, "made"))
        finish(world)
        yield world


@pytest.mark.parametrize("case", CASES, ids=[f"{case.area}: {case.name}" for case in CASES])
def test_a_bad_input_is_one_clear_line(template: World, case: Case) -> None:
    done, problems = run(case, template)
    assert not problems, f"\nstatus {done.status}\n--- out\n{done.out[-1500:]}\n--- err\n{done.err[-3000:]}"


def test_the_table_is_as_long_as_it_should_be() -> None:
    assert len(CASES) >= LEAST
    assert sum(case.process for case in CASES) >= LEAST_REAL
    names = [(case.area, case.name) for case in CASES]
    assert len(set(names)) == len(names)
    assert all(case.says for case in CASES)


# ---- what looks odd and is right -----------------------------------------------------------------

BOM = b"\xef\xbb\xbf"


def with_bom(data: bytes) -> bytes:
    return BOM + data


def with_crlf(data: bytes) -> bytes:
    return data.replace(b"\n", b"\r\n")


@pytest.mark.parametrize("change", [with_bom, with_crlf])
@pytest.mark.parametrize(
    "file",
    [
        "config/config.yaml",
        "config/studies/small.yaml",
        "config/models/tiny.yaml",
        "config/datasets/drawn.yaml",
    ],
)
def test_marks_and_line_ends_of_windows_change_no_digest(
    template: World, file: str, change: Callable[[bytes], bytes]
) -> None:
    wanted = {view.digest for view in template.plan().study("small").views}
    with copied(template, template.root.parent / "case", results=False) as world:
        world.edit(file, change)
        assert {view.digest for view in world.plan().study("small").views} == wanted


@pytest.mark.parametrize("change", [with_bom, with_crlf])
def test_tables_of_windows_are_read(template: World, change: Callable[[bytes], bytes]) -> None:
    with copied(template, template.root.parent / "case", results=False) as world:
        for split in ("train", "test"):
            world.edit(f"my_data/{split}.csv", change)
        for stage in ("retrieve", "prepare"):
            done = world.job(stage, label="own" if stage == "prepare" else "my_data")
            assert done.status == 0, done.err
        assert _answers(world) == _answers(template)


def _answers(world: World) -> list[Any]:
    import pyarrow.parquet as pq

    rows = pq.read_table(world.path("results/data/own-*/train.parquet")).to_pylist()
    return [(row["question"], row["answers"]) for row in rows]


@pytest.mark.parametrize("change", [with_bom, with_crlf])
def test_metric_files_of_windows_are_read(template: World, change: Callable[[bytes], bytes]) -> None:
    with copied(template, template.root.parent / "case", results=False) as world:
        world.write("p.jsonl", change(b'{"id": 1, "prediction": "red"}\n'))
        world.write("r.jsonl", change(b'{"id": 1, "answers": ["red"]}\n'))
        done = world.cli(
            "score", "--metric", "exact_match", "--predictions", "p.jsonl", "--references", "r.jsonl"
        )
        assert done.status == 0 and '"score":100' in done.out, done.err


def test_the_hash_seed_changes_no_digest(template: World) -> None:
    shown = {
        template.process("peftbench", "runs", "--json", PYTHONHASHSEED=seed).out for seed in ("0", "4711")
    }
    assert len(shown) == 1 and '"run"' in shown.pop()


# ---- nonsense in records is shown, and does not stop the rest ------------------------------------


@pytest.mark.parametrize(
    "key, value",
    [("value", "high"), ("value", float("nan")), ("value", ...), ("n", "many"), ("n", -3), ("stderr", -1.0)],
)
def test_nonsense_in_a_score_is_a_failed_cell(template: World, key: str, value: Any) -> None:
    with copied(template, template.root.parent / "case", results=True) as world:
        record = world.path("results/runs/tiny/own/lora-*/predictions-*/scores-*/record.json")
        world.change(str(record.relative_to(world.root)), f"facts.{key}", value)
        done = world.job("tabulate")
        assert done.status == 0, done.err
        assert "failed" in world.path("results/tables/small.md").read_text()


@pytest.mark.parametrize("value", ["long", float("nan"), -3.0, 1e12, None])
def test_nonsense_in_a_record_is_left_out_of_the_plan(template: World, value: Any) -> None:
    with copied(template, template.root.parent / "case", results=True) as world:
        record = world.path("results/runs/tiny/own/lora-*/record.json")
        world.change(str(record.relative_to(world.root)), "provenance.wall_seconds", value)
        done = world.cli("plan", "small", "--hardware", "cpu-2-cores")
        assert done.status == 0, done.err
        assert "wall_seconds" in done.out + done.err or "left out" in done.out + done.err
