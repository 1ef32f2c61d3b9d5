"""The ``source:`` block of a data set of kind ``table``, as types. Expressions: ``tables.expressions``."""

from __future__ import annotations

import types
import typing
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from peftbench.data.tables.expressions import Expression, compiled
from peftbench.errors import UserError, did_you_mean

T = TypeVar("T", bound=Struct)
Count = Annotated[int, Meta(ge=0)]


class _Block(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Table(_Block, frozen=True, kw_only=True):
    """One table: a file or several like ones, or a split of a repository on the Hugging Face hub."""

    in_: str = field(name="in")
    """Name of the origin (``from:``) that holds it."""
    split: str = ""
    """A split of the repository, found as the ``datasets`` library does: by its README, else by file names."""
    config: str = ""
    """A configuration of the repository; empty: its default."""
    file: str = ""
    """Glob of the file or files; needed where the origin has several. ``*`` also stands for folders."""
    member: str = ""
    """Of a zip archive: glob of the file or files in it, read without extracting them."""
    format: Literal["", "csv", "tsv", "json", "jsonl", "parquet"] = ""
    """Of the files; empty: by their suffix. A JSON file without ``field`` that is no list is one row."""
    field: str = ""
    """Of JSON: the key below which the list of rows stands, such as ``annotations``."""


class Join(_Block, frozen=True, kw_only=True):
    """A second table whose columns join those of the first; each row of the first needs exactly one there."""

    rows: Table
    """The second table."""
    by: str | dict[str, str]
    """The key: one expression for both, or ``{first: second}``."""


class Sample(_Block, frozen=True, kw_only=True):
    """A part of the rows, the same whatever their order: by the hash of seed and id."""

    take: Count
    """How many."""
    skip: Count = 0
    """How many to leave out before: two samples of one table with one seed that do not overlap are disjoint."""
    seed: int = 42
    """Another seed, another sample."""
    unit: Literal["row", "image"] = "row"
    """What is counted: with ``image``, an image comes with all its rows."""


class Picture(_Block, frozen=True, kw_only=True):
    """Where a row's image is: in a column, or by its name in an origin."""

    column: str = ""
    """Expression: bytes, or a struct with ``bytes``, as the hub stores images."""
    in_: str = field(name="in", default="")
    """Origin with the picture files: a folder, or a zip archive, which is not extracted."""
    archive: str = ""
    """Glob of the archive or archives, where the origin holds other files too."""
    name: str = ""
    """Expression: path of the file, or its end (``x.jpg`` finds ``train/x.jpg``). Of a column: a name, for
    ``image_disjoint`` and messages."""
    optional: bool = False
    """Whether rows without an image are rows."""


class SplitRows(_Block, frozen=True, kw_only=True):
    """Where the rows of one prepared split come from."""

    rows: Table
    """The table. ``where``, samples and the row's id see only this one."""
    where: dict[str, Any] = {}
    """Only rows in which these expressions have this value, or one of these."""
    join: Join | None = None
    """A second table."""
    expected: Count | None = None
    """Rows in the source (after ``where``, before all else); another number is an error."""
    sample: Sample | None = None
    """Part of the rows; null: all."""
    image: Picture | None = None
    """Where the images are, as far as it differs from the source's ``image``."""


class Row(_Block, frozen=True, kw_only=True):
    """How a row becomes an example. All but ``target``, ``answer_is``, ``annotators`` are expressions."""

    id: str = ""
    """Unique within the split; empty: a hash of question, choices, answers and image."""
    question: str = ""
    """Text that the prompt's ``{question}`` stands for."""
    choices: str | list[str] = ""
    """A list, or one expression per choice (empty ones at the end are dropped)."""
    answer: str = ""
    """Which choice is right."""
    answer_is: Literal["index", "letter", "text"] = "index"
    """What ``answer`` is: a number from 0, a letter from A, or the choice's text."""
    answers: str = ""
    """What the metric compares with, a list or a single one; empty: the right choice, as ``target`` writes it."""
    target: Literal["first", "most_common", "each", "letter", "choice"] = "first"
    """What training writes: the first or the most common answer (the earlier of equally common ones), the letter
    or the text of the right choice; ``each``: in the split train one row per answer, elsewhere like ``first``."""
    annotators: Count = 0
    """Answers that each row must have, such as 10; 0: any number."""
    question_type: str = ""
    """For scores by type."""
    answer_type: str = ""
    """For scores by type."""
    facts: list[str] = []
    """Columns to keep for metrics and the report."""


class TableSource(_Block, frozen=True, kw_only=True):
    """A data set described by its file alone."""

    kind: Literal["table"]
    from_: list[str] = field(name="from")
    """Names of its origins (in the file: with what to fetch, see ``peftbench.retrieve.origin``)."""
    splits: dict[str, SplitRows]
    """Prepared split, such as train and test, and where its rows come from."""
    row: Row
    """How a row becomes an example."""
    image: Picture | None = None
    """Where the images are; null: rows have none."""
    has: list[str] = []
    """Expressions that must not be empty: other rows are left out, which is no error."""
    explode: list[str] = []
    """Columns with parallel lists: each position becomes a row of its own; ``_item`` is its number."""
    image_disjoint: bool = False
    """Whether a training row whose image (by content or name) is in another split is a bad row."""
    tolerate: Count = 0
    """Bad rows per split that are left out rather than an error; the record names them."""


def parse(source: dict[str, Any]) -> TableSource:
    """The typed block with its defaults; ``UserError`` that names key and nearest valid name."""
    source = dict(source)
    if isinstance(source.get("from"), dict):
        source["from"] = sorted(source["from"])
    splits = source.get("splits")
    if isinstance(splits, dict):
        source["splits"] = {
            name: {**split, "image": {**(source.get("image") or {}), **split["image"]}}
            if isinstance(split, dict) and isinstance(split.get("image"), dict)
            else split
            for name, split in splits.items()
        }
    typed = _typed(source, TableSource)
    _check(typed)
    return typed


def _typed(data: Any, kind: type[T]) -> T:
    _check_keys(data, kind, "source")
    for name, split in data["splits"].items() if isinstance(data["splits"], dict) else ():
        _converted(
            split, SplitRows, f"source.splits.{name}"
        )  # in one go, the message would not say which split
    return _converted(data, kind, "source")


def _converted(data: Any, kind: type[T], key: str) -> T:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$")
        raise UserError(
            f"{key}{where.rstrip('`')}: {message[0].lower()}{message[1:]}".replace("[...]", "")
        ) from None


def _check_keys(data: Any, kind: type[Struct], where: str) -> None:
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected keys with values, got {type(data).__name__}")
    fields = {f.encode_name: f for f in msgspec.structs.fields(kind)}
    hints = typing.get_type_hints(kind)
    for key in data:
        if key not in fields:
            raise UserError(f"{where}: unknown key {key!r}{did_you_mean(key, fields)}")
    for name, field_ in fields.items():
        if field_.required and name not in data:
            raise UserError(f"{where}: key {name!r} is missing")
    for key, value in data.items():
        hint = hints[fields[key].name]
        if typing.get_origin(hint) is dict and isinstance(value, dict):
            inner = _struct_in(typing.get_args(hint)[1])
            for name, entry in value.items():
                if inner:
                    _check_keys(entry, inner, f"{where}.{key}.{name}")
        elif (inner := _struct_in(hint)) and value is not None:
            _check_keys(value, inner, f"{where}.{key}")


def _struct_in(hint: Any) -> type[Struct] | None:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, Struct)), None)


