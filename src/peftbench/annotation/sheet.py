"""An annotation sheet: one HTML file that works from the disk, and the key that says who wrote what.

People see a picture, the prompt and the answers to it; which method wrote which answer stands in the key alone,
and the order of pictures and answers follows from the seed. Answers of the same wording are shown once.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from peftbench.canonical import digest
from peftbench.data.images import load_image
from peftbench.data.load import read_examples
from peftbench.errors import UserError
from peftbench.models.template import user_text
from peftbench.store import atomic_json, atomic_text, directory_digest

if TYPE_CHECKING:
    from peftbench.data.example import Example
    from peftbench.spec import Prompt

FINGERPRINT_FILES = ("sheet.html.jinja",)
SHEET_FILE = "sheet.html"
KEY_FILE = "key.json"
LABELS = "123456789abcdefghijklmnopqrstuvwxyz"
"""Names of an item's answers, in the order shown; also the keys that mark them."""
SIDE = 640
"""Longest side of a picture in the sheet, in pixels."""


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """The answers of one system: a method after so many epochs."""

    method: str
    folder: Path
    """Holds ``predictions.parquet``."""
    epoch: int | None = None


class System(msgspec.Struct, frozen=True, order=True):
    """Who wrote an answer. ``epoch`` is -1 where it is none in particular."""

    method: str
    epoch: int

    def __str__(self) -> str:
        return self.method if self.epoch < 0 else f"{self.method} at epoch {self.epoch}"


class SheetAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One wording, and all who wrote it."""

    key: str
    text: str
    systems: list[System]


class SheetItem(msgspec.Struct, frozen=True, kw_only=True):
    """One picture with the answers to it, in the order shown."""

    id: str
    image: str
    prompt: str
    answers: list[SheetAnswer]


class Sheet(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The key of a sheet. Keep it from the annotators until they are done."""

    sheet: str
    """Digest of what the annotators see."""
    title: str
    seed: int
    systems: list[System]
    items: list[SheetItem]
    answers: dict[str, str] = {}
    """System in words -> digest of its predictions, where their folder has one."""


def make_sheet(
    predictions: Sequence[Answers],
    out: Path,
    *,
    data_dir: Path,
    image_store: Path,
    prompt: Prompt | None = None,
    ids: Iterable[str] | None = None,
    draw: int | None = None,
    seed: int = 0,
    title: str = "Hallucinations",
) -> Sheet:
    """Write ``sheet.html`` and ``key.json`` into ``out``; return the key.

    ``ids`` are the test examples to show (none: all), of which ``draw`` are drawn by the seed: a smaller draw is
    the beginning of a larger one. ``prompt`` is the data set's; without it people see the bare question.
    ``UserError`` for answers that are missing or of two sets, and for unreadable pictures.
    """
    texts = _read_answers(predictions)
    examples = {example.id: example for example in read_examples(data_dir, "test")}
    wanted = list(examples) if ids is None else list(dict.fromkeys(ids))
    for name in wanted:
        if name not in examples:
            raise UserError(f"{data_dir}: no test example {name!r}: the ids must be those of the data set")
    wanted.sort(key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    if draw is not None and not 0 < draw <= len(wanted):
        raise UserError(f"cannot draw {draw} of {len(wanted)} examples: give a number of 1 to {len(wanted)}")
    items = [_item(examples[name], texts, prompt, seed) for name in wanted[:draw]]
    if not items:
        raise UserError("no examples to annotate")
    pictures = [_picture(image_store, item.image) for item in items]
    systems = sorted(texts)
    answers = {str(_system(one)): found for one in predictions if (found := _digest_of(one.folder))}
    sheet = Sheet(
        sheet=_identity(title, items), title=title, seed=seed, systems=systems, items=items, answers=answers
    )
    html = _render(sheet, pictures)
    atomic_json(out / KEY_FILE, sheet)
    atomic_text(out / SHEET_FILE, html)
    return sheet


def read_sheet(path: Path) -> Sheet:
    """The key of a sheet, from the file or its folder."""
    file = path / KEY_FILE if path.is_dir() else path
    try:
        sheet = msgspec.json.decode(file.read_bytes(), type=Sheet)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}: give the key that was written beside the sheet") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not the key of a sheet ({error}): make the sheet again") from None
    if _identity(sheet.title, sheet.items) != sheet.sheet:
        raise UserError(f"{file}: was changed after the sheet was made: make the sheet again")
    return sheet


def _identity(title: str, items: Sequence[SheetItem]) -> str:
    """Digest of all that the annotators see."""
    shown = [[item.id, item.image, item.prompt, [[a.key, a.text] for a in item.answers]] for item in items]
    return digest([title, shown])


def _system(source: Answers) -> System:
    return System(source.method, -1 if source.epoch is None else source.epoch)


def _digest_of(folder: Path) -> str:
    """Digest of a result's folder; "" for a folder that is none."""
    try:
        return directory_digest(folder)
    except UserError:
        return ""


def _read_answers(predictions: Sequence[Answers]) -> dict[System, dict[str, str]]:
    """System -> id -> answer."""
    from peftbench.arrow import pa, read_table

    if not predictions:
        raise UserError("no predictions to annotate")
    texts: dict[System, dict[str, str]] = {}
    for source in predictions:
        path = source.folder / "predictions.parquet"
        system = _system(source)
        if system in texts:
            raise UserError(f"{path}: {system} is given twice: give one run for each method and epoch")
        try:
            table = read_table(path, columns=["id", "prediction"])
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise UserError(f"{path}: cannot be read ({error}): run snakemake to make it") from None
        texts[system] = dict(zip(table["id"].to_pylist(), table["prediction"].to_pylist(), strict=True))
    return texts


def _item(
    example: Example, texts: dict[System, dict[str, str]], prompt: Prompt | None, seed: int
) -> SheetItem:
    writers: dict[str, list[System]] = {}
    for system in sorted(texts):
        answer = texts[system].get(example.id)
        if answer is None:
            raise UserError(f"{system}: no answer to {example.id!r}: run it again")
        writers.setdefault(answer.strip(), []).append(system)
    if len(writers) > len(LABELS):
        raise UserError(
            f"{len(writers)} different answers to {example.id!r}: a sheet has {len(LABELS)} at most"
        )
    order = sorted(writers)
    Random(f"{seed}/{example.id}").shuffle(order)
    return SheetItem(
        id=example.id,
        image=example.image,
        prompt=user_text(prompt, example) if prompt is not None else example.question,
        answers=[
            SheetAnswer(key=key, text=text, systems=writers[text])
            for key, text in zip(LABELS, order, strict=False)
        ],
    )


def _picture(image_store: Path, sha256: str) -> str:
    """A picture as a ``data:`` address; "" for an example without one."""
    if not sha256:
        return ""
    picture: Any = load_image(image_store, sha256)
    picture.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=85, method=4)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _render(sheet: Sheet, pictures: Sequence[str]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    data = {
        "sheet": sheet.sheet,
        "items": [
            {
                "id": item.id,
                "picture": picture,
                "prompt": item.prompt,
                "answers": [{"key": answer.key, "text": answer.text} for answer in item.answers],
            }
            for item, picture in zip(sheet.items, pictures, strict=True)
        ],
    }
    # Inside a script element only "<" could end it.
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    return environment.get_template("sheet.html.jinja").render(
        title=sheet.title, digest=sheet.sheet, data=text, count=len(sheet.items)
    )
