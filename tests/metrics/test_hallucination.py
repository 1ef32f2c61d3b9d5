from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import example

from peftbench.errors import UserError
from peftbench.metrics import chair, mmhal, pope
from peftbench.metrics._singular import singular

SYNONYMS = """bus, minibus, trolley
tie, bowtie
wine glass, goblet
toilet
chair, seat, stool
oven, stovetop oven, stove
dog, puppy
jet, airplane
motorcycle,  motor bike, iPhone
person, man, child, people
"""


@pytest.fixture
def official(tmp_path: Path) -> chair.Vocabulary:
    path = tmp_path / "synonyms.txt"
    path.write_text(SYNONYMS)
    return chair.Vocabulary(chair.read_synonyms(path), "coco")


@pytest.mark.parametrize(
    ("caption", "mentioned"),
    [
        ("A bus.", []),  # its singular is "bu"
        ("Two buses", ["bus"]),
        ("minibus", []),
        ("He wears ties", []),  # "ty"
        ("A tie, a bow tie", ["tie", "tie"]),
        ("A wine glass of red", ["wine glass"]),  # "wine glas"
        ("toilet seat", ["toilet"]),
        ("A seat near the toilet", ["toilet"]),
        ("a seat", ["chair"]),
        ("stove top oven", ["oven", "oven"]),
        ("a motor bike", []),  # the leading space in the file
        ("an iPhone", []),  # the capital in the file
        ("a baby dog", ["dog"]),
        ("a passenger jet", ["jet"]),
        ("Men's dogs, people and children!", ["person", "dog", "person", "person"]),
        ("", []),
    ],
)
def test_official_rules_with_their_slips(
    official: chair.Vocabulary, caption: str, mentioned: list[str]
) -> None:
    assert official.mentions(caption) == mentioned


def test_chair_counts() -> None:
    scene = {"objects": ["dog", "red ball"], "names": {"dog": ["dog", "puppy"], "red ball": ["red ball"]}}
    other = {"objects": ["cat"], "names": {"cat": ["cat", "kitten"]}}
    rows = [
        example("1", source=scene, answers=["a puppy with a thing"]),
        example("2", source=other, answers=["a kitten and a dog"]),
        example("3", source=other),
    ]
    result = chair.score(["puppies and kittens, kittens", "a dog", "nothing here"], rows, {})
    assert result.per_example == [100.0, 0.0, 0.0]
    assert not result.higher_is_better
    assert result.extra["chair_i"] == pytest.approx(100 * 2 / 4)
    assert result.columns["hallucinated"] == ["cat, cat", "", ""]
    assert result.extra["no_mention"] == 1
    assert result.extra["recall"] == pytest.approx(100 * 1 / 4)


def test_chair_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'1' has no list of objects"):
        chair.score(["x"], [example("1")], {})
    with pytest.raises(UserError, match="needs the setting synonyms"):
        chair.score(["x"], [example("1", source={"objects": []})], {"rules": "coco"})
    with pytest.raises(UserError, match="No such file"):
        chair.score(["x"], [example("1", source={"objects": []})], {"synonyms": str(tmp_path / "no.txt")})


def test_a_name_shared_by_two_objects_accuses_nobody() -> None:
    facts = [{"objects": ["hen", "duck"], "names": {"hen": ["hen", "bird"], "duck": ["duck", "bird"]}}]
    assert chair._scene_groups(facts) == [["hen"], ["duck"]]


