import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import example

from peftbench.errors import UserError
from peftbench.metrics import exact_match, iconqa, scienceqa

FIVE = list("vwxyz")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("E", "E"),
        ("B. the cat", "B"),
        ("B.  ", "B"),
        ("The answer is C.", "C"),
        ("I think. The answer is C, not D.", "C"),
        ("The answer is AB", "A"),  # one more character, whatever it is
        ("The answer is A", ""),  # no character follows
        ("The answer is A\n", ""),  # and a new line is none
        ("The answer is A. The answer is A.", ""),
        ("A.", ""),
        (" A", ""),
        ("A\n", ""),
        ("(A)", ""),
        ("A)", ""),
        ("a", ""),
        ("A.foo", ""),
        ("F", ""),
        ("F. x", ""),
        ("The answer is F.", "F"),  # read, but no option
        ("", ""),
        ("ABC", ""),
    ],
)
def test_llava_reads_letters(text: str, letter: str) -> None:
    assert scienceqa.read_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A.", "A"),
        (" A", "A"),
        ("a\n", "A"),
        ("A.foo", "A"),
        ("a. x", ""),
        ("The answer is A.", ""),
        ("", ""),
    ],
)
def test_lmms_eval_reads_letters(text: str, letter: str) -> None:
    assert scienceqa.read_letter_lmms(text) == letter


def test_a_letter_beyond_the_choices_is_invalid() -> None:
    rows = [example("p", choices=["x", "y"], answer_index=1) for _ in range(3)]
    result = scienceqa.score(["B", "C", "what"], rows, {})
    assert result.per_example == [100.0, 0.0, 0.0]
    assert result.columns["parsed"] == [1, -1, -1]
    assert result.extra["invalid_rate"] == pytest.approx(200 / 3)


def test_scienceqa_splits() -> None:
    rows = [
        example(
            "1",
            image="i",
            choices=FIVE,
            answer_index=0,
            source={"hint": "", "grade": "grade3", "subject": "x"},
        ),
        example("2", choices=FIVE, answer_index=0, source={"hint": "h", "grade": "grade9", "subject": "y"}),
        example("3", choices=FIVE, answer_index=0, source={"hint": "", "grade": "grade6", "subject": "x"}),
    ]
    splits = scienceqa.score(["A", "B", "A"], rows, {}).extra["splits"]
    assert {name: (part["value"], part["n"]) for name, part in splits.items()} == {
        "img": (100.0, 1),
        "no_img": (50.0, 2),
        "text": (0.0, 1),
        "no_context": (100.0, 1),
        "grade_1_6": (100.0, 2),
        "grade_7_12": (0.0, 1),
        "x": (100.0, 2),
        "y": (0.0, 1),
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"choices": ["x"], "answer_index": 1}, "answer_index 1 is none of its 1 choices"),
        ({"choices": ["x"], "answer_index": -1}, "answer_index -1"),
        ({"choices": []}, "'p' has no choices"),
        ({"choices": list("abcdef"), "answer_index": 5}, "has no letter"),
    ],
)
def test_scienceqa_wrong_input(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        scienceqa.score(["A"], [example("p", **fields)], {})


@settings(max_examples=200, deadline=None)
@given(st.text(), st.integers(1, 6))
def test_reading_a_letter_never_leaves_the_choices(text: str, number: int) -> None:
    for read in (scienceqa.read_letter, scienceqa.read_letter_lmms):
        assert -1 <= scienceqa.choice_index(read(text), ["c"] * number) < min(number, 5)


@pytest.mark.parametrize(
    ("text", "choices", "index"),
    [
        ("Circle", ["circle", "square"], 0),
        (" circle. ", ["circle", "square"], 0),
        ("it is the circle", ["circle", "square"], 0),
        ("circle or square", ["circle", "square"], -1),
        ("circles", ["circle", "square"], -1),  # whole words only
        ("the dark blue one", ["blue", "dark blue"], 1),  # the longer name is meant
        ("blue, not dark blue", ["blue", "dark blue"], -1),
        ("", ["circle", "square"], -1),
        ("5:00", ["5:00", "6:00"], 0),
        ("no idea", ["yes", "no"], 1),
        ("7", ["7", "17"], 0),
        ("17", ["7", "17"], 1),
    ],
)
def test_the_one_choice_that_a_text_names(text: str, choices: list[str], index: int) -> None:
    assert iconqa.named_choice(text, choices) == index


def test_iconqa_rules() -> None:
    rows = [example("p", choices=["left turn", "right"], answer_index=0) for _ in range(4)]
    rows += [example("b", answers=["turn"]) for _ in range(4)]
    texts = ["left turn", "LEFT TURN", "a left turn", "left turm", "turn", "TURN", "turn ", ""]
    result = iconqa.score(texts, rows, {})
    assert result.extra["accuracy"]["official"] == 25.0
    assert result.extra["accuracy"]["exact"] == 100 * 5 / 8
    assert result.extra["accuracy"]["contained"] == 100 * 6 / 8
    assert result.per_example == [100, 100, 100, 0, 100, 100, 100, 0]
    assert result.extra["invalid"] == 2
    strict = iconqa.score(texts, rows, {"rule": "official"})
    assert strict.per_example == [100, 0, 0, 0, 100, 0, 0, 0]
    soft = iconqa.score(texts, rows, {"rule": "anls"})
    assert soft.per_example[3] == pytest.approx(100 * (1 - 1 / 9))
    assert soft.per_example[7] == 0
    with pytest.raises(UserError, match="'b' has no choices"):
        iconqa.score(texts, rows, {"task": "choose_txt"})


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=20), st.text(min_size=1, max_size=20))
def test_anls_bounds(text: str, answer: str) -> None:
    value = iconqa.anls(text, answer)
    assert value == 0 or iconqa.ANLS_THRESHOLD <= value <= 1
    assert iconqa.anls(answer, answer) == 1


def test_exact_match_strictness() -> None:
    rows = [example(str(n), answers=["Jane Austen", "austen"]) for n in range(5)]
    texts = ["Jane Austen", " jane austen\n", "Jane Austen.", "AUSTEN", ""]
    result = exact_match.score(texts, rows, {})
    assert result.per_example == [100, 100, 0, 100, 0]
    assert result.extra["accuracy"] == {"verbatim": 20.0, "official": 60.0, "lenient": 80.0}
    assert result.extra["invalid"] == 1
    assert exact_match.score(texts, rows, {"strictness": "lenient"}).value == 80.0
    with pytest.raises(UserError, match="'q' has no answers"):
        exact_match.score(["x"], [example("q")], {})
