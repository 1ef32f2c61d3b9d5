"""The MMHal-like set, and the rule that judges answers to it."""

import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from judge_case import PROMPT, SCORE
from peftbench.config import read_yaml
from peftbench.data.draw import draw
from peftbench.data.embedded import pack
from peftbench.data.embedded.mmhal import clear_colour, sayable
from peftbench.data.example import Example
from peftbench.data.load import read_examples
from peftbench.data.prepare import prepare_dataset
from peftbench.errors import UserError
from peftbench.evaluation.score import score_predictions
from peftbench.judging.base import Item, make_judge
from peftbench.judging.facts import rate, read_facts
from peftbench.judging.prompt import fill
from peftbench.judging.stage import judge_predictions
from peftbench.judging.statements import Facts, words_of
from peftbench.metrics import scales
from peftbench.metrics.scales.mmhal import TYPES
from peftbench.spec import Execution, JudgeSpec, PrepareSpec

ROWS = [draw("mmhal", "test", i, seed=7) for i in range(192)]
SPEC = JudgeSpec(kind="facts", scale="mmhal", prompt=PROMPT)


def judged(example: Example, answer: str) -> tuple[int, bool]:
    item = Item(example.id, "", example.question, answer, example.source)
    rating, _, answered = rate(read_facts(item), example.question, answer)
    return rating, answered


def known(example: Example) -> Facts:
    return read_facts(Item(example.id, "", facts=example.source))


def test_the_eight_types_come_in_turn() -> None:
    assert [example.question_type for example, _ in ROWS] == [TYPES[i % 8] for i in range(192)]
    assert scales.load_scale("mmhal").types([example for example, _ in ROWS[:96]]) == list(TYPES) * 12


def test_what_is_said_of_the_picture_holds_together() -> None:
    every = {name for concept in pack.concepts() for name in (concept.name, *concept.synonyms)}
    for example, png in ROWS:
        facts, source = known(example), json.loads(example.source)
        assert Image.open(io.BytesIO(png)).size == (96, 96)
        there = {name for names in facts.names.values() for name in names}
        assert set(source["objects"]) == set(facts.names) == set(facts.counts)
        assert not there & set(facts.absent)
        assert len(every & set(facts.absent)) > 100
        assert set(facts.places) == {thing for thing, n in facts.counts.items() if n == 1}
        assert all(facts.colours[thing] for thing in facts.counts)
        assert example.answers == [example.target] and source["image_content"]
        assert "\n" not in example.question + example.target
        assert fill(PROMPT, example, "x").count(source["image_content"][0]) >= 1


def test_every_type_asks_what_its_facts_say() -> None:
    for example, _ in ROWS:
        facts, kind = known(example), example.question_type
        asked = facts.asked
        if kind == "attribute":
            assert asked.what == "colour" and asked.says == [facts.colours[asked.about]]
        elif kind == "adversarial":
            assert set(asked.denies) <= set(facts.absent)
            assert any(name in example.question for name in asked.denies)
        elif kind == "comparison":
            assert facts.counts[asked.more] >= facts.counts[asked.fewer] + 2
        elif kind == "counting":
            assert str(facts.counts[asked.about]) in asked.says[0]
        elif kind == "relation":
            assert any(set(asked.says[0]) & set(names) for names in facts.names.values())
        else:
            assert asked.says and not set(asked.never) & {word for words in asked.says for word in words}


