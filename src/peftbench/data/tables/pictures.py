"""The image of a row: from a column, a folder or inside a zip archive, stored with its bytes as they are."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftbench.data.images import check_image, store_image
from peftbench.data.tables.expressions import BadRow, compiled
from peftbench.data.tables.files import folder_of, matching, members, names_in, open_zip
from peftbench.data.tables.spec import Picture


class Pictures:
    """Images of one split: each is read and stored once, however many rows show it."""

    def __init__(self, picture: Picture, files: dict[str, Path], image_store: Path) -> None:
        self._picture = picture
        self._store = image_store
        self._stored: dict[str, str] = {}
        """Name -> sha256 of what was stored under it."""
        self._shelf = _Shelf(folder_of(files, picture.in_), picture.archive) if picture.in_ else None

    def name(self, row: Mapping[str, Any]) -> str:
        """What the data set calls the row's image, "" where it does not call it anything."""
        value = compiled(self._picture.name)(row) if self._picture.name else ""
        return "" if value is None else str(value)

    def identity(self, row: Mapping[str, Any]) -> str:
        """The same for rows with the same image: its name, else its bytes' hash; "" without an image."""
        name = self.name(row)
        if name or self._shelf:
            return name
        data = _bytes_of(compiled(self._picture.column)(row))
        import hashlib

        return hashlib.sha256(data).hexdigest() if data else ""

    def store(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """Store the row's image; return its sha256 and name, both "" where a row may have none and has none.

        Raises ``BadRow`` where it is missing or no image.
        """
        name = self.name(row)
        if self._shelf is None:
            data = _bytes_of(compiled(self._picture.column)(row))
        elif name in self._stored:
            return self._stored[name], name
        else:
            data = self._shelf.read(name) if name else None
        if data is None:
            if self._picture.optional:
                return "", ""
            raise BadRow("it has no image")
        try:
            check_image(data)
        except ValueError as error:
            raise BadRow(f"image {name}: {error}" if name else f"its image is {error}") from None
        sha256 = store_image(self._store, data)
        if name:
            self._stored[name] = sha256
        return sha256, name

    def close(self) -> None:
        """Close the archives."""
        if self._shelf:
            self._shelf.close()


def _bytes_of(value: Any) -> bytes | None:
    """Bytes of a column: plain, or as the hub stores images; None where there are none."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if value is None or value == "":
        return None
    if not isinstance(value, bytes):
        raise BadRow(f"its image column holds {type(value).__name__}, not bytes")
    return value


class _Shelf:
    """Files by path or by the end of it, in a folder or in archives."""

    def __init__(self, folder: Path, archive: str) -> None:
        self._folder = folder
        self._archives: list[zipfile.ZipFile] = []
        names: dict[str, tuple[int, str]] = {}
        listed = names_in(folder)
        if archive or (len(listed) == 1 and (folder / listed[0]).suffix.lower() == ".zip"):
            for place, path in enumerate(matching(folder, archive, "archive of the images")):
                self._archives.append(open_zip(path))
                names |= {name: (place, name) for name in members(self._archives[-1])}
        else:
            names = {name: (-1, name) for name in listed}
        self._names = names
        self._ends: dict[str, list[str]] = {}
        for name in names:
            self._ends.setdefault(name.rpartition("/")[2], []).append(name)

    def read(self, name: str) -> bytes:
        """Bytes of the file of that name; ``BadRow`` where there is none, or several."""
        found = [name] if name in self._names else self._ending(name)
        if not found:
            raise BadRow(f"image {name} is not there")
        if len(found) > 1:
            raise BadRow(f"image {name} could be {found[0]} or {found[1]}: give more of its path")
        place, full = self._names[found[0]]
        try:
            return (self._folder / full).read_bytes() if place < 0 else self._archives[place].read(full)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise BadRow(f"image {name} cannot be read ({error})") from None

    def _ending(self, name: str) -> list[str]:
        candidates = self._ends.get(name.rpartition("/")[2], [])
        return [full for full in candidates if full.endswith(f"/{name}")]

    def close(self) -> None:
        for archive in self._archives:
            archive.close()