def _check(source: TableSource) -> None:
    """What types cannot say: origins exist, expressions are some, keys fit together."""
    for name, split in source.splits.items():
        where = f"source.splits.{name}"
        _origin(source, split.rows.in_, f"{where}.rows.in")
        for expression in split.where:
            _expression(expression, f"{where}.where")
        if split.join:
            _origin(source, split.join.rows.in_, f"{where}.join.rows.in")
            for expression in join_keys(split.join):
                _expression(expression, f"{where}.join.by")
            if not source.row.id:
                raise UserError(f"source.row: key 'id' is missing: {where} joins tables, so rows need an id")
        _picture(source, split.image, f"{where}.image")
    _picture(source, source.image, "source.image")
    row = source.row
    for key in ("id", "question", "answer", "answers", "question_type", "answer_type"):
        _expression(getattr(row, key), f"source.row.{key}")
    for expression in [row.choices] if isinstance(row.choices, str) else row.choices:
        _expression(expression, "source.row.choices")
    for key, expressions in (("row.facts", row.facts), ("has", source.has), ("explode", source.explode)):
        for expression in expressions:
            _expression(expression, f"source.{key}")
    if row.answer and not row.choices:
        raise UserError("source.row.answer: there are no choices to point to: give choices, or use answers")
    if row.target in ("letter", "choice") and not row.answer:
        raise UserError(f"source.row.target: {row.target} needs 'choices' and 'answer'")
    if not row.answer and not row.answers:
        raise UserError("source.row: give 'answers', or 'choices' and 'answer'")


def join_keys(join: Join) -> tuple[str, str]:
    """The key's expression in the first and in the second table."""
    if isinstance(join.by, str):
        return join.by, join.by
    if len(join.by) != 1:
        raise UserError("source.splits: join.by: give one key, as {first: second}")
    return next(iter(join.by.items()))


def _origin(source: TableSource, name: str, where: str) -> None:
    if name not in source.from_:
        raise UserError(f"{where}: no origin {name!r} in 'from'{did_you_mean(name, source.from_)}")


def _expression(text: str, where: str) -> Expression | None:
    try:
        return compiled(text) if text else None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _picture(source: TableSource, picture: Picture | None, where: str) -> None:
    if picture is None:
        return
    if bool(picture.column) == bool(picture.in_):
        raise UserError(f"{where}: give exactly one of column and in")
    _expression(picture.column, f"{where}.column")
    _expression(picture.name, f"{where}.name")
    if picture.in_:
        _origin(source, picture.in_, f"{where}.in")
        if not picture.name:
            raise UserError(f"{where}: key 'name' is missing: which file of {picture.in_!r}?")
