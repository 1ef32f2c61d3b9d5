"""``peftbench score``: the metrics on their own, for predictions of any model.

Predictions are rows ``{"id", "prediction"}`` (JSON lines), or files of LLaVA, lmms-eval, VLMEvalKit or VQA
submissions (``metrics/_formats``). References are rows with what the metric compares with:

- vqa_score: ``{"id", "answers": [...]}`` (ten strings), or an official VQA annotation file;
- scienceqa: ``{"id", "choices": [...], "answer_index"}``, perhaps ``image``, ``hint``, ``grade``,
  ``subject``;
- iconqa: ``{"id", "choices": [...], "answer_index"}`` or ``{"id", "answer"}``;
- exact_match: ``{"id", "answers": [...]}``; pope: ``{"id", "label": "yes" | "no"}``, perhaps ``category``;
- cider: ``{"id", "captions": [...]}``; chair: ``{"id", "objects": [...]}``, perhaps ``captions``, ``names``;
- mmhal: ``{"id"}`` in the official order (predictions are the judge's texts).

Further fields: ``image`` or ``image_id`` (rows that share one are a cluster of the standard error),
``answer_type``, ``question_type``. The corpus result is one line of JSON on standard output;
``--per-example`` writes rows ``{"id", "score"}``. Scores are on 0-100 (CIDEr x100, MMHAL 0-6).
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from peftbench.errors import UserError
from peftbench.metrics._formats import FORMATS, read_predictions, write_predictions
from peftbench.metrics._rows import (
    RowId,
    align,
    convert_row,
    decode_lines,
    decode_one,
    dump_row,
    read_bytes,
    unique_ids,
)

if TYPE_CHECKING:
    from peftbench.data.example import Example
    from peftbench.metrics.base import MetricResult

VARIANT_OF = {
    "vqa_score": "variant",
    "scienceqa": "rule",
    "iconqa": "rule",
    "exact_match": "strictness",
    "chair": "rules",
}
"""Which setting of a metric ``--variant`` names."""
MISSING_IS_WRONG = "scienceqa"
"""The metric whose official code counts a missing prediction as a wrong one."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command ``score``."""
    parser = subparsers.add_parser(
        "score",
        help="score predictions against references, without the workflow",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--metric", help="a metric: vqa_score, scienceqa, iconqa, exact_match, cider, chair, pope, mmhal"
    )
    parser.add_argument(
        "--variant", help="which variant of the metric gives the score (vqa_score: official, evalai, ...)"
    )
    parser.add_argument("--predictions", type=Path, required=True, help="prediction file")
    parser.add_argument("--references", type=Path, help="reference file")
    parser.add_argument(
        "--per-example", type=Path, metavar="FILE", help="write a score per row to FILE (JSON lines)"
    )
    parser.add_argument(
        "--predictions-format",
        default="auto",
        choices=("auto", *FORMATS),
        help="format (default: told by the first row)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the metric; the value is JSON or text",
    )
    parser.add_argument(
        "--export", type=Path, metavar="FILE", help="also write the predictions to FILE, see --export-format"
    )
    parser.add_argument("--export-format", default="peftbench", choices=FORMATS, help="format of --export")
    parser.set_defaults(run=main)


