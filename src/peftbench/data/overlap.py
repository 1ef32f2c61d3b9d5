"""Overlap of a test split with a training split: pictures, questions, and both together.

Pictures. *Exact*: the same bytes (sha256). *Near*: the same bytes, or perceptual hashes (``pictures.py``'s 64 bits)
that differ in at most ``NEAR_BITS`` bits.

Questions are compared as ``normalise`` leaves them. *Exact*: equal. *N-gram*: at least one run of n words of the test
question occurs in one training question, with n = ``NGRAM`` (the 13 of GPT-3's decontamination), or all of the
question's words where it has fewer; so an exact match is an n-gram match too. PaLM's rule (a share of a text's
8-grams) is for long texts and is not used: questions about pictures have seven words.

*Pairs*: a training row has a near picture and the exactly same question; two rows that are both asked nothing
(captions) ask the same.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from peftbench.errors import UserError

if TYPE_CHECKING:
    import numpy as np

NEAR_BITS = 4
"""Most bits of 64 in which the hashes of near pictures differ."""
NGRAM = 13
"""Words of an n-gram; fewer where the question is shorter."""
_CHUNK = 1 << 22
"""Pairs of hashes compared at a time: 100 MB."""


class Split:
    """What overlap is measured on: the picture and the question of each row, each distinct one held once."""

    def __init__(self, rows: Iterable[tuple[str, str]]) -> None:
        """Take (sha256 of the picture or "", question) of each row."""
        import numpy as np

        pictures: dict[str, int] = {}
        texts: dict[str, int] = {}
        questions: dict[str, int] = {}
        of_text: list[int] = []
        picture_of, question_of = [], []
        for picture, question in rows:
            picture_of.append(pictures.setdefault(picture, len(pictures)) if picture else -1)
            text = texts.setdefault(question, len(texts))
            if text == len(of_text):
                of_text.append(questions.setdefault(normalise(question), len(questions)))
            question_of.append(of_text[text])
        self.pictures = list(pictures)
        """Their sha256."""
        self.questions = list(questions)
        """Normalised."""
        self.picture_of: np.ndarray = np.asarray(picture_of, dtype=np.int64)
        """Row -> place in ``pictures``; -1: no picture."""
        self.question_of: np.ndarray = np.asarray(question_of, dtype=np.int64)
        """Row -> place in ``questions``."""

    @cached_property
    def grams(self) -> list[list[str]]:
        """The n-grams of each question, as texts."""
        return [grams(question) for question in self.questions]

    @cached_property
    def question_index(self) -> dict[str, int]:
        """Question -> its place."""
        return {question: place for place, question in enumerate(self.questions)}


class Overlap(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of a test split against one training split, and what they are counted of."""

    pictures: int
    """Distinct pictures in the test split."""
    exact_pictures: int
    near_pictures: int
    """Exact ones among them."""
    questions: int
    """Test rows with a question."""
    exact_questions: int
    ngram_questions: int
    """Exact ones among them."""
    rows: int
    """Test rows with a picture."""
    pairs: int


def read_split(data_dir: Path, split: str) -> Split:
    """A split of a prepared data set; ``UserError`` where it is missing."""
    from peftbench.arrow import pa, pq

    path = data_dir / f"{split}.parquet"

    def rows() -> Iterable[tuple[str, str]]:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(8192, columns=["image", "question"], use_threads=False):
                yield from zip(batch["image"].to_pylist(), batch["question"].to_pylist(), strict=True)

    try:
        return Split(rows())
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error}): delete the folder and run again") from None


def normalise(question: str) -> str:
    """Compatible forms of characters, no case, no punctuation, single spaces; apostrophes join ("what's": "whats")."""
    text = unicodedata.normalize("NFKC", question).casefold().replace("'", "").replace("’", "")
    return " ".join("".join(c if c.isalnum() or unicodedata.combining(c) else " " for c in text).split())


def grams(question: str, n: int = NGRAM) -> list[str]:
    """Runs of ``n`` words of a normalised question; the whole of a shorter one; none of an empty one."""
    words = question.split()
    n = min(n, len(words))
    return [" ".join(words[at : at + n]) for at in range(len(words) - n + 1)] if words else []


class GramSearch:
    """Looks for the n-grams of test questions in training questions."""

    def __init__(self, wanted: Iterable[str]) -> None:
        self._wanted: set[str] = set()
        self._lengths: dict[str, set[int]] = defaultdict(set)
        for gram in wanted:
            self._wanted.add(gram)
            words = gram.split()
            self._lengths[words[0]].add(len(words))

    def found(self, questions: Iterable[str]) -> set[str]:
        """Those of the wanted n-grams that occur in one of these normalised questions."""
        found = set()
        for question in questions:
            words = question.split()
            for at, word in enumerate(words):
                for n in self._lengths.get(word, ()):
                    if at + n <= len(words):
                        gram = " ".join(words[at : at + n])
                        if gram in self._wanted:
                            found.add(gram)
        return found


