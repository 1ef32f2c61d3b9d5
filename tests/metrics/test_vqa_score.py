import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import example, examples

import plain_vqa
from peftbench.errors import UserError
from peftbench.metrics import _vqa_text as text
from peftbench.metrics import vqa_score
from peftbench.metrics._vqa_refs import compile_answers, load_references

# Values observed by running each public evaluator: prediction, main answer and its copies (filled up to ten
# with answers that nobody else gave), and the scores by variant.
OBSERVED = [
    ("Yes", "yes", 10, {"official": 0, "legacy2017": 100, "always_normalise": 100, "m4c": 100}),
    ("yes.", "yes", 10, {"official": 0, "legacy2017": 100, "always_normalise": 100, "m4c": 100}),
    ("2", "two", 10, {"official": 0, "legacy2017": 0, "always_normalise": 100, "m4c": 100}),
    ("two", "two", 3, {"official": 90, "legacy2017": 0, "always_normalise": 90, "m4c": 90}),
    ("none", "none", 1, {"official": 30, "legacy2017": 0, "always_normalise": 30, "m4c": 30}),
    ("dog", "the dog", 3, {"official": 90, "legacy2017": 0, "always_normalise": 90, "m4c": 90}),
    ("dog", "Dog", 3, {"official": 90, "legacy2017": 0, "always_normalise": 90, "m4c": 90}),
    ("what's", "whats", 3, {"official": 90, "legacy2017": 0, "always_normalise": 90, "m4c": 0}),
    ("red,white", "red white", 3, {"official": 90, "legacy2017": 90, "always_normalise": 90, "m4c": 0}),
    ("red,white", "redwhite", 3, {"official": 0, "legacy2017": 0, "always_normalise": 0, "m4c": 90}),
    ("who?what", "who what", 3, {"official": 90, "legacy2017": 90, "always_normalise": 90, "m4c": 0}),
    ("1,,000", "1000", 3, {"official": 0, "legacy2017": 0, "always_normalise": 0, "m4c": 90}),
    ("1,000-2,000", "10002000", 3, {"official": 90, "legacy2017": 90, "always_normalise": 90, "m4c": 0}),
    ("", "a", 4, {"official": 100, "legacy2017": 0, "always_normalise": 100, "m4c": 100}),
]


NO_BOOTSTRAP = {"replicates": 0}


def scores(prediction: str, answers: list[str]) -> dict[str, float]:
    result = vqa_score.score([prediction], examples([answers]), NO_BOOTSTRAP)
    return {name: value for name, value in result.extra["variants"].items() if value is not None}


@pytest.mark.parametrize(("prediction", "answer", "copies", "wanted"), OBSERVED)
def test_observed_values(prediction: str, answer: str, copies: int, wanted: dict[str, int]) -> None:
    answers = [answer] * copies + [f"filler{n}" for n in range(10 - copies)]
    found = scores(prediction, answers)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("prediction", "answers", "value"),
    [
        ("Yes", ["yes"] * 10, 100),  # the processor lowers the case before the official evaluator sees it
        ("Yes.", ["yes"] * 10, 100),
        ("2", ["two"] * 10, 0),  # unanimous: "two" stays "two"
        ("two", ["two"] * 10, 0),  # and the submitted "2" does not match it
        ("two", ["two"] * 9 + ["2"], 100),
    ],
)
def test_evalai_is_the_processor_then_the_official_evaluator(
    prediction: str, answers: list[str], value: float
) -> None:
    result = vqa_score.score([prediction], examples([answers]), {})
    assert result.extra["variant"] == "evalai"
    assert result.value == result.per_example[0] == value


@pytest.mark.parametrize(
    ("agreeing", "value"), [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100), (5, 100), (9, 100), (10, 100)]
)
def test_leave_one_out_by_position(agreeing: int, value: float) -> None:
    answers = ["cat"] * agreeing + [f"other{n}" for n in range(10 - agreeing)]
    assert scores("cat", answers)["official"] == pytest.approx(value)


def test_one_of_160_rounds_as_python_does() -> None:
    rows = examples([["cat"] * 10] * 160)
    result = vqa_score.score(["cat"] + ["dog"] * 159, rows, {"variant": "official"})
    assert result.value == 0.625
    assert result.extra["rounded"]["official"] == 0.62


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("red,white", "red white"),
        ("red, white", "red white"),
        ("a-b -c", "ab c"),  # the hyphen touches a space once, so it goes everywhere
        ("1,000", "1000"),
        ("1,000 a/b", "1000 ab"),  # a comma between digits anywhere deletes every mark
        ("3.5", "3.5"),
        ("5. x", "5 x"),
        (".5", ".5"),
        ("Mr. X", "mr x"),
        ("the Two dogs", "2 dogs"),
        ("dont", "don't"),
        ("Im", "im"),  # dead key: the text is in lower case by then
        ("somebody'd", "somebodyd"),  # reversed entry
        ("none", "0"),
        ("a an the", ""),
        ("." * 40, "." * 8),  # 32 substitutions at most
        ("x'y:z&", "x'y:z&"),  # no marks of the list
        ("tab\tnew\nline", "tab new line"),
    ],
)
def test_official_normalisation(raw: str, normal: str) -> None:
    assert text.all_forms([raw])["normalised"] == [normal]
    assert (
        plain_vqa.map_words(plain_vqa.strip_marks(plain_vqa.clean(raw), plain_vqa.COMMA_OFFICIAL)) == normal
    )


