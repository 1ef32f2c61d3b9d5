"""Every malformed input of ``bad_inputs`` is one clear line, a status, and nothing half-written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bad_inputs import CASES, Case
from bad_world import World, copied, finish, new_world

pytestmark = pytest.mark.filterwarnings("ignore")


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
    with copied(template, template.root.parent / "case", case.results) as world:
        case.damage(world)
        before = world.files()
        done = case.call(world)
        shown = f"\nstatus {done.status}\n--- out\n{done.out[-1500:]}\n--- err\n{done.err[-3000:]}"
        assert done.status == case.status, shown
        assert "Traceback" not in done.err + done.out, shown
        assert len(done.errors) == 1, shown
        line = done.errors[0]
        assert all(word in line for word in case.says), f"{case.says} in{shown}"
        assert len(line) < 600, shown
        left = world.files() - before
        assert not left, f"left behind: {sorted(left)}{shown}"