def test_number_of_things_is_that_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count what is really pasted, whatever the facts say."""
    from peftbench.data.embedded.scene import Scene

    drawn: Counter[str] = Counter()
    place = Scene.place

    def counting(self: Scene, concept: pack.Concept, x: int, y: int, *rest: Any) -> str:
        style = place(self, concept, x, y, *rest)
        drawn[concept.name] += 1
        at[concept.name] = (x, y)
        assert style in pack.STYLES["test"], "test pictures are by the artist that training does not see"
        assert set(sayable(concept, style)) >= set(filter(None, [clear_colour(concept, style)]))
        return style

    monkeypatch.setattr(Scene, "place", counting)
    for i in range(96):
        drawn.clear()
        at: dict[str, tuple[int, int]] = {}
        facts = known(draw("mmhal", "test", i, seed=7)[0])
        assert dict(drawn) == facts.counts
        for thing, (x, y) in facts.places.items():
            assert abs(at[thing][0] - x) <= 1 and abs(at[thing][1] - y) <= 1


def test_the_file_prepares_ninety_six_questions(tmp_path: Path) -> None:
    config = read_yaml(Path(__file__).parent.parent / "config/datasets/mmhal_mini.yaml")
    spec = PrepareSpec(dataset="mmhal_mini", source=config["source"], splits=config["splits"])
    facts = prepare_dataset(spec, tmp_path / "data", tmp_path / "images")
    assert list(facts["splits"]) == ["test"] and config["evaluation_only"] is True
    assert facts["splits"]["test"]["question_types"] == dict.fromkeys(sorted(TYPES), 12)
    examples = read_examples(tmp_path / "data", "test")
    assert examples == [example for example, _ in ROWS[:96]]
    assert len({example.image for example in examples}) == 96


# The judge. References and answers to other questions come from the generator; the rest is written by hand.


def test_people_get_at_least_four_and_say_nothing_false() -> None:
    ratings = Counter(judged(example, example.target)[0] for example, _ in ROWS)
    assert set(ratings) == {4, 5, 6}


def test_references_of_other_pictures_hallucinate() -> None:
    """The same type of question, another picture: nearly always something is not there."""
    ratings = []
    for example, _ in ROWS:
        for other, _ in ROWS:
            if other.question_type == example.question_type and other.id != example.id:
                ratings.append(judged(example, other.target)[0])
    assert sum(rating < 3 for rating in ratings) > 0.95 * len(ratings)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "   ",
        "I cannot tell.",
        "unanswerable",
        "It is unclear from the image.",
        "I'm not sure",
        "xyzzy blah",
        "👍",
    ],
)
def test_empty_cautious_and_senseless_answers_get_three(answer: str) -> None:
    assert {judged(example, answer) for example, _ in ROWS} == {(3, False)}


FACTS: dict[str, Any] = {
    "names": {
        "dog": ["dog", "dogs", "dog face", "dog faces"],
        "hot dog": ["hot dog", "hot dogs"],
        "cup": ["cup", "cups"],
    },
    "counts": {"dog": 3, "hot dog": 1, "cup": 1},
    "colours": {"dog": ["brown", "orange"], "cup": ["gray"]},
    "places": {"hot dog": [20, 48], "cup": [70, 48]},
    "absent": ["cat", "cats", "plate", "plates", "alarm clock", "zebra"],
}


@pytest.mark.parametrize(
    ("asked", "question", "answer", "rating"),
    [
        # attribute
        ({"about": "dog", "what": "colour"}, "What color are the dogs?", "brown", 4),
        ({"about": "dog", "what": "colour"}, "What color are the dogs?", "The dogs are brown.", 4),
        ({"about": "dog", "what": "colour"}, "What color are the dogs?", "Orange and brown", 4),
        ({"about": "dog", "what": "colour"}, "What color are the dogs?", "blue", 0),
        (
            {"about": "dog", "what": "colour"},
            "What color are the dogs?",
            "The brown dogs, on a blue background",
            4,
        ),
        ({"about": "dog", "what": "colour"}, "What color are the dogs?", "brown, and the cup is grey", 6),
        ({"about": "dog", "what": "colour"}, "What color are the dogs?", "brown, and the cup is red", 2),
        ({"about": "dog", "what": "colour"}, "What color are the dogs?", "brown like the cat", 1),
        ({"about": "dog", "what": "colour"}, "What color are the dogs?", "not blue", 3),
        # counting
        ({"about": "dog", "what": "count"}, "How many dogs are there?", "3", 4),
        ({"about": "dog", "what": "count"}, "How many dogs are there?", "There are three dogs.", 4),
        ({"about": "dog", "what": "count"}, "How many dogs are there?", "two", 0),
        (
            {"about": "dog", "what": "count"},
            "How many dogs are there?",
            "three brown dogs, one hot dog and a cup",
            6,
        ),
        ({"about": "dog", "what": "count"}, "How many dogs are there?", "dogs", 3),
        ({"about": "dog", "what": "count"}, "How many dogs are there?", "there are no dogs", 0),
        ({"about": "dog", "what": "count"}, "How many dogs are there?", "one hot dog", 3),
        ({"about": "dog", "what": "count"}, "How many dogs are there?", "1,000,000", 0),
        # adversarial
        ({"denies": ["cat", "cats"]}, "What color is the cat?", "There is no cat.", 4),
        (
            {"denies": ["cat", "cats"]},
            "What color is the cat?",
            "the cat is not in the picture, there are dogs",
            5,
        ),
        (
            {"denies": ["cat", "cats"]},
            "What color is the cat?",
            "I can't see a cat, only three brown dogs",
            6,
        ),
        ({"denies": ["cat", "cats"]}, "What color is the cat?", "there isn’t a cat or zebra", 4),
        ({"denies": ["cat", "cats"]}, "What color is the cat?", "The cat is black", 0),
        ({"denies": ["cat", "cats"]}, "What color is the cat?", "black", 0),
        ({"denies": ["cat", "cats"]}, "What color is the cat?", "I cannot tell what color the cat has", 3),
        ({"denies": ["cat", "cats"]}, "What color is the cat?", "no cat, but a zebra", 0),
        ({"denies": ["cat", "cats"]}, "How many cats are there?", "two", 0),
        ({"denies": ["cat", "cats"]}, "How many cats are there?", "zero", 4),
        ({"denies": ["cat", "cats"]}, "How many cats are there?", "three dogs", 3),
        # comparison
        ({"more": "dog", "fewer": "cup"}, "Are there more dogs or more cups?", "dogs", 4),
        (
            {"more": "dog", "fewer": "cup"},
            "Are there more dogs or more cups?",
            "There are more dogs than cups",
            4,
        ),
        ({"more": "dog", "fewer": "cup"}, "Are there more dogs or more cups?", "fewer cups than dogs", 4),
        ({"more": "dog", "fewer": "cup"}, "Are there more dogs or more cups?", "more cups than dogs", 0),
        ({"more": "dog", "fewer": "cup"}, "Are there more dogs or more cups?", "cups", 0),
        ({"more": "dog", "fewer": "cup"}, "Are there more dogs or more cups?", "three dogs and one cup", 5),
        ({"more": "dog", "fewer": "cup"}, "Are there more dogs or more cups?", "three dogs and two cups", 1),
        ({"more": "dog", "fewer": "cup"}, "Are there more dogs or more cups?", "more", 3),
        # relation, holistic
        ({"says": [["hot dog"]]}, "What is left of the cup?", "a hot dog", 4),
        ({"says": [["hot dog"]]}, "What is left of the cup?", "The hot dog is to the left of the cup", 5),
        ({"says": [["hot dog"]]}, "What is left of the cup?", "The hot dog is to the right of the cup", 1),
        ({"says": [["hot dog"]]}, "What is left of the cup?", "an alarm clock", 0),
        ({"says": [["dog", "dogs", "hot dog", "cup"]]}, "Describe it.", "a picture", 3),
        ({"says": [["dog", "dogs", "hot dog", "cup"]]}, "Describe it.", "a dog", 4),
        ({"says": [["dog", "dogs", "hot dog", "cup"]]}, "Describe it.", "3 dogs", 5),
        (
            {"says": [["dog", "dogs", "hot dog", "cup"]]},
            "Describe it.",
            "a hot dog to the left of a gray cup, and 3 dogs",
            6,
        ),
        ({"says": [["dog", "dogs", "hot dog", "cup"]]}, "Describe it.", "a cup on a plate", 1),
        ({"says": [["dog", "dogs", "hot dog", "cup"]]}, "Describe it.", "a cup without a plate", 4),
        ({"says": [["dog", "dogs", "hot dog", "cup"]]}, "Describe it.", "two dogs", 1),
        # words
        ({"says": [["garden"]], "never": ["sea", "city"]}, "Where are they found?", "in the garden", 4),
        ({"says": [["garden"]], "never": ["sea", "city"]}, "Where are they found?", "in the sea", 0),
        (
            {"says": [["garden"]], "never": ["sea", "city"]},
            "Where are they found?",
            "in the garden, not in the sea",
            4,
        ),
        (
            {"says": [["garden"]], "never": ["sea", "city"]},
            "Where are they found?",
            "the garden or the city",
            0,
        ),
    ],
)
def test_ratings_by_hand(asked: dict[str, Any], question: str, answer: str, rating: int) -> None:
    source = json.dumps(FACTS | {"asked": asked})
    found, findings, _ = rate(read_facts(Item("q", "", question, answer, source)), question, answer)
    assert found == rating, findings


def test_every_wrong_number_and_colour_is_found() -> None:
    from peftbench.judging.statements import COLOURS, NUMBERS

    for example, _ in ROWS:
        facts, kind = known(example), example.question_type
        if kind == "counting":
            n = facts.counts[facts.asked.about]
            for value in range(1, 8):
                for said in (str(value), NUMBERS[value], f"There are {NUMBERS[value]}."):
                    assert (judged(example, said)[0] >= 3) == (value == n), (example.question, said)
        if kind == "attribute":
            for colour in COLOURS:
                right = colour in facts.colours[facts.asked.about]
                for said in (colour, f"it is {colour}", f"the {facts.asked.about} is {colour}"):
                    assert (judged(example, said)[0] >= 3) == right, (example.question, said)


def test_every_absent_name_is_found_and_no_name_of_what_is_there() -> None:
    for example, _ in ROWS[:24]:
        facts = known(example)
        words = words_of(example.question)
        for name in facts.absent:
            asked = re.search(rf"\b{name}\b", " ".join(words))
            rating, _ = judged(example, f"there is a {name} in it")
            assert rating < 3 or (asked and name not in facts.asked.denies), (name, example.question)
        if example.question_type == "holistic":
            for names in facts.names.values():
                for name in names:
                    assert judged(example, f"I see {name} here") == (4, True), name


def test_words_of() -> None:
    assert words_of("The dog's grey T-shirt ISN’T there, can't be.") == (
        "the dog gray t shirt is not there , can not be .".split()
    )


def run(tmp_path: Path, answers: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    examples = [example for example, _ in ROWS[:96]]
    for name in ("data", "predictions", "out"):
        (tmp_path / name).mkdir(exist_ok=True)
    rows = msgspec.to_builtins(examples)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data/test.parquet")
    said = [(answers or {}).get(example.id, example.target) for example in examples]
    table = pa.table({"id": [example.id for example in examples], "prediction": said})
    pq.write_table(table, tmp_path / "predictions/predictions.parquet")
    spec = msgspec.structs.replace(SPEC, **changes)
    return judge_predictions(
        spec, tmp_path / "predictions", tmp_path / "data", tmp_path / "out", tmp_path / "staging", Execution()
    )


def test_the_stage_judges_and_the_metric_scores(tmp_path: Path) -> None:
    wrong = {example.id: "two zebras and a unicorn car" for example, _ in ROWS[:96:4]}
    facts = run(tmp_path, wrong)
    assert (facts["judged"], facts["not_judged"]) == (96, 0)
    rows = pq.read_table(tmp_path / "out/judgements.parquet").to_pylist()
    for row, (example, _) in zip(rows, ROWS, strict=False):
        assert (row["rating"], row["type"]) == (judged(example, row["prediction"])[0], example.question_type)
        assert row["reply"].endswith(f"\nRating: {row['rating']}")
    scored = score_predictions(SCORE, tmp_path / "out", tmp_path / "data", tmp_path / "scores")
    assert scored["value"] == pytest.approx(sum(row["rating"] for row in rows) / 96)
    assert scored["extra"]["official"]["value"] == pytest.approx(scored["value"])
    assert scored["extra"]["complete"] and scored["extra"]["consistent"]
    assert scored["extra"]["hallucination_rate"] > 20
    before = (tmp_path / "out/judgements.parquet").read_bytes()
    run(tmp_path, wrong)
    assert (tmp_path / "out/judgements.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("", "missing required field"),
        ("{", "does not say what its picture shows"),
        ("[]", "does not say what its picture shows"),
        (json.dumps(FACTS), "`asked`"),
        (json.dumps(FACTS | {"asked": {"about": "cow"}}), "'cow' has no count or no names"),
        (json.dumps(FACTS | {"asked": {}, "counts": {"dog": 3}}), "'hot dog' has no count or no names"),
        (json.dumps(FACTS | {"asked": {}, "absent": [3]}), "does not say what its picture shows"),
    ],
)
def test_pictures_that_are_not_described_are_one_line(source: str, problem: str) -> None:
    judge = make_judge(SPEC, Execution(), None)
    with pytest.raises(UserError) as error:
        judge.judge([Item("q7", "", "What?", "a dog", source)], lambda reply: None)
    assert problem in str(error.value) and "q7" in str(error.value) and "\n" not in str(error.value)


def test_a_model_or_another_scale_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="takes no model folder"):
        make_judge(SPEC, Execution(), tmp_path)
    scale = scales.load_scale("mmhal")
    monkeypatch.setattr(scale, "HALLUCINATED_BELOW", 4)
    with pytest.raises(UserError, match="scale 'mmhal' is another one"):
        make_judge(SPEC, Execution(), None)
