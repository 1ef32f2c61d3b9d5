"""Code that was proven to give the same results as older code: ``blessed.yaml`` in the project's folder.

An entry says, for one stage, that some present code equals some older code, *as a whole*: all modules that a job
can reach and the packages' versions, by one digest for each side. So what was proven of one set of modules says
nothing of another one: not of another stage that imports the same module, nor of the same module beside other
code. Codes that are equal to each other, along whatever chain, are one class; its canonical member is the older
side of the oldest entry, so a later entry moves no digest of a class. Plan and jobs both replace code by the
canonical member before they take digests; records keep what really ran.
"""

import json
from collections import deque
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from peftbench.canonical import digest
from peftbench.errors import UserError
from peftbench.fingerprint import Code

FILE = "blessed.yaml"
CODE_AS_RUN = "code_as_run"
"""Key of a record's provenance: the code that really ran, where its result stands under that of a blessing."""
HEADER = """\
# Code that gives the same results as older code, proven by running jobs again with it and comparing all they leave.
# Written by "peftbench bless"; commit it. Results of the older code count for the newer one. To take a blessing
# back, remove its entry: what the newer code made under it says so in its records (code_as_run).
"""


class Change(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One module (or data file) of the code: its hash in the older and in the newer code; none: not there."""

    module: str
    old: str | None
    new: str | None


class Proof(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Two codes of the stage that are equal, and the runs that showed it."""

    old: str
    """Digest of the older code: modules and packages."""
    new: str
    runs: list[str]
    """Digests of the stored results that were made again."""
    labels: list[str]
    packages: dict[str, str]
    compared: str
    """How: bit for bit, or with which tolerance."""


class Blessing(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry: the same changes of code, proven for every set of modules that jobs of the stage have."""

    stage: str
    date: str
    """ISO 8601, in UTC."""
    changes: list[Change]
    proofs: list[Proof]


class Blessings:
    """All entries of one file."""

    def __init__(self, entries: list[Blessing], where: str = FILE) -> None:
        self.entries = entries
        self.where = where
        self._edges: dict[tuple[str, str], list[tuple[int, Proof]]] = {}
        for number, entry in enumerate(entries):
            for proof in entry.proofs:
                for side in (proof.old, proof.new):
                    self._edges.setdefault((entry.stage, side), []).append((number, proof))

    def canonical(self, stage: str, code: Code) -> Code:
        """The code of a stage that stands for this one: itself, where nothing was blessed."""
        if not self._edges:
            return code
        start = digest(code)
        if (stage, start) not in self._edges:
            return code
        found = {start: code}
        waiting = deque([start])
        oldest: tuple[str, int, str] | None = None
        while waiting:
            place = waiting.popleft()
            for number, proof in self._edges[stage, place]:
                rank = (self.entries[number].date, number, proof.old)
                oldest = rank if oldest is None else min(oldest, rank)
                other = proof.old if place == proof.new else proof.new
                if other not in found:
                    found[other] = self._step(found[place], number, proof, back=place == proof.new)
                    waiting.append(other)
        assert oldest is not None
        return found[oldest[2]]

    def between(self, stage: str, one: Code, other: Code) -> list[Blessing]:
        """The entries of the class that makes two codes equal; none where they are not."""
        if one == other or self.canonical(stage, one) != self.canonical(stage, other):
            return []
        aim = digest(other)
        waiting: deque[tuple[str, tuple[int, ...]]] = deque([(digest(one), ())])
        seen: set[str] = set()
        while waiting:
            place, path = waiting.popleft()
            if place == aim:
                return [self.entries[number] for number in dict.fromkeys(path)]
            for number, proof in self._edges.get((stage, place), []):
                for side in {proof.old, proof.new} - seen:
                    seen.add(side)
                    waiting.append((side, (*path, number)))
        return []

    def _step(self, code: Code, number: int, proof: Proof, back: bool) -> Code:
        modules = dict(code["modules"])
        for change in self.entries[number].changes:
            value = change.old if back else change.new
            if value is None:
                modules.pop(change.module, None)
            else:
                modules[change.module] = value
        stepped: Code = {"modules": dict(sorted(modules.items())), "packages": code["packages"]}
        if digest(stepped) != (proof.old if back else proof.new):
            raise UserError(
                f"{self.where}: entry {number + 1} ({self.entries[number].stage}): its changes do not lead from one "
                "of its codes to the other: restore the file, or remove the entry"
            )
        return stepped


def read_blessings(root: Path) -> Blessings:
    """The blessings of a project; none where it has no such file. ``UserError`` where it cannot be read."""
    path = root / FILE
    if not path.exists():
        return Blessings([])
    from peftbench.reading import read_yaml  # only where there is something to read: every job comes here

    content = read_yaml(path)
    try:
        return Blessings(msgspec.convert(content or [], list[Blessing]), str(path))
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {error}: restore the file, or remove the entry") from None


def as_text(entries: list[Blessing]) -> str:
    """Entries as YAML, one line per change and proof; to be put at the end of the file."""
    lines = []
    for entry in entries:
        lines += [f"- stage: {entry.stage}", f"  date: {_flow(entry.date)}", "  changes:"]
        lines += [f"  - {_flow(change)}" for change in entry.changes]
        lines += ["  proofs:", *(f"  - {_flow(proof)}" for proof in entry.proofs)]
    return "".join(line + "\n" for line in lines)


def _flow(value: Any) -> str:
    """JSON, which is YAML: quoted, so that a hash of digits stays a text."""
    return json.dumps(msgspec.to_builtins(value), ensure_ascii=False)


def changes_between(old: Code, new: Code) -> list[Change]:
    """What differs between two codes, module by module."""
    names = sorted(old["modules"].keys() | new["modules"].keys())
    pairs = ((name, old["modules"].get(name), new["modules"].get(name)) for name in names)
    return [Change(module=name, old=before, new=now) for name, before, now in pairs if before != now]
