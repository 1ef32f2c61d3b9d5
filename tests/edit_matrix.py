"""Tries edits of a finished study, and exactly what each makes Snakemake run again.

``python tests/edit_matrix.py`` tries them all and prints the table; ``test_edit_matrix.py`` does it with pytest.

An expectation is a list of patterns over names of jobs, ``<stages> <what>``: ``train|predict lora/tiny/*``. Every job
that matches one must run, every other job of the plan must not. A pattern that matches nothing is a mistake.
"""

import contextlib
import re
import shutil
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from edit_words import Edit
from edits import EDITS
from matrix_project import CONFIG, MatrixProject
from peftbench.store import RECORD, read_record
from snakemake_server import Done, Server

EDIT_ROW = "edit"
"""Name of the property under which a test reports a row: edit, expected, got."""
VIEW_STAGES = ("tabulate", "plot", "report", "describe", "claims")


class Outcome:
    """What an edit led to."""

    def __init__(self, edit: Edit, names: Counter[str], ran: Counter[str]) -> None:
        self.edit = edit
        self.plan = set(names)
        assert len(self.plan) == names.total(), f"two jobs of one name: {names - Counter(self.plan)}"
        self.ran = ran
        self.idle = [p for p in edit.runs if not any(_matches(name, p) for name in names)]
        """Patterns that match nothing."""
        self.expected = Counter({n: c for n, c in names.items() if any(_matches(n, p) for p in edit.runs)})
        self.missing = sorted((self.expected - ran).elements())
        """Must run, and does not."""
        self.extra = sorted((ran - self.expected).elements())
        """Runs, and must not."""

    @property
    def holds(self) -> bool:
        """Whether exactly the expected jobs ran."""
        return not (self.missing or self.extra or self.idle)

    @property
    def got(self) -> str:
        """In words."""
        stages = Counter(name.partition(" ")[0] for name in self.ran.elements())
        counts = ", ".join(f"{count} {stage}" for stage, count in stages.items()) or "nothing"
        kept = len(self.plan - set(self.ran))
        if self.holds:
            return f"as expected: {counts}; {kept} jobs kept"
        wrong = [f"does not run: {name}" for name in self.missing] + [f"runs: {name}" for name in self.extra]
        wrong += [f"nothing matches {pattern!r}" for pattern in self.idle]
        return "; ".join(wrong)

    @property
    def row(self) -> tuple[str, str, str]:
        """Edit, expected, got."""
        return self.edit.name, "; ".join(self.edit.runs) or "nothing", self.got


def _matches(name: str, pattern: str) -> bool:
    stage, what = name.split(" ", 1)
    stages, wanted = pattern.split(" ", 1)
    return stage in stages.split("|") and fnmatchcase(what, wanted)