def test_contractions_are_the_evaluators_table() -> None:
    assert plain_vqa.CONTRACTIONS == text.CONTRACTIONS
    assert len(text.CONTRACTIONS) == 120


WORDS = """
a an the yes no Yes NO two 2 none zero 10 ten dont don't whats what's 's 1,000 1,,000 1,000-2,000 red white , ? !
. ... ; / - ( ) [ { + = _ @ ` " ' : & 3.5 .5 5. Im hes somebody'd she's ow's'at İ ς Σ
😀 ´ ٣,٤ ½
"""
BLANKS = ["", " ", "\n", "\t", "\r", "\u00a0", "\u2028", "\ud800", "\x00", "\x1c"]
PIECES = st.sampled_from(WORDS.split() + BLANKS)
PHRASES = st.tuples(st.sampled_from(["", " "]), st.lists(PIECES, max_size=5)).map(
    lambda pair: pair[0].join(pair[1])
)
TEXTS = st.one_of(PHRASES, st.text(max_size=12), st.just("yes" * 3334))
MARKED = st.text(alphabet=" a2,.!-?'T\0\n", max_size=50)
ANSWERS = st.lists(PHRASES, min_size=1, max_size=3).flatmap(
    lambda pool: st.lists(st.sampled_from(pool), min_size=10, max_size=10)
)
MANY = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@MANY
@given(st.lists(st.tuples(TEXTS, ANSWERS), min_size=1, max_size=8))
def test_every_variant_equals_its_public_evaluator_in_every_bit(rows: list[tuple[str, list[str]]]) -> None:
    predictions = [prediction for prediction, _ in rows] + [answers[0] for _, answers in rows]
    answers = [answers for _, answers in rows] * 2
    compiled = compile_answers(list(range(len(answers))), answers)
    for name, accuracies in vqa_score.variant_accuracies(predictions, compiled).items():
        plain = plain_vqa.VARIANTS[name]
        assert accuracies is not None
        assert accuracies.tolist() == [
            plain(list(texts), guess) for texts, guess in zip(answers, predictions, strict=True)
        ]


@MANY
@given(st.lists(st.one_of(TEXTS, MARKED), max_size=12))
def test_forms_of_many_texts_at_once_are_those_of_each(raws: list[str]) -> None:
    def stripped(raw: str) -> str:
        return plain_vqa.strip_marks(raw, plain_vqa.COMMA_OFFICIAL)

    def normal(raw: str) -> str:
        return plain_vqa.map_words(stripped(plain_vqa.clean(raw)))

    submitted = [plain_vqa.evalai_processor(raw) for raw in raws]
    assert text.all_forms(raws) == {
        "raw": raws,
        "cleaned": [plain_vqa.clean(raw) for raw in raws],
        "normalised": [normal(raw) for raw in raws],
        "submitted": submitted,
        "resubmitted": [normal(raw) for raw in submitted],
        "stripped": [stripped(raw) for raw in raws],
    }


@MANY
@given(st.lists(st.tuples(TEXTS, st.lists(PHRASES, min_size=1, max_size=12)), min_size=1, max_size=8))
def test_kept_references_score_as_new_ones(own_cache: Path, rows: list[tuple[str, list[str]]]) -> None:
    rows = [row for row in rows if "\ud800" not in "".join(row[1])]
    if not rows:
        return
    predictions = [prediction for prediction, _ in rows]
    answers = [{"id": number, "answers": texts} for number, (_, texts) in enumerate(rows)]
    path = own_cache / "references.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in answers))
    new, kept = load_references(path), load_references(path)
    assert not kept.groups[0].rows.flags.writeable  # it lies in the file
    for name, accuracies in vqa_score.variant_accuracies(predictions, kept).items():
        again = vqa_score.variant_accuracies(predictions, new)[name]
        assert (accuracies is None) == (again is None)
        if accuracies is not None and again is not None:
            plain = plain_vqa.VARIANTS[name]
            assert accuracies.tolist() == again.tolist()
            assert accuracies.tolist() == [plain(list(texts), guess) for guess, texts in rows]


@MANY
@given(TEXTS, st.lists(PHRASES, min_size=1, max_size=14))
def test_any_number_of_answers_equals_the_official_code(prediction: str, answers: list[str]) -> None:
    found = scores(prediction, answers)
    for name in ("official", "evalai", "legacy2017", "always_normalise"):
        assert found[name] == 100 * plain_vqa.VARIANTS[name](list(answers), prediction)
    assert ("m4c" in found) == (len(answers) == 10)


