"""A few test pictures per data set with the answer of each method, marked right or wrong.

The examples are drawn by the hash of their ids: whoever looks knows that nobody picked them.
"""

import base64
import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from peftbench.analysis.style import method_title
from peftbench.data.example import Example
from peftbench.data.images import load_image, media_type, read_image
from peftbench.errors import UserError
from peftbench.report.sources import Line, read_columns, record_in

SIDE = 288
"""Longest side of a picture on the page, in pixels."""
SMALL = 12_000
"""Stored pictures of up to so many bytes stand on the page as they are."""
ENOUGH = 100.0
"""Score of a right answer."""
MANY_SCORES = 12
"""With more different partial scores than this, a metric grades rather than judges."""
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
    picture: str
    """``data:`` address; "" where the picture cannot be shown."""
    problem: str
    """Why there is no picture."""
    question: str
    prompt: str
    choices: list[tuple[str, bool]]
    """Each choice, and whether it is the right one."""
    references: list[tuple[str, int]]
    """Each reference answer, and how often it was given."""
    answers: dict[str, dict[str, list[Answer]]]
    """Title of the model -> title of the method -> answers of its variants; what is untuned comes first."""


def gallery(
    lines: Sequence[Line], titles: Mapping[str, str], results: Path, image_store: Path, count: int
) -> list[Card]:
    """Cards for ``count`` examples of one data set; none where no run has answered it.

    Raises ``UserError`` where answers are there and cannot be read, or where runs answered different data.
    """
    answered = [line for line in lines if record_in(line.predictions) is not None]
    if not answered or not count:
        return []
    data = _data_folder(answered, results)
    examples = draw_examples(data / "test.parquet", count)
    wanted = [example.id for example in examples]
    judged = _judge([line for line in lines if line in answered], wanted)
    cards = []
    for example in examples:
        answers: dict[str, dict[str, list[Answer]]] = {}
        prompts = []
        for line in sorted(lines, key=lambda line: not line.untuned):
            answer = judged.get(id(line), {}).get(example.id) or _unanswered(line)
            here = answers.setdefault(titles[line.outcome.cell.model], {})
            here.setdefault(answer.method, []).append(answer)
            prompts.append(answer.prompt)
        picture, problem = _picture(image_store, example.image)
        cards.append(
            Card(
                id=example.id,
                picture=picture,
                problem=problem,
                question=example.question,
                prompt=next(filter(None, prompts), ""),
                choices=[(text, i == example.answer_index) for i, text in enumerate(example.choices)],
                references=Counter(example.answers).most_common(),
                answers=answers,
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


def draw_examples(path: Path, count: int) -> list[Example]:
    """Examples in the order of the hash of their ids, those with a picture first."""
    import polars as pl

    index = read_columns(path, ["id", "image"])
    keys = [
        (image == "", hashlib.sha256(name.encode()).digest(), row)
        for row, (name, image) in enumerate(index.rows())
    ]
    rows = [row for _, _, row in sorted(keys)[:count]]
    frame = read_columns(path, list(Example.__struct_fields__)).select(pl.all().gather(rows))
    try:
        return msgspec.convert(frame.to_dicts(), list[Example])
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: not a prepared data set: {error}") from None


def _judge(lines: Sequence[Line], wanted: Sequence[str]) -> dict[int, dict[str, Answer]]:
    """Line (by identity) -> example -> answer. Whether scores judge or grade is decided over all lines."""
    import polars as pl

    scores: dict[int, dict[str, float]] = {}
    distinct: set[float] = set()
    for line in lines:
        if record_in(line.scores) is not None:
            frame = read_columns(line.scores / "examples.parquet", ["id", "score"])
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
                verdict=verdict(score, graded),
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


def verdict(score: float | None, graded: bool) -> Verdict:
    """How an answer is marked."""
    if score is None:
        return "none"
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


def _picture(image_store: Path, sha256: str) -> tuple[str, str]:
    """A picture as a ``data:`` address, or why it is none."""
    if not sha256:
        return "", "no picture"
    try:
        stored = read_image(image_store, sha256)
        picture: Any = load_image(image_store, sha256)  # a picture, not just bytes
        kind = media_type(stored)
        if kind and len(stored) <= SMALL:
            return _address(stored, kind), ""
    except UserError:
        return "", "picture missing or damaged"
    picture.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=82, method=6)
    return _address(stream.getvalue(), "image/webp"), ""


def _address(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