@pytest.mark.parametrize(
    ("word", "one"),
    [
        ("bus", "bu"), ("buses", "bus"), ("ties", "ty"), ("glass", "glas"), ("glasses", "glass"),
        ("dogs", "dog"), ("people", "person"), ("children", "child"), ("women", "woman"), ("sheep", "sheep"),
        ("knives", "knife"),
        ("mice", "mouse"), ("scissors", "scissors"), ("s", "s"), ("leaves", "leaf"), ("boxes", "box"),
        ("skis", "ski"),
        ("benches", "bench"), ("teeth", "tooth"), ("dogs'", "dog's"), ("horses", "horse"), ("shoes", "shoe"),
    ],
)  # fmt: skip
def test_singular(word: str, one: str) -> None:
    assert singular(word) == one


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes", True), ("No", False), ("no", False), ("NO", True), ("No!", True), ("No\n", True),
        ('"No"', True),
        ("There isn't", True), ("", True), (".No", True), ("Not sure", True), ("Yes, not only", False),
        ("I do not know", False), ("No, there is", False), ("Yes. No", True), ("it is not. yes", False),
    ],
)  # fmt: skip
def test_pope_reading(text: str, yes: bool) -> None:
    assert pope.says_yes(text) == yes


def test_pope_rates() -> None:
    labels = ["yes", "yes", "no", "no", "no"]
    rows = [example(str(n), answers=[label], question_type="random") for n, label in enumerate(labels)]
    result = pope.score(["Yes", "No", "Yes", "No", "maybe"], rows, {})
    assert result.value == result.extra["accuracy"] == 40.0
    assert (result.extra["tp"], result.extra["fp"], result.extra["tn"], result.extra["fn"]) == (1, 2, 1, 1)
    assert result.extra["precision"] == pytest.approx(100 / 3)
    assert result.extra["f1"] == pytest.approx(40.0)
    assert result.extra["yes_rate"] == 60.0
    assert result.extra["unreadable"] == 1
    assert result.extra["by_category"]["random"]["accuracy"] == 40.0


def test_pope_without_any_yes_is_zero_not_a_crash() -> None:
    rows = [example("1", answers=["yes"]), example("2", answers=["no"])]
    result = pope.score(["no", "no"], rows, {})
    assert (result.extra["precision"], result.extra["recall"], result.extra["f1"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: 3", (3, True)), ("rating: 0, bad", (0, True)), ("Rating:3", (0, False)), 
        ("**Rating**: 3", (0, False)),
        ("Rating: (3)", (0, False)), ("Rating: 3 or Rating: 5", (0, False)), ("Rating: 3.5", (3, True)),
        ("Rating: 13", (1, True)), ("Operating: 3", (3, True)), ("Rating: 6\nRating: 6", (6, True)), 
        ("", (0, False)), ("Rating: 7", (0, False)),
    ],
)  # fmt: skip
def test_mmhal_reading(text: str, rating: tuple[int, bool]) -> None:
    assert mmhal.read_rating(text) == rating


def test_mmhal_types_follow_the_position() -> None:
    rows = [example(str(n)) for n in range(96)]
    texts = [f"Rating: {6 if n % 8 == 0 else 1}" for n in range(96)]
    result = mmhal.score(texts, rows, {})
    assert result.value == pytest.approx((6 + 7) / 8)
    attribute = {"value": 6.0, "stderr": 0.0, "hallucination_rate": 0.0, "n": 12}
    assert result.extra["by_type"]["attribute"] == attribute
    assert result.extra["rate"]["value"] == 87.5
    assert result.extra["rate"]["stderr"] == pytest.approx(100 * (0.875 * 0.125 / 95) ** 0.5)
    assert result.extra["by_type"]["other"]["hallucination_rate"] == 100.0
    assert result.extra["hallucination_rate"] == 87.5
    assert result.extra["complete"] is True
    assert result.extra["consistent"] is True


def test_rules_of_the_singular_that_lead_in_a_circle_end() -> None:
    vocabulary = chair.Vocabulary([["dog"]], "names")
    assert vocabulary.form('"') == vocabulary.form('"s')
    assert vocabulary.mentions('" a dog "') == ["dog"]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_read(text: str) -> None:
    assert isinstance(pope.says_yes(text), bool)
    assert 0 <= mmhal.read_rating(text)[0] <= 6
    vocabulary = chair.Vocabulary([["dog", "puppy"], ["wine glass"]], "names")
    assert set(vocabulary.mentions(text)) <= {"dog", "wine glass"}
