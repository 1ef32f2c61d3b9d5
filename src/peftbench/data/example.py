"""One row of a prepared data set: the schema that every stage after preparation shares."""

from __future__ import annotations

import msgspec


class Example(msgspec.Struct, frozen=True):
    """One question about at most one image.

    ``image`` is the sha256 (hex) of the stored file, "" for text alone. ``answers`` holds what the metric
    compares with: ten annotators, five reference captions, or the one answer. ``target`` is what training
    writes. ``answer_index`` points into ``choices``; -1 where there is none. ``source`` is JSON with the
    data set's own facts (question id, drawing style, objects in the picture).
    """

    id: str
    image: str
    question: str
    choices: list[str]
    answer_index: int
    answers: list[str]
    target: str
    question_type: str
    answer_type: str
    split: str
    source: str
