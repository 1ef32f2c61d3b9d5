"""A few test examples per data set with the answer of each method, marked right or wrong.

Which ones follows from a rule and the hash of their ids: whoever looks knows that nobody picked them.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from peftbench.analysis.lines import Line, read_columns, record_in
from peftbench.analysis.style import method_title
from peftbench.data.example import Example
from peftbench.errors import UserError
from peftbench.views import Choice

ENOUGH = 100.0
"""Score of a right answer."""
MANY_SCORES = 12
"""With more different partial scores than this, a metric grades rather than judges."""
CHOICES: dict[Choice, str] = {
    "random": "Test examples drawn by the hash of their ids, not picked.",
    "base_right_others_wrong": "Chosen by a rule: the untuned model is right and all others are wrong; of these "
    "drawn by the hash of their ids.",
}
"""What a page or figure says of each rule."""
NEAREST = "Where there are too few of these, the nearest: as many wrong answers as there are."
Verdict = Literal["right", "wrong", "partial", "graded", "none"]


class Answer(Struct, frozen=True, kw_only=True):
    """What one run answered, with its score; without a text where it has no answers."""

    method: str
    variant: str
    untuned: bool
    text: str | None
    prompt: str = ""
    verdict: Verdict = "none"
    score: float | None = None
    finished: bool = True
    status: str = "ok"


class Card(Struct, frozen=True, kw_only=True):
    """One test example: picture, question, references, answers by model."""

    id: str
    image: str
    """sha256 of its picture in the store; "" where it has none."""
    question: str
    prompt: str
    choices: list[tuple[str, bool]]
    """Each choice, and whether it is the right one."""
    references: list[tuple[str, int]]
    """Each reference answer, and how often it was given."""
    answers: dict[str, dict[str, list[Answer]]]
    """Title of the model -> title of the method -> answers of its variants; what is untuned comes first."""
    as_asked: bool = True
    """Whether it is what the rule looks for; else it is the nearest that there is."""


def gallery(
    lines: Sequence[Line], titles: Mapping[str, str], results: Path, count: int, choose: Choice = "random"
) -> list[Card]:
    """Cards for ``count`` examples of one data set; none where no run has answered it.

    Raises ``UserError`` where answers are there and cannot be read, or where runs answered different data.
    """
    answered = [line for line in lines if record_in(line.predictions) is not None]
    if not answered or not count:
        return []
    data = _data_folder(answered, results)
    fits = _fits(answered) if choose == "base_right_others_wrong" else {}
    examples = draw_examples(data / "test.parquet", count, fits)
    judged = _judge(answered, [example.id for example in examples])
    cards = []
    for example in examples:
        answers: dict[str, dict[str, list[Answer]]] = {}
        prompts = []
        for line in sorted(lines, key=lambda line: not line.untuned):
            answer = judged.get(id(line), {}).get(example.id) or _unanswered(line)
            here = answers.setdefault(titles[line.outcome.cell.model], {})
            here.setdefault(answer.method, []).append(answer)
            prompts.append(answer.prompt)
        cards.append(
            Card(
                id=example.id,
                image=example.image,
                question=example.question,
                prompt=next(filter(None, prompts), ""),
                choices=[(text, i == example.answer_index) for i, text in enumerate(example.choices)],
                references=Counter(example.answers).most_common(),
                answers=answers,
                as_asked=not fits or fits.get(example.id) == 1.0,
            )
        )
    return cards


def _data_folder(answered: Sequence[Line], results: Path) -> Path:
    """The prepared data that these runs answered, as their records say."""
    digests = {record.inputs["data"] for line in answered if (record := record_in(line.predictions))}
    dataset = answered[0].outcome.cell.target
    if len(digests) != 1:
        raise UserError(
            f"{results}/runs: runs of one study answered {len(digests)} versions of {dataset}: "
            "run snakemake again"
        )
    return results / "data" / f"{dataset}-{digests.pop()}"


def draw_examples(path: Path, count: int, fits: Mapping[str, float] | None = None) -> list[Example]:
    """Examples with the highest of ``fits``, of equals those with a picture, then by the hash of their ids."""
    import polars as pl

    index = read_columns(path, ["id", "image"])
    fits = fits or {}
    keys = [
        (-fits.get(name, 0.0), image == "", hashlib.sha256(name.encode()).digest(), row)
        for row, (name, image) in enumerate(index.rows())
    ]
    rows = [row for *_, row in sorted(keys)[:count]]
    frame = read_columns(path, list(Example.__struct_fields__)).select(pl.all().gather(rows))
    try:
        return msgspec.convert(frame.to_dicts(), list[Example])
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: not a prepared data set: {error}") from None


def _fits(lines: Sequence[Line]) -> dict[str, float]:
    """How far each example is one that the untuned model alone gets right: 1 where it is, then by its wrong answers.

    Half counts whether the untuned model is right, half the share of the others that are wrong; where either side
    has no scores, the other is all.
    """
    sides: dict[bool, dict[str, list[bool]]] = {True: {}, False: {}}
    for line in lines:
        if record_in(line.scores) is not None:
            frame = read_columns(line.scores / "examples.parquet", ["id", "score"])
            for name, score in frame.drop_nulls("score").rows():
                right = verdict(score, False, line.outcome.higher_is_better) == "right"
                sides[line.untuned].setdefault(name, []).append(right == line.untuned)
    known = [side for side in sides.values() if side]
    names = dict.fromkeys(name for side in known for name in side)
    shares = {n: [sum(side[n]) / len(side[n]) if n in side else 0.0 for side in known] for n in names}
    return {name: sum(values) / len(values) for name, values in shares.items()}


def _judge(lines: Sequence[Line], wanted: Sequence[str]) -> dict[int, dict[str, Answer]]:
    """Line (by identity) -> example -> answer. Whether scores judge or grade is decided over all lines."""
    import polars as pl

    scores: dict[int, dict[str, float]] = {}
    distinct: set[float] = set()
    for line in lines:
        if record_in(line.scores) is not None:
            frame = read_columns(line.scores / "examples.parquet", ["id", "score"])
            if line.outcome.higher_is_better:
                distinct.update(frame["score"].drop_nulls().unique().to_list())
            scores[id(line)] = dict(frame.filter(pl.col("id").is_in(list(wanted))).rows())
    graded = is_graded(distinct)
    found: dict[int, dict[str, Answer]] = {}
    for line in lines:
        frame = read_columns(
            line.predictions / "predictions.parquet", ["id", "prediction", "prompt", "finished"]
        )
        for name, text, prompt, finished in frame.filter(pl.col("id").is_in(list(wanted))).rows():
            score = scores.get(id(line), {}).get(name)
            found.setdefault(id(line), {})[name] = Answer(
                method=method_title(line.method),
                variant=line.variant,
                untuned=line.untuned,
                text=text,
                prompt=prompt,
                verdict=verdict(score, graded, line.outcome.higher_is_better),
                score=score,
                finished=finished,
            )
    return found


def is_graded(scores: set[float]) -> bool:
    """Whether a metric says how good an answer is (CIDEr) rather than whether it is right.

    Told from the scores, so that no metric has to be known by name: more than 100, or many partial values.
    """
    partial = {round(score, 6) for score in scores if 0 < score < ENOUGH}
    return len(partial) > MANY_SCORES or any(score > ENOUGH + 1e-6 for score in scores)


def verdict(score: float | None, graded: bool, higher_is_better: bool = True) -> Verdict:
    """How an answer is marked. Of a metric that counts faults (hallucinations), 0 is right and all else wrong."""
    if score is None:
        return "none"
    if not higher_is_better:
        return "wrong" if score > 1e-6 else "right"
    if graded:
        return "graded"
    if score >= ENOUGH - 1e-6:
        return "right"
    return "partial" if score > 1e-6 else "wrong"


def _unanswered(line: Line) -> Answer:
    status = line.outcome.status if line.outcome.status != "ok" else "missing"
    return Answer(
        method=method_title(line.method), variant=line.variant, untuned=line.untuned, text=None, status=status
    )
