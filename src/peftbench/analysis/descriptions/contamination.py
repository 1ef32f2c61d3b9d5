"""Seen and unseen, measured: how each test split overlaps with each training split that the pipeline holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from peftbench.analysis.plain import PlainTable
from peftbench.store import read_record
from peftbench.views import DescribedDataset, DescribeSpec

if TYPE_CHECKING:
    from peftbench.data.overlap import Overlap

NEEDS = "data"
CACHE = "cache/picture_hashes.parquet"
"""Hashes of pictures, relative to the results."""
FLAG_PICTURES = 2.0
"""Percent of an unseen set's test pictures that may be near those of a seen set's training pictures."""
FLAG_PAIRS = 1.0
"""Percent of an unseen set's test rows whose picture and question may both be in a seen set's training rows."""
LEAK = "unseen, yet overlaps with a seen set"
NO_TRACE = "seen, yet no overlap with any seen set"
HEAD = [
    "Test set",
    "Test declared",
    "Training set",
    "Training declared",
    "Pictures",
    "Pictures exact %",
    "Pictures near %",
    "Questions",
    "Questions exact %",
    "Questions n-gram %",
    "Pairs %",
    "Flag",
]


def describe(spec: DescribeSpec, results: Path) -> PlainTable:
    """One row per test split and training split; see ``peftbench.data.overlap`` for what is counted."""
    from peftbench.data.overlap import NEAR_BITS, NGRAM

    found = _measure(spec.datasets, results)
    by_name = {dataset.name: dataset for dataset in spec.datasets}
    traces = {
        name: any(_any(o) for (test, train), o in found.items() if test == name and by_name[train].seen)
        for name in by_name
    }
    some_seen = any(by_name[train].seen for _, train in found)
    rows = []
    for (test, train), counts in found.items():
        tested, trained = by_name[test], by_name[train]
        flag = ""
        if trained.seen and not tested.seen and _leaks(counts):
            flag = LEAK
        elif trained.seen and tested.seen and not traces[test]:
            flag = NO_TRACE
        rows.append(
            [
                tested.label,
                _status(tested),
                trained.label,
                _status(trained),
                str(counts.pictures),
                percent(counts.exact_pictures, counts.pictures),
                percent(counts.near_pictures, counts.pictures),
                str(counts.questions),
                percent(counts.exact_questions, counts.questions),
                percent(counts.ngram_questions, counts.questions),
                percent(counts.pairs, counts.rows),
                flag,
            ]
        )
    notes = [
        f"Pictures: distinct ones of the test split; exact: the same bytes are in the training split; near: its 64-bit "
        f"pHash differs from one there in at most {NEAR_BITS} bits (a mirrored, turned or cropped copy is not found; a "
        "picture without contrast has no hash and counts by its bytes; of drawings and diagrams some are near by "
        "chance).",
        f"Questions: test rows with one; exact: equal without case and punctuation; n-gram: {NGRAM} words in a row, or "
        "all of a shorter question, occur within one training question. Short questions are shared by nature.",
        "Pairs: test rows with a near picture and the same question (or none, as captions) in one training row.",
        f"Flags: an unseen set with over {FLAG_PICTURES:g} % of its pictures, or {FLAG_PAIRS:g} % of its rows, in a "
        "seen set's training split; a seen set without a trace in any of them.",
        "The base models' own training sets are known only as far as this pipeline prepares them: the training splits "
        "of the sets declared seen stand for them, and no overlap here is no proof of none.",
    ]
    alone = [d.label for d in spec.datasets if d.name not in {train for _, train in found}]
    if alone:
        notes.append(f"Without a training split: {', '.join(alone)}.")
    if not some_seen:
        notes.append("No training split of a seen set is among these data sets: nothing can be flagged.")
    notes += [spec.note] if spec.note else []
    return PlainTable(title=spec.title, head=HEAD, rows=rows, right=[4, 5, 6, 7, 8, 9, 10], notes=notes)


def _measure(datasets: list[DescribedDataset], results: Path) -> "dict[tuple[str, str], Overlap]":
    """Overlap by (test set, training set), in the order of the data sets."""
    from peftbench.data.overlap import GramSearch, overlap, read_split
    from peftbench.data.pictures import hash_pictures
    from peftbench.training.progress import Progress

    has = {d.name: read_record(results / d.data / "record.json").facts["splits"] for d in datasets}
    tests = {d.name: read_split(results / d.data, "test") for d in datasets if "test" in has[d.name]}
    pictures = {picture: None for split in tests.values() for picture in split.pictures}
    search = GramSearch(gram for split in tests.values() for grams in split.grams for gram in grams)
    trainings = [d for d in datasets if "train" in has[d.name]]
    hashes: Mapping[str, int | None] = {}
    progress: list[Progress] = []

    def step(done: int, total: int) -> None:
        if done == 1:
            progress[:] = [Progress("hash pictures", total)]
        progress[0].step(done)

    found = {}
    for dataset in trainings:  # one training split in memory at a time: they are the large ones
        train = read_split(results / dataset.data, "train")
        hashes = hash_pictures(results / "images", [*pictures, *train.pictures], results / CACHE, step)
        grams = search.found(train.questions)
        for name, test in tests.items():
            found[name, dataset.name] = overlap(test, train, hashes, grams)
    return {(test, d.name): found[test, d.name] for test in tests for d in trainings}


def _any(counts: "Overlap") -> bool:
    return counts.near_pictures > 0 or counts.ngram_questions > 0 or counts.pairs > 0


def _leaks(counts: "Overlap") -> bool:
    pictures = 100 * counts.near_pictures > FLAG_PICTURES * counts.pictures
    return pictures or 100 * counts.pairs > FLAG_PAIRS * counts.rows


def _status(dataset: DescribedDataset) -> str:
    return "seen" if dataset.seen else "unseen"


def percent(part: int, whole: int) -> str:
    """A share with one decimal; 0 and 100 only where they are exact; a dash where there is nothing to share."""
    if not whole:
        return "–"
    if part in (0, whole):
        return "100" if part else "0"
    share = 100 * part / whole
    return "<0.1" if share < 0.05 else ">99.9" if share >= 99.95 else f"{share:.1f}"
