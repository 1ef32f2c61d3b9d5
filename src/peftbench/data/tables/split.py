"""The examples of one split of a table source: read, filtered, sampled, joined, illustrated, counted."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftbench.data.example import Example
from peftbench.data.tables.expressions import BadRow, MissingColumn, compiled, is_missing
from peftbench.data.tables.joined import Lookup
from peftbench.data.tables.mapping import examples, exploded, needed_paths, row_id
from peftbench.data.tables.pictures import Pictures
from peftbench.data.tables.readers import table_rows
from peftbench.data.tables.spec import Sample, SplitRows, TableSource, join_keys
from peftbench.errors import UserError

TRAIN = "train"
SHOWN = 3
"""Bad rows named in an error."""
LISTED = 100
"""Bad rows named in the record."""
HOPELESS = 1000
"""With so many bad rows more than tolerated, the rest is not looked at."""


class Seen:
    """Images of splits that are done, by content and by name."""

    def __init__(self) -> None:
        self.by_content: dict[str, str] = {}
        self.by_name: dict[str, str] = {}

    def add(self, split: str, sha256: str, name: str) -> None:
        """Note an image of a split; the training split is compared with the others, so its own are not noted."""
        if split == TRAIN:
            return
        if sha256:
            self.by_content[sha256] = split
        if name:
            self.by_name[name] = split

    def split_with(self, sha256: str, name: str) -> str:
        """The split that has this image, "" if none has."""
        return self.by_content.get(sha256, "") or self.by_name.get(name, "")


class SplitExamples:
    """The examples of one split, to be iterated once; ``facts`` holds what the record says after that."""

    def __init__(
        self,
        dataset: str,
        name: str,
        source: TableSource,
        files: dict[str, Path],
        image_store: Path,
        seen: Seen,
    ) -> None:
        self.where = f"data set {dataset}, split {name}"
        self.name = name
        self.source = source
        self.split: SplitRows = source.splits[name]
        self.files = files
        self.seen = seen
        picture = self.split.image or source.image
        self.pictures = Pictures(picture, files, image_store) if picture else None
        self.bad: list[str] = []
        self.bad_count = 0
        self.facts: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Example]:
        """Yield the examples; ``UserError`` at the end where a count is wrong or too many rows are bad."""
        lookup = self._lookup()
        try:
            yield from self._examples(lookup)
        finally:
            if lookup:
                lookup.close()
            if self.pictures:
                self.pictures.close()

    def _examples(self, lookup: Lookup | None) -> Iterator[Example]:
        sample = self.split.sample
        chosen = self._draw(sample) if sample else None
        spares: list[tuple[int, list[Example], str, str]] = []
        lost = 0  # of the sample, for the spares to replace
        counter = _Counter()
        ids: dict[str, int] = {}
        for number, row in self._rows(self._columns(), counter):
            rank = -1
            try:
                name = self._name(row, ids)
                if chosen is not None:
                    rank = chosen.get(self._unit(row, name), -1)
                    if rank < 0:
                        continue
                made, sha256, picture = self._make(row, name, lookup)
            except BadRow as error:
                self._note(number, row, error)
                lost += rank >= 0
                continue
            if sample and rank >= sample.take:
                spares.append((rank, made, sha256, picture))
                continue
            if self.bad_count <= self.source.tolerate:
                self.seen.add(self.name, sha256, picture)
                yield from made
        self._check_count(counter.rows)
        if self.bad_count > self.source.tolerate:
            raise UserError(self._too_many())
        for _, made, sha256, picture in sorted(spares, key=lambda spare: spare[0])[:lost]:
            self.seen.add(self.name, sha256, picture)
            yield from made
        self.facts = {"source_rows": counter.rows}
        if self.bad:
            self.facts["bad_rows"] = {"count": self.bad_count, "rows": self.bad[:LISTED]}

    def _make(self, row: dict[str, Any], name: str, lookup: Lookup | None) -> tuple[list[Example], str, str]:
        """Examples of a row, and its image's hash and name."""
        values = row
        if lookup and self.split.join:
            values = {**lookup.find(compiled(join_keys(self.split.join)[0])(row)), **row}
        sha256, picture = self.pictures.store(values) if self.pictures else ("", "")
        if self.source.image_disjoint and self.name == TRAIN:
            other = self.seen.split_with(sha256, picture)
            if other:
                raise BadRow(f"its image {picture or sha256[:12]} is also in split {other}")
        return list(examples(self.source.row, values, name, sha256, self.name)), sha256, picture

    def _rows(self, columns: set[str], counter: _Counter) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rows of the first table that count, exploded; bad ones are noted."""
        where = [(compiled(key), wanted) for key, wanted in self.split.where.items()]
        has = [compiled(expression) for expression in self.source.has]
        for row in table_rows(self.split.rows, self.files, columns):
            number = row["_row"]
            try:
                if not all(_equals(expression(row), wanted) for expression, wanted in where):
                    continue
                counter.rows += 1
                if any(_empty(expression(row)) for expression in has):
                    continue
                for part in exploded(row, self.source.explode):
                    yield number, part
            except BadRow as error:
                self._note(number, row, error)

    def _note(self, number: int, row: dict[str, Any], error: BadRow) -> None:
        if isinstance(error, MissingColumn) and number == 0:
            raise UserError(f"{self.where}: {error}: check the data set file") from None
        self.bad_count += 1
        if len(self.bad) < LISTED:
            try:
                name = f"row {row_id(self.source.row, row, '')!r}" if self.source.row.id else f"row {number}"
            except BadRow:
                name = f"row {number}"
            self.bad.append(f"{name}: {error}")
        if self.bad_count > self.source.tolerate + HOPELESS:
            raise UserError(self._too_many("more than ")) from None

    def _too_many(self, more: str = "") -> str:
        shown = "; ".join(self.bad[:SHOWN])
        count = self.bad_count - (1 if more else 0)
        return (
            f"{self.where}: {more}{count} bad rows, {self.source.tolerate} tolerated: {shown}"
            f"{'; ...' if self.bad_count > SHOWN else ''}: mend them, or raise source.tolerate"
        )

    def _check_count(self, found: int) -> None:
        expected = self.split.expected
        if expected is not None and found != expected:
            raise UserError(
                f"{self.where}: the source has {found} rows, expected {expected}: "
                "it is incomplete or another version; retrieve it again, or correct 'expected'"
            )

    def _name(self, row: dict[str, Any], ids: dict[str, int]) -> str:
        """The row's id; where it is a hash of its content, equal rows are numbered."""
        if self.source.row.id:
            return row_id(self.source.row, row, "")
        name = row_id(self.source.row, row, self.pictures.identity(row) if self.pictures else "")
        ids[name] = ids.get(name, -1) + 1
        return f"{name}-{ids[name]}" if ids[name] else name

    def _unit(self, row: dict[str, Any], name: str) -> str:
        """What a sample counts."""
        sample = self.split.sample
        if sample and sample.unit == "image":
            identity = self.pictures.identity(row) if self.pictures else ""
            return identity or name
        return name

    def _draw(self, sample: Sample) -> dict[str, int]:
        """Rank of what the sample has; of rows, with as many spares as bad ones are tolerated."""
        columns = self._columns(first_only=True)
        ids: dict[str, int] = {}

        def units() -> Iterator[tuple[bytes, str]]:
            last: set[str] = set()
            for _, row in self._rows(columns, _Counter()):
                try:
                    unit = self._unit(row, self._name(row, ids))
                except BadRow as error:
                    if isinstance(error, MissingColumn) and row["_row"] == 0:
                        raise UserError(f"{self.where}: {error}: check the data set file") from None
                    continue  # noted when the rows are read
                if sample.unit == "image":
                    if unit in last:
                        continue
                    last.add(unit)
                yield hashlib.sha256(f"{sample.seed}/{unit}".encode()).digest(), unit

        spare = self.source.tolerate if sample.unit == "row" else 0
        drawn = heapq.nsmallest(sample.skip + sample.take + spare, units())[sample.skip :]
        self.bad, self.bad_count = [], 0  # they are noted again
        if len(drawn) < sample.take:
            raise UserError(
                f"{self.where}: a sample of {sample.take} {sample.unit}s after {sample.skip} is asked for, "
                f"the source has {len(drawn) + sample.skip if drawn else 'fewer'}"
            )
        return {unit: rank for rank, (_, unit) in enumerate(drawn)}

    def _columns(self, first_only: bool = False) -> set[str]:
        """Columns of the first table that are needed; with ``first_only`` for ids and samples alone."""
        row, picture = self.source.row, self.split.image or self.source.image
        texts = [*self.split.where, *self.source.has, *self.source.explode, row.id]
        whole = not first_only or not row.id
        if picture:
            texts.append(picture.name)
            by_bytes = self.split.sample and self.split.sample.unit == "image" and not picture.name
            if whole or by_bytes:
                texts.append(picture.column)
        paths = needed_paths(row) if whole else set()
        if self.split.join:
            texts.append(join_keys(self.split.join)[0])
        for text in texts:
            paths |= compiled(text).paths if text else set()
        return set().union(*(compiled(path).columns for path in paths)) | paths

    def _lookup(self) -> Lookup | None:
        join = self.split.join
        if join is None:
            return None
        picture = self.split.image or self.source.image
        paths = needed_paths(self.source.row) - self.source_only()
        if picture:
            for text in (picture.column, picture.name):
                paths |= compiled(text).paths if text else set()
        key = join_keys(join)[1]
        columns = set().union(*(compiled(path).columns for path in paths | compiled(key).paths))
        rows = table_rows(join.rows, self.files, columns | paths)
        return Lookup(rows, key, paths, f"{self.where}, joined table")

    def source_only(self) -> set[str]:
        """Paths that only the first table is asked for."""
        return compiled(self.source.row.id).paths if self.source.row.id else set()


class _Counter:
    rows = 0


def _equals(value: Any, wanted: Any) -> bool:
    options = wanted if isinstance(wanted, list) else [wanted]
    return any(value == option or str(value) == str(option) for option in options)


def _empty(value: Any) -> bool:
    if isinstance(value, dict) and set(value) == {"bytes", "path"}:
        return not value["bytes"] and not value["path"]
    return is_missing(value) or value == "" or value == [] or value == b""
