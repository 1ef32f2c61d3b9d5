import shutil
from collections.abc import Sequence

import msgspec
import pytest

from peftbench.annotation.agreement import agreement
from peftbench.annotation.collect import Annotation, Annotations
from peftbench.annotation.sheet import Sheet, SheetAnswer, SheetItem

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def annotated(flags: Sequence[Sequence[bool]]) -> Annotations:
    """One answer per item; rows are items, columns annotators."""
    items = [
        SheetItem(id=str(i), image="", prompt="", answers=[SheetAnswer(key="1", text="t", systems=[])])
        for i in range(len(flags))
    ]
    people = [
        Annotation(
            annotator=str(p), flags={(str(i), "1"): bool(row[p]) for i, row in enumerate(flags)}, notes={}
        )
        for p in range(len(flags[0]))
    ]
    return Annotations(sheet=Sheet(sheet="x", title="", seed=0, systems=[], items=items), people=people)


def test_cohens_kappa_of_a_known_table() -> None:
    rows = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15
    found = agreement(annotated(rows))
    assert found.statistic == "Cohen's kappa"
    assert found.kappa == pytest.approx(0.4)  # the textbook's example: 0.7 observed, 0.5 expected
    assert found.equal == pytest.approx(0.7)
    assert found.interval is not None
    assert found.asymptotic is not None
    for ours, theirs in zip(found.interval, found.asymptotic, strict=True):
        assert ours == pytest.approx(theirs, abs=0.05), "independent answers: both intervals agree"
    assert agreement(annotated(rows)) == found, "the same seed, the same interval"


def test_fleiss_kappa_by_hand() -> None:
    rows = [(1, 1, 1), (1, 1, 0), (0, 0, 0), (0, 0, 1), (1, 1, 1), (0, 0, 0)]
    observed = (1 + 1 / 3 + 1 + 1 / 3 + 1 + 1) / 6
    yes = 9 / 18
    expected = yes**2 + (1 - yes) ** 2
    found = agreement(annotated(rows))
    assert found.statistic == "Fleiss' kappa"
    assert found.kappa == pytest.approx((observed - expected) / (1 - expected))
    assert found.asymptotic is None


@pytest.mark.parametrize("people", [2, 3])
def test_one_category_has_no_kappa(people: int) -> None:
    found = agreement(annotated([(0,) * people] * 10))
    assert (found.kappa, found.interval, found.equal) == (None, None, 1.0)
    assert found.problem == "not computable: all annotators said 'no' every time"


def test_rare_categories_tell_how_often_kappa_was_undefined() -> None:
    found = agreement(annotated([(1, 1)] + [(0, 0)] * 9))
    assert found.kappa == 1.0
    assert 0.2 < found.undefined < 0.5  # 0.9 ** 10 = 0.35
    assert found.interval == [1.0, 1.0]


def test_answers_about_one_picture_are_resampled_together() -> None:
    rows = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15
    single = agreement(annotated(rows))
    together = annotated(rows)
    # the same rows as ten answers to each of five pictures
    items = []
    people: list[dict[tuple[str, str], bool]] = [{}, {}]
    for picture in range(5):
        keys = "123456789a"
        answers = [SheetAnswer(key=key, text=key, systems=[]) for key in keys]
        items.append(SheetItem(id=str(picture), image="", prompt="", answers=answers))
        for place, key in enumerate(keys):
            for p in (0, 1):
                people[p][str(picture), key] = bool(rows[10 * picture + place][p])
    clustered = agreement(
        Annotations(
            sheet=msgspec.structs.replace(together.sheet, items=items),
            people=[Annotation(annotator=str(p), flags=people[p], notes={}) for p in (0, 1)],
        )
    )
    assert clustered.kappa == pytest.approx(single.kappa)
    assert clustered.interval is not None
    assert single.interval is not None
    assert clustered.interval[1] - clustered.interval[0] > single.interval[1] - single.interval[0]