def near_pairs(left: np.ndarray, right: np.ndarray, bits: int = NEAR_BITS) -> tuple[np.ndarray, np.ndarray]:
    """Places (i, j) of all hashes (uint64) left[i] and right[j] that differ in at most ``bits`` bits; sorted.

    The 64 bits are cut into ``bits + 1`` bands: of two near hashes, at least one band is equal, so only those with
    an equal band are compared.
    """
    import numpy as np

    codes = [np.empty(0, dtype=np.int64)]
    edges = [64 * band // (bits + 1) for band in range(bits + 2)]
    for low, high in pairwise(edges):
        mask = np.uint64((1 << (high - low)) - 1)
        wanted = (left >> np.uint64(low)) & mask
        there = (right >> np.uint64(low)) & mask
        order = np.argsort(there, kind="stable")
        there = there[order]
        start = np.searchsorted(there, wanted, "left")
        counts = np.searchsorted(there, wanted, "right") - start
        ends = np.cumsum(counts)
        first = 0
        while first < len(left):
            done = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, done + _CHUNK, "right")))
            some = counts[first:last]
            i = np.repeat(np.arange(first, last), some)
            within = np.arange(len(i)) - np.repeat(np.cumsum(some) - some, some)
            j = order[np.repeat(start[first:last], some) + within]
            near = np.bitwise_count(left[i] ^ right[j]) <= bits
            codes.append(i[near] * len(right) + j[near])
            first = last
    found = np.unique(np.concatenate(codes))
    return found // max(1, len(right)), found % max(1, len(right))


def overlap(test: Split, train: Split, hashes: Mapping[str, int | None], found: set[str]) -> Overlap:
    """Overlap of two splits.

    ``hashes``: of all their pictures, by sha256; None where a picture has none. ``found``: the n-grams of the test
    questions that occur in training questions (``GramSearch``).
    """
    import numpy as np

    there = set(train.pictures)
    exact = np.fromiter((p in there for p in test.pictures), bool, len(test.pictures))
    test_groups, train_groups = _groups(test.pictures, hashes), _groups(train.pictures, hashes)
    near = _near_groups(test_groups, train_groups)
    near_pictures = np.fromiter((bool(near[g]) for g in test_groups.of), bool, len(test.pictures))
    asked = np.fromiter(map(bool, test.questions), bool, len(test.questions))
    same = np.fromiter(
        (train.question_index.get(q, -1) for q in test.questions), np.int64, len(test.questions)
    )
    by_gram = np.fromiter((not found.isdisjoint(g) for g in test.grams), bool, len(test.questions))
    of = test.question_of
    return Overlap(
        pictures=len(test.pictures),
        exact_pictures=int(exact.sum()),
        near_pictures=int((near_pictures | exact).sum()),
        questions=int(asked[of].sum()),
        exact_questions=int((asked & (same >= 0))[of].sum()),
        ngram_questions=int((asked & by_gram)[of].sum()),
        rows=int((test.picture_of >= 0).sum()),
        pairs=_pairs(test, train, test_groups, train_groups, near, same),
    )


class _Groups(msgspec.Struct, frozen=True):
    """Pictures by hash; one without a hash is a group of its own."""

    of: list[int]
    """Picture -> group."""
    keys: list[int | str]
    """Group -> hash, or sha256."""


def _groups(pictures: Sequence[str], hashes: Mapping[str, int | None]) -> _Groups:
    places: dict[int | str, int] = {}
    of = []
    for picture in pictures:
        value = hashes[picture]
        of.append(places.setdefault(picture if value is None else value, len(places)))
    return _Groups(of, list(places))


def _near_groups(test: _Groups, train: _Groups) -> list[list[int]]:
    """Group of the test split -> near groups of the training split."""
    import numpy as np

    near: list[list[int]] = [[] for _ in test.keys]
    sides = []
    for groups in (test, train):
        hashed = [(group, key) for group, key in enumerate(groups.keys) if isinstance(key, int)]
        sides.append(([g for g, _ in hashed], np.array([key for _, key in hashed], dtype=np.uint64)))
    (left, left_hashes), (right, right_hashes) = sides
    for i, j in zip(*(places.tolist() for places in near_pairs(left_hashes, right_hashes)), strict=True):
        near[left[i]].append(right[j])
    flat = {key: group for group, key in enumerate(train.keys) if isinstance(key, str)}
    for group, key in enumerate(test.keys):
        if isinstance(key, str) and key in flat:
            near[group].append(flat[key])
    return near


def _pairs(
    test: Split,
    train: Split,
    test_groups: _Groups,
    train_groups: _Groups,
    near: list[list[int]],
    same: np.ndarray,
) -> int:
    """Test rows for which a training row has a near picture and the same question."""
    import numpy as np

    def coded(split: Split, groups: _Groups, questions: np.ndarray) -> np.ndarray:
        """Group and training question of each row in one number; -1 where there is none."""
        of = np.asarray([*groups.of, -1], dtype=np.int64)[split.picture_of]  # the last one: no picture
        return np.where((of >= 0) & (questions >= 0), of * len(train.questions) + questions, -1)

    there = set(np.unique(coded(train, train_groups, train.question_of)).tolist())
    codes, counts = np.unique(coded(test, test_groups, same[test.question_of]), return_counts=True)
    total = 0
    for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
        if code < 0:
            continue
        group, question = divmod(code, len(train.questions))
        if any(other * len(train.questions) + question in there for other in near[group]):
            total += count
    return total
