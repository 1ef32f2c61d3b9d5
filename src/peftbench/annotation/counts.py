"""Table 7: hallucinated answers per method and epoch, as people counted them and as CHAIR does.

Each number says where it comes from; people's and automatic ones are never mixed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from peftbench.annotation.agreement import Agreement, agreement
from peftbench.annotation.collect import Annotations
from peftbench.annotation.sheet import Sheet, System
from peftbench.data.load import read_examples
from peftbench.errors import UserError
from peftbench.store import atomic_json, atomic_text

FIELDS = ("method", "epoch", "source", "n", "hallucinated", "rate", "low", "high", "disputed", "silent")
AVERAGE = "avg"
"""In the place of an epoch: the mean over a method's epochs, as in the paper's table."""


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """One number of the table."""

    method: str
    epoch: str
    """Its number, "" where there is none, ``avg`` for the mean over epochs."""
    source: str
    """``people (n=2), majority``, ``person: Ann`` or ``automatic (CHAIR)``."""
    n: int
    """Answers that were judged."""
    hallucinated: float
    """How many of them contain a hallucination; of an average, their mean."""
    low: float | None = None
    high: float | None = None
    """Bounds of the 95 % interval of the rate, 0-100 (Wilson's for one number, none for a mean over epochs)."""
    disputed: int = 0
    """Answers on which exactly half of the people see a hallucination: they count as none."""
    silent: int = 0
    """Of an automatic number: answers that name no object it knows, which it can only take for faultless."""
    people: int = 0
    """Whose majority it is; 0: one person's or an automatic number."""
    answers: str = ""
    """Digest of the predictions that were judged; empty where it is not known."""

    @property
    def rate(self) -> float:
        """Hallucinated answers in per cent."""
        return 100 * self.hallucinated / self.n


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """All numbers of one sheet."""

    sheet: str
    counts: list[Count]
    agreement: Agreement
    automatic_problem: str = ""
    """Why there is no automatic rate; "" where there is one, or where nobody asked for it."""


def count(annotations: Annotations, seed: int = 0) -> Result:
    """Counts per system: the majority of the people (more than half), each person, and means over epochs."""
    people = annotations.people
    counts = []
    for system in annotations.sheet.systems:
        marks = annotations.of_system(system)
        votes = [sum(person.flags[mark] for person in people) for mark in marks]
        disputed = sum(2 * vote == len(people) for vote in votes)
        majority = sum(2 * vote > len(people) for vote in votes)
        source = f"people (n={len(people)}), majority" if len(people) > 1 else "people (n=1)"
        total = _count(system, source, len(marks), majority, disputed)
        digest = annotations.sheet.answers.get(str(system), "")
        counts.append(msgspec.structs.replace(total, people=len(people), answers=digest))
        if len(people) > 1:
            for person in people:
                flagged = sum(person.flags[mark] for mark in marks)
                counts.append(_count(system, f"person: {person.annotator}", len(marks), flagged))
    return Result(
        sheet=annotations.sheet.sheet,
        counts=[*counts, *_averages(counts)],
        agreement=agreement(annotations, seed),
    )


def automatic(
    sheet: Sheet, data_dir: Path, settings: dict[str, Any] | None = None
) -> tuple[list[Count], str]:
    """CHAIR-s of the same answers to the same pictures, and why there is none where there is none.

    It counts answers that name an object which the picture lacks, and sees no other hallucination. The data set
    must list the objects of each picture (``objects`` in an example's ``source``); unless the settings name a
    vocabulary, the objects of the whole test split are it.
    """
    from peftbench.metrics import chair

    examples = read_examples(data_dir, "test")
    places = {example.id: place for place, example in enumerate(examples)}
    for item in sheet.items:
        if item.id not in places:
            raise UserError(
                f"{data_dir}: no test example {item.id!r}: give the data that the sheet was made from"
            )
    counts = []
    for system in sheet.systems:
        texts = [""] * len(examples)  # says nothing about the pictures that are not on the sheet
        for item in sheet.items:
            texts[places[item.id]] = next(a.text for a in item.answers if system in a.systems)
        try:
            result = chair.score(texts, examples, {"replicates": 0, **(settings or {})})
        except UserError as error:
            return [], f"no automatic rate: {error}"
        mine = [places[item.id] for item in sheet.items]
        flagged = sum(result.per_example[place] > 0 for place in mine)
        silent = sum(not result.columns["mentions"][place] for place in mine)
        counts.append(_count(system, "automatic (CHAIR)", len(mine), flagged, silent=silent))
    return [*counts, *_averages(counts)], ""


def report(
    annotations: Annotations,
    out: Path,
    data_dir: Path | None = None,
    chair_settings: dict[str, Any] | None = None,
    seed: int = 0,
) -> Result:
    """Write ``hallucination.csv`` and ``hallucination.json`` into ``out``; return what is in them.

    With ``data_dir`` the automatic rate stands beside people's, where the data set allows it.
    """
    result = count(annotations, seed)
    if data_dir is not None:
        counts, problem = automatic(annotations.sheet, data_dir, chair_settings)
        result = msgspec.structs.replace(result, counts=[*result.counts, *counts], automatic_problem=problem)
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(FIELDS)
    for row in result.counts:
        bounds = ["" if bound is None else f"{bound:.2f}" for bound in (row.low, row.high)]
        total = f"{row.hallucinated:g}"
        writer.writerow(
            [
                row.method,
                row.epoch,
                row.source,
                row.n,
                total,
                f"{row.rate:.2f}",
                *bounds,
                row.disputed,
                row.silent,
            ]
        )
    atomic_text(out / "hallucination.csv", stream.getvalue())
    atomic_json(out / "hallucination.json", {**msgspec.to_builtins(result), "notes": _notes(annotations)})
    return result


def free_of_hallucinations(annotations: Annotations, system: System, limit: int | None = None) -> list[str]:
    """Ids, in the order of the sheet, of the items whose answer by one system nobody found fault with.

    The paper's first step: 100 such captions of the untuned model choose the pictures of the second sheet.
    ``UserError`` where there are fewer than ``limit``.
    """
    if system not in annotations.sheet.systems:
        raise UserError(f"the sheet has no answers of {system}")
    free = [
        mark[0]
        for mark in annotations.of_system(system)
        if not any(person.flags[mark] for person in annotations.people)
    ]
    if limit is not None and len(free) < limit:
        raise UserError(f"only {len(free)} answers are free of hallucinations, not {limit}: annotate more")
    return free[:limit]


def _count(
    system: System, source: str, n: int, hallucinated: int, disputed: int = 0, silent: int = 0
) -> Count:
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(hallucinated, n, method="wilson")
    return Count(
        method=system.method,
        epoch="" if system.epoch < 0 else str(system.epoch),
        source=source,
        n=n,
        hallucinated=hallucinated,
        low=100 * float(low),
        high=100 * float(high),
        disputed=disputed,
        silent=silent,
    )


def _averages(counts: Sequence[Count]) -> list[Count]:
    """The mean over a method's epochs for each source, where it has several epochs."""
    groups: dict[tuple[str, str], list[Count]] = {}
    for one in counts:
        groups.setdefault((one.method, one.source), []).append(one)
    return [
        Count(
            method=method,
            epoch=AVERAGE,
            source=source,
            n=group[0].n,
            hallucinated=sum(one.hallucinated for one in group) / len(group),
            disputed=sum(one.disputed for one in group),
            silent=sum(one.silent for one in group),
        )
        for (method, source), group in groups.items()
        if len(group) > 1
    ]


def _notes(annotations: Annotations) -> list[dict[str, Any]]:
    """What people wrote, with the authors of the answer."""
    systems = {(i.id, a.key): a.systems for i in annotations.sheet.items for a in i.answers}
    return [
        {
            "annotator": person.annotator,
            "item": item,
            "answer": key,
            "systems": msgspec.to_builtins(systems[item, key]),
            "note": note,
        }
        for person in annotations.people
        for (item, key), note in sorted(person.notes.items())
    ]