class Matrix:
    """The finished studies, and copies of them to edit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = Server()
        self.finished = MatrixProject(folder / "finished")
        done = self.server.call(self.finished.root, "-c2")
        assert done.returncode == 0, done.stdout
        self._copies = 0

    def copy(self) -> MatrixProject:
        """A copy of the finished project, in a folder of its own."""
        self._copies += 1
        return self.finished.copy(self.folder / f"copy{self._copies}")

    def dry_run(self, project: MatrixProject, *arguments: str, **variables: str) -> tuple[Done, Counter[str]]:
        """What would run: names of jobs."""
        done = self.server.call(project.root, "-n", "-p", "-c2", *arguments, **variables)
        assert done.returncode == 0, done.stdout
        return done, announced(done)

    def look(self, edit: Edit) -> Outcome:
        """Apply an edit to a copy and compare; for ``really``, run it and take it back too."""
        project = self.copy()
        try:
            edit.do(project)
            done, ran = self.dry_run(project, *edit.arguments, **edit.variables)
            outcome = Outcome(edit, Counter(done.names.values()), ran)
            if edit.really and outcome.holds:
                self._really(project, edit, outcome)
            return outcome
        finally:
            shutil.rmtree(project.root, ignore_errors=True)

    def _really(self, project: MatrixProject, edit: Edit, outcome: Outcome) -> None:
        """Run the jobs, look at the records, take the edit back, and look what would run then."""
        before = contents(project)
        done = self.server.call(project.root, "-c2", *edit.arguments, **edit.variables)
        assert done.returncode == 0, done.stdout
        after = contents(project)
        assert before.items() <= after.items(), "a finished result changed"
        results = project.root / "results"
        heavy = {name for name in outcome.expected if name.partition(" ")[0] not in VIEW_STAGES}
        assert after.keys() - before.keys() == {results / done.records[name] for name in heavy}
        digests = {name: digest for digest, name in done.names.items()}
        for name in heavy:
            assert read_record(results / done.records[name]).digest == digests[name]
        if outcome.expected:
            assert not self.dry_run(project, *edit.arguments, **edit.variables)[1], "it would run twice"
        project.restore(self.finished)
        _, again = self.dry_run(project)
        # Tables, figures and pages have names without digests: they are made again, from what is there.
        known = {name.partition(" ")[2] for name in done.names.values()} & set(CONFIG["studies"])
        redone = {
            n for n in outcome.expected if n.partition(" ")[0] in VIEW_STAGES and n.partition(" ")[2] in known
        }
        assert set(again) == redone, f"after taking it back: {sorted(set(again) ^ redone)}"


def announced(done: Done) -> Counter[str]:
    """Names of the jobs that a dry-run announces, from the commands that it prints."""
    digests = re.findall(r"\.py --ticket '?\S*?\.tickets/([0-9a-f]{16})\.json", done.stdout)
    if "Nothing to be done" not in done.stdout:
        table = done.stdout.rsplit("Job stats:", 1)[1]
        counts = dict(re.findall(r"^(\w+) +(\d+)$", table, flags=re.MULTILINE))
        assert int(counts["total"]) - int(counts.get("all", 0)) == len(digests), done.stdout
    return Counter(done.names[digest] for digest in digests)


def contents(project: MatrixProject) -> dict[Path, bytes]:
    """All records, and their bytes."""
    return {path: path.read_bytes() for path in (project.root / "results").rglob(RECORD)}


def table(rows: list[tuple[str, str, str]]) -> str:
    """Rows of (edit, expected, got) as text."""
    lines = []
    for name, expected, got in [("edit", "expected to run", "got"), *rows]:
        cells = [textwrap.wrap(cell, width) for cell, width in ((name, 44), (expected, 52), (got, 60))]
        height = max(map(len, cells))
        padded = [[*cell, *[""] * (height - len(cell))] for cell in cells]
        lines += [
            "  ".join(f"{c:{w}}" for c, w in zip(line, (44, 52, 60), strict=True)).rstrip()
            for line in zip(*padded, strict=True)
        ]
    return "\n".join(lines)


@contextlib.contextmanager
def matrix(folder: Path) -> Iterator[Matrix]:
    """The matrix; its server ends with the block."""
    made = Matrix(folder)
    try:
        yield made
    finally:
        made.server.close()


def main(words: list[str]) -> int:
    """Print the table for all edits, or those whose name contains one of the words."""
    chosen = [edit for edit in EDITS if not words or any(word in edit.name for word in words)]
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        made = Matrix(Path(folder))
        for number, edit in enumerate(chosen, 1):
            print(f"\r{number} of {len(chosen)}: {edit.name:60}", end="", file=sys.stderr, flush=True)
            outcomes.append(made.look(edit))
        seconds = made.server.close()
    print(file=sys.stderr)
    print(table([outcome.row for outcome in outcomes]))
    wrong = sum(not outcome.holds for outcome in outcomes)
    print(
        f"\n{len(outcomes)} edits, {sum(edit.really for edit in chosen)} of them run and taken back, {wrong} wrong"
    )
    print(f"{seconds:.0f} s of CPU in Snakemake and its jobs")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
