"""Every edit of ``edit_matrix`` reruns exactly what it should. The table of all of them ends the test run."""

import pytest

import edit_matrix
from edit_words import Edit
from edits import EDITS
from peftbench.stages import RULES


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    with edit_matrix.matrix(tmp_path_factory.mktemp("matrix")) as made:
        yield made


@pytest.mark.parametrize("edit", EDITS, ids=[edit.name for edit in EDITS])
def test_edit(matrix, edit, record_property):
    outcome = matrix.look(edit)
    record_property(edit_matrix.EDIT_ROW, outcome.row)
    assert outcome.holds, outcome.got


def test_there_are_enough_edits_and_each_has_a_name_of_its_own():
    assert len({edit.name for edit in EDITS}) == len(EDITS) >= 40
    assert sum(edit.really for edit in EDITS) >= len(EDITS) / 3


def test_every_stage_is_in_the_matrix(matrix):
    done, _ = matrix.dry_run(matrix.finished)
    assert {name.partition(" ")[0] for name in done.names.values()} == set(RULES) - {"claims"}


def test_a_wrong_expectation_is_noticed(matrix):
    """What must run and does not, what runs and must not, and patterns that match nothing."""
    rank = next(edit for edit in EDITS if edit.name == "LoRA's rank")
    for runs, said in [
        (rank.runs[:1], "runs: tabulate small"),
        ((*rank.runs, "prepare own"), "does not run: prepare own"),
        ((*rank.runs, "prepare lost"), "nothing matches 'prepare lost'"),
    ]:
        outcome = matrix.look(Edit(rank.name, rank.do, runs))
        assert not outcome.holds and said in outcome.got