@MANY
@given(TEXTS, ANSWERS, st.randoms(use_true_random=False))
def test_annotators_have_no_order(prediction: str, answers: list[str], random: object) -> None:
    shuffled = list(answers)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert scores(prediction, answers) == pytest.approx(scores(prediction, shuffled), abs=1e-9)


@MANY
@given(st.lists(st.tuples(TEXTS, ANSWERS), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_rows_have_no_order(rows: list[tuple[str, list[str]]], random: object) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    made = vqa_score.score([p for p, _ in rows], examples([a for _, a in rows]), NO_BOOTSTRAP)
    again = vqa_score.score([rows[i][0] for i in order], examples([rows[i][1] for i in order]), NO_BOOTSTRAP)
    assert [made.per_example[i] for i in order] == again.per_example
    assert made.value == pytest.approx(again.value)


@MANY
@given(TEXTS)
def test_normalising_what_is_plain_changes_nothing(raw: str) -> None:
    # The official normalisation as a whole is not idempotent (a restored contraction may change again), but
    # what has no marks and no capitals any more is a fixed point of its word map.
    once = text.map_words(raw)
    assert text.map_words(once) == once or "'" in once or any(ord(c) > 127 for c in once)


@MANY
@given(TEXTS, ANSWERS)
def test_bounds_repeatability_and_no_mutation(prediction: str, answers: list[str]) -> None:
    before = list(answers)
    rows = examples([answers])
    first = vqa_score.score([prediction], rows, NO_BOOTSTRAP)
    second = vqa_score.score([prediction], rows, NO_BOOTSTRAP)
    assert answers == before
    assert first == second
    assert all(0 <= value <= 100 and math.isfinite(value) for value in first.per_example)


@pytest.mark.parametrize("odd", ["", "\n\n", "😀", "x" * 10_000, "\ud800", ", " * 5_000, "1,1" * 3_000])
def test_odd_texts_on_either_side(odd: str) -> None:
    for prediction, answers in ((odd, ["cat"] * 10), ("cat", [odd] * 9 + ["cat"]), (odd, [odd] * 10)):
        for name, value in scores(prediction, answers).items():
            assert value == 100 * plain_vqa.VARIANTS[name](list(answers), prediction)


def test_splits_by_answer_type_and_answerability() -> None:
    kinds = ["yes/no", "yes/no", "other", "unanswerable"]
    rows = [
        example(f"x{n}", answers=["yes"] * 10 if n < 3 else ["unanswerable"] * 10, answer_type=kind)
        for n, kind in enumerate(kinds)
    ]
    result = vqa_score.score(["yes", "no", "yes", "unanswerable"], rows, {})
    assert result.extra["by_answer_type"] == {
        "other": {"value": 100.0, "n": 1},
        "unanswerable": {"value": 100.0, "n": 1},
        "yes/no": {"value": 50.0, "n": 2},
    }
    assert result.extra["by_answerability"] == {
        "answerable": {"value": pytest.approx(200 / 3), "n": 3},
        "unanswerable": {"value": 100.0, "n": 1},
    }


def test_the_record_holds_all_variants_and_names_the_one_shown() -> None:
    rows = examples([["yes"] * 10])
    for name in vqa_score.VARIANTS:
        result = vqa_score.score(["Yes"], rows, {"variant": name})
        assert result.value == result.extra["variants"][name] == result.columns[name][0]
        assert result.extra["variant"] == name
        assert set(result.extra["variants"]) == set(vqa_score.VARIANTS)


def test_wrong_input_names_the_row() -> None:
    with pytest.raises(UserError, match="'x1' has no answers"):
        vqa_score.score(["a", "b"], examples([["a"], []]), {})
    with pytest.raises(UserError, match="'x1' has 9 answers"):
        vqa_score.score(["a", "b"], examples([["a"] * 10, ["a"] * 9]), {"variant": "m4c"})
    with pytest.raises(UserError, match="prediction of 'x0' is NoneType, not a string"):
        vqa_score.score([None], examples([["a"] * 10]), {})  # type: ignore[list-item]
    with pytest.raises(UserError, match="1 predictions for 2 examples"):
        vqa_score.score(["a"], examples([["a"], ["b"]]), {})
    with pytest.raises(UserError, match="did you mean 'variant'"):
        vqa_score.score(["a"], examples([["a"]]), {"varient": "official"})
    with pytest.raises(UserError, match="variant: 'offical' is not possible; did you mean 'official'"):
        vqa_score.score(["a"], examples([["a"]]), {"variant": "offical"})


def test_questions_without_ten_answers_are_counted() -> None:
    result = vqa_score.score(["a", "a"], examples([["a"] * 10, ["a"] * 9]), {"variant": "official"})
    assert result.extra["not_ten_answers"] == 1
    assert result.extra["first_not_ten"] == "x1"
    assert result.extra["variants"]["m4c"] is None