def main(arguments: argparse.Namespace) -> int:
    """Score as the arguments say; the exit status. A ``UserError`` is one line and status 1."""
    collecting = gc.isenabled()
    gc.disable()  # the process ends soon and makes no cycles: looking for some takes a third of the time
    try:
        return _score(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        if collecting:
            gc.enable()


def _score(arguments: argparse.Namespace) -> int:
    ids, texts = read_predictions(arguments.predictions, arguments.predictions_format)
    if arguments.export is not None:
        _write(arguments.export, write_predictions(ids, texts, arguments.export_format))
    if arguments.metric is None:
        if arguments.export is None:
            raise UserError("nothing to do: give --metric (and --references), or --export")
        return 0
    from peftbench.metrics.base import load_metric

    metric = load_metric(arguments.metric)
    settings = _settings(arguments)
    if arguments.references is None:
        raise UserError(f"metric {arguments.metric} needs --references")
    if arguments.metric == "vqa_score":
        wanted, result = _score_vqa(ids, texts, arguments, settings)
    else:
        examples = read_references(arguments.references)
        wanted = [name for name, _ in examples]
        texts = _ordered(wanted, ids, texts, arguments)
        result = metric.score(texts, [example for _, example in examples], settings)
    if arguments.per_example is not None:
        rows = [
            dump_row({"id": name, "score": score})
            for name, score in zip(wanted, result.per_example, strict=True)
        ]
        _write(arguments.per_example, b"".join(rows))
    _warn(result)
    sys.stdout.buffer.write(dump_row(corpus_row(arguments.metric, result)))
    sys.stdout.flush()
    return 0


def _score_vqa(
    ids: list[RowId], texts: list[str], arguments: argparse.Namespace, settings: dict[str, Any]
) -> tuple[list[RowId], MetricResult]:
    """The VQA-score by compiled references, which are kept: official files are large and do not change."""
    from peftbench.metrics import vqa_score
    from peftbench.metrics._vqa_refs import load_references
    from peftbench.metrics.base import read_settings

    typed = read_settings(vqa_score.Settings, settings, "vqa_score")
    references = load_references(arguments.references)
    order = align(references.ids, ids, f"predictions {arguments.predictions}")
    ordered = texts if references.ids == ids else [texts[place] for place in order]
    return references.ids, vqa_score.score_compiled(ordered, references, typed, columns=False)


def _ordered(
    wanted: list[RowId], ids: list[RowId], texts: list[str], arguments: argparse.Namespace
) -> list[str]:
    """Predictions in the order of the references; a missing one is an error or, for ScienceQA, wrong."""
    missing: list[RowId] = []
    counts = arguments.metric == MISSING_IS_WRONG
    order = align(wanted, ids, f"predictions {arguments.predictions}", missing.append if counts else None)
    if missing:
        print(
            f"warning: no prediction for id {missing[0]!a}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + ": counted as wrong, as the official code does",
            file=sys.stderr,
        )
    return [texts[place] if place >= 0 else "" for place in order]


def corpus_row(metric: str, result: MetricResult) -> dict[str, Any]:
    """The result of the whole as plain data; ``score`` is on the scale of the scores per row."""
    return {
        "metric": metric,
        "score": result.value,
        "n": result.n,
        "stderr": result.stderr,
        "interval": result.interval,
        "higher_is_better": result.higher_is_better,
        "extra": result.extra,
    }


def _warn(result: MetricResult) -> None:
    """Say on standard error what a reader of the score must know."""
    uneven = result.extra.get("not_ten_answers", 0)
    if uneven:
        first = result.extra.get("first_not_ten")
        print(
            f"warning: {uneven} questions do not have ten answers (first: {first}): scored over theirs",
            file=sys.stderr,
        )
    tokens = result.extra.get("tokens", {})
    if tokens.get("sanitised"):
        print(
            f"warning: {tokens['sanitised']} captions held line separators: replaced by spaces",
            file=sys.stderr,
        )
    if tokens.get("approximate"):
        print(
            f"warning: {tokens['approximate']} captions tokenised by the nearest rule (no Java): not exact",
            file=sys.stderr,
        )


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for item in arguments.set:
        name, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--set {item}: write NAME=VALUE")
        try:
            settings[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            settings[name] = value
    if arguments.variant is not None:
        if arguments.metric not in VARIANT_OF:
            raise UserError(f"metric {arguments.metric} has no variants: leave out --variant")
        settings[VARIANT_OF[arguments.metric]] = arguments.variant
    return settings


class _Reference(msgspec.Struct):
    """One row of references: the union of what the metrics need."""

    id: int | str = ""
    question_id: int | str = ""
    answers: list[str] = []
    answer: str | None = None
    captions: list[str] = []
    label: str | None = None
    choices: list[str] = []
    answer_index: int = -1
    image: int | str | bool | None = None
    image_id: int | str | None = None
    answer_type: str = ""
    question_type: str = ""
    category: str = ""
    hint: str | None = None
    grade: str | None = None
    subject: str | None = None
    objects: list[str] | None = None
    names: dict[str, list[str]] | None = None


def read_references(path: Path) -> list[tuple[RowId, Example]]:
    """(id, example) of each reference row; a UserError names the first bad or repeated one."""
    from peftbench.data.example import Example

    data = read_bytes(path, "references")
    if data.lstrip()[:1] == b"[":
        plain = decode_one(data, list[Any], f"references {path}")
        rows = [
            convert_row(row, _Reference, f"references {path} row {number}")
            for number, row in enumerate(plain)
        ]
    else:
        rows = decode_lines(data, _Reference, path)
    if not rows:
        raise UserError(f"references {path}: no rows: the file is empty")
    out = []
    for number, row in enumerate(rows):
        name = row.id if row.id != "" else row.question_id
        if name == "":
            raise UserError(f'references {path} row {number}: it has no "id": add one')
        single = [text for text in (row.answer, row.label) if text is not None]
        facts = {
            key: value
            for key in ("hint", "grade", "subject", "objects", "names")
            if (value := getattr(row, key)) is not None
        }
        example = Example(
            id=str(name),
            image=_image_key(row),
            question="",
            choices=row.choices,
            answer_index=row.answer_index,
            answers=row.answers or row.captions or single,
            target="",
            question_type=row.question_type or row.category,
            answer_type=row.answer_type,
            split="",
            source=dump_row(facts).decode() if facts else "",
        )
        out.append((name, example))
    unique_ids([name for name, _ in out], f"references {path}")
    return out


def _image_key(row: _Reference) -> str:
    """Cluster key of a row: its image where it names one; ``true`` says that it has one of its own."""
    if isinstance(row.image, bool):
        return f"own image of {row.id}" if row.image else ""
    key = row.image_id if row.image_id is not None else row.image
    return "" if key is None else str(key)


def _write(path: Path, data: bytes) -> None:
    from peftbench.store import atomic_bytes

    try:
        atomic_bytes(path, data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}): check the folder") from None


def run(argv: Sequence[str] | None = None) -> int:
    """Run ``score`` as a program of its own, without the other sub-commands."""
    parser = argparse.ArgumentParser(prog="peftbench")
    add_parser(parser.add_subparsers(required=True))
    return main(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(run())
