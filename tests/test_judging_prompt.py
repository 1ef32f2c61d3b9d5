import re
from pathlib import Path

import pytest

from judge_case import PROMPT, example
from peftbench.errors import UserError
from peftbench.judging.prompt import check_prompt, fill, read_prompt
from peftbench.metrics.scales import load_scale
from peftbench.metrics.scales.mmhal import TYPES


def test_prompt_of_our_own() -> None:
    text = fill(PROMPT, example(1), "a {question} with {} braces")
    for part in ("dog, grass", "What is there? #q1#", "a dog", "a {question} with {} braces"):
        assert part in text
    assert "{image_contents}" not in text
    for digit in range(7):
        assert f"\n{digit} = " in text
    assert load_scale("mmhal").read(text).rating is None, "the prompt itself, repeated, is no rating"


def test_prompt_files(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text('Contents {}\nQ {}\nHuman {}\nModel {}\nSay {"rating": n}', encoding="utf-8-sig")
    text = fill(read_prompt("mmhal", path), example(1), "x")
    assert text == 'Contents dog, grass\nQ What is there? #q1#\nHuman a dog\nModel x\nSay {"rating": n}'
    for bad, message in [
        ("{} {}", "2 places '{}'"),
        ("{question} {answer}", "unknown place {answer}; "),
        ("{model_answer}", "the place {question} is missing"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            check_prompt(bad, "here")
    with pytest.raises(UserError, match="No such file"):
        read_prompt("mmhal", tmp_path / "none")
    with pytest.raises(UserError, match="'q1' does not say what its picture shows"):
        fill(PROMPT, example(1, source="{}"), "x")


@pytest.mark.parametrize(
    ("reply", "rating", "problem"),
    [
        ("Rating: 3", 3, ""),
        ("**Rating**: 4", 4, ""),
        ("Rating: **5**", 5, ""),
        ("rating:0", 0, ""),
        ("Rating: (6)", 6, ""),
        ("Rating: 2, because of x. So: Rating: 2", 2, ""),
        ("Rating: 3/6", 3, ""),
        ("Rating: 3.", 3, ""),
        ("Rating: 1\nRating: 2", None, "several ratings in the reply: 1, 2"),
        ("Rating: 13", None, "the rating 13 is not one of 0 to 6"),
        ("Rating: -1", None, "the rating -1 is not one of 0 to 6"),
        ("Rating: 3.5", None, "the rating 3.5 is not one of 0 to 6"),
        ("Rating: 0-6", None, "no rating in the reply"),
        ("Rating: 0 to 6", None, "no rating in the reply"),
        ("Operating: 3", None, "no rating in the reply"),
        ("Rating: high", None, "no rating in the reply"),
        (" \n", None, "empty reply"),
    ],
)
def test_reading_ratings(reply: str, rating: int | None, problem: str) -> None:
    assert load_scale("mmhal").read(reply) == (rating, problem)


def test_types_by_position_only_in_a_whole_set_without_types() -> None:
    types = load_scale("mmhal").types
    bare = [example(i, question_type="") for i in range(96)]
    assert types(bare) == [TYPES[i % 8] for i in range(96)]
    assert types(bare[:95]) == [""] * 95
    assert types([example(0, question_type="Counting"), *bare[1:]])[:2] == ["counting", ""]
