"""CIDEr-D and BLEU over tokenised captions, equal to pycocoevalcap 1.2 in every bit.

Source: ``CiderScorer`` and ``BleuScorer`` of pycocoevalcap (salaniz/pycocoevalcap ad63453). What it calls
CIDEr is CIDEr-D (clipping, Gaussian penalty of the length); its "length" counts bigrams, and the document
frequencies are those of the references evaluated, so a corpus of one image scores 0.

Two ways, one result: plain Python for a few hundred captions, compiled kernels (``_ngram_kernels``) for more.
All sums run over a caption's n-grams in the order of their first appearance, as pycocoevalcap's dictionaries
do.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import msgspec

from peftbench.metrics._cache import cache_dir, prune

if TYPE_CHECKING:
    import numpy as np

ORDERS = 4
SIGMA = 6.0
LIGHT_LIMIT = 12000
"""Up to so many captions (references and candidates) plain Python is faster than importing numba."""
FORMAT = 1
MAX_WORDS = 65535
"""Longest caption (words) that the kernels' counters hold; a longer one is scored in plain Python."""
_WIDE_SPACE = dict.fromkeys((133, 160, 5760, *range(8192, 8203), 8232, 8233, 8239, 8287, 12288), " ")
"""Non-ASCII characters that ``str.split`` takes for white space (the tokenizer joins "1 1/2" with U+00A0)."""


class NgramScores(msgspec.Struct):
    """Scores of n images, as pycocoevalcap returns them: CIDEr on 0-10, BLEU on 0-1."""

    cider: np.ndarray
    """float64 [n]"""
    matches: np.ndarray
    """Clipped n-gram matches of each candidate, int64 [n, 4]."""
    words: np.ndarray
    """Words of each candidate and of its reference nearest in length, int64 [n, 2]."""

    def bleu(self) -> tuple[list[float], np.ndarray]:
        """BLEU-1 to 4 of the corpus, and of each image float64 [4, n] (option "closest")."""
        import numpy as np

        small, tiny = 1e-9, 1e-15
        candidate, reference = self.words[:, 0], self.words[:, 1]
        guesses = np.maximum(candidate[:, None] - np.arange(ORDERS), 0)
        product = np.ones(len(self.words))
        each = np.empty((ORDERS, len(self.words)))
        ratio = (candidate + tiny) / (reference + small)
        brevity = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)
        for order in range(ORDERS):
            product = product * ((self.matches[:, order] + tiny) / (guesses[:, order] + small))
            each[order] = product ** (1.0 / (order + 1)) * brevity
        corpus, running = [], 1.0
        length, closest = int(candidate.sum()), int(reference.sum())
        overall = (length + tiny) / (closest + small)
        for order in range(ORDERS):
            running *= (float(self.matches[:, order].sum()) + tiny) / (float(guesses[:, order].sum()) + small)
            corpus.append(
                running ** (1.0 / (order + 1)) * (math.exp(1 - 1 / overall) if overall < 1 else 1.0)
            )
        return corpus, each


def score_captions(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> NgramScores:
    """Score tokenised candidates [n] against tokenised references [n][>= 1]."""
    lines = sum(map(len, references)) + len(candidates)
    if lines <= LIGHT_LIMIT or max(map(len, candidates), default=0) > MAX_WORDS:
        return score_light(candidates, references)
    compiled = compile_captions(references)
    return score_light(candidates, references) if compiled is None else compiled.score(candidates)


def score_light(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> NgramScores:
    """The plain way: dictionaries of n-grams, each reference counted once."""
    import numpy as np

    counted = [[_count(text.split()) for text in texts] for texts in references]
    frequency: Counter[tuple[str, ...]] = Counter()
    for lines in counted:
        for order in range(ORDERS):
            frequency.update(set().union(*[orders[order] for orders, _ in lines]))
    corpus_log = np.log(float(len(candidates)))
    # Plain floats from here on: the same arithmetic as numpy's scalars, at a fraction of their cost.
    idf = {df: float(corpus_log - np.log(max(1.0, float(df)))) for df in {0, *frequency.values()}}
    weight_of = {gram: idf[df] for gram, df in frequency.items()}
    rare = idf[0]
    penalty = functools.cache(_penalty)
    cider = np.empty(len(candidates))
    matches = np.zeros((len(candidates), ORDERS), dtype=np.int64)
    words = np.zeros((len(candidates), 2), dtype=np.int64)
    for image, (text, lines) in enumerate(zip(candidates, counted, strict=True)):
        own, length = _count(text.split())
        totals = [0.0] * ORDERS
        for order, mine in enumerate(own):
            weights = {gram: tf * weight_of.get(gram, rare) for gram, tf in mine.items()}
            own_norm = _norm(list(weights.values()))
            most: dict[tuple[str, ...], int] = {}
            for orders, other in lines:
                theirs = orders[order]
                value = 0.0
                # In the order of the candidate; n-grams that the reference lacks add exactly 0.
                for gram in [gram for gram in weights if gram in theirs]:
                    tf = theirs[gram]
                    weight = tf * weight_of[gram]
                    value += min(weights[gram], weight) * weight
                    if tf > most.get(gram, 0):
                        most[gram] = tf
                norm = _norm([tf * weight_of[gram] for gram, tf in theirs.items()]) if value else 0.0
                if norm != 0:  # then the candidate's norm is not 0 either
                    value /= own_norm * norm
                totals[order] += value * penalty(abs(max(length - 1, 0) - max(other - 1, 0)))
            matches[image, order] = sum([min(mine[gram], tf) for gram, tf in most.items()])
        cider[image] = (((totals[0] + totals[1]) + totals[2]) + totals[3]) / ORDERS / len(lines)
        words[image] = length, min((abs(other - length), other) for _, other in lines)[1]
    return NgramScores(cider * 10.0, matches, words)


def _count(words: list[str]) -> tuple[list[Counter[tuple[str, ...]]], int]:
    """n-gram counts by order, in the order of first appearance, and the number of words."""
    shifted = [words[start:] for start in range(ORDERS)]
    return [Counter(zip(*shifted[:order], strict=False)) for order in range(1, ORDERS + 1)], len(words)


def _norm(weights: list[float]) -> float:
    """Root of the sum of squares, added one after the other (``sum`` of Python 3.12 on compensates)."""
    total = 0.0
    for weight in weights:
        total += weight * weight
    return math.sqrt(total)


def _penalty(delta: int) -> float:
    import numpy as np

    return float(np.e ** (-(float(delta) ** 2) / (2 * SIGMA**2)))


def _kernels() -> ModuleType:
    """The compiled kernels; numba keeps them beside their source or, where that is read-only, in our cache."""
    if not os.access(Path(__file__).parent, os.W_OK) and "numba" not in sys.modules:
        folder = cache_dir()
        place = folder / "numba" if folder is not None else Path(tempfile.gettempdir()) / "peftbench-numba"
        os.environ.setdefault("NUMBA_CACHE_DIR", str(place))
    from peftbench.metrics import _ngram_kernels

    return _ngram_kernels


class CompiledCaptions(msgspec.Struct):
    """References as integers (see ``_ngram_kernels``), ready to be kept on disk."""

    images: int
    arrays: dict[str, np.ndarray]

    def score(self, candidates: Sequence[str]) -> NgramScores:
        """Score tokenised candidates, one per image."""
        import numpy as np

        kernels = _kernels()
        a = self.arrays
        words = _Words(a["words"], a["word_ends"], a["hashes"])
        tokens, ends = words.intern(candidates)
        longest = int(np.diff(ends, prepend=0).max(initial=0))
        reach = max(longest, int(a["lengths"].max(initial=0))) + 1
        penalty = np.array([_penalty(delta) for delta in range(reach)])
        cider, matches, sizes = kernels.score_candidates(
            tokens,
            ends,
            longest,
            a["table"],
            a["frequency"],
            a["idf"],
            a["ids"],
            a["counts"],
            a["sizes"],
            a["norms"],
            a["lengths"],
            a["image_ends"],
            penalty,
        )
        return NgramScores(cider * 10.0, matches, sizes)

    def save(self, folder: Path) -> None:
        """Keep in ``folder``, complete or not at all; a folder that cannot be written is no error."""
        import numpy as np

        with contextlib.suppress(OSError):
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
            try:
                for name, array in self.arrays.items():
                    np.save(temporary / f"{name}.npy", array)
                prune(folder.parent)
                temporary.rename(folder)  # fails where another process was first, which is as good
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path) -> CompiledCaptions | None:
        """References kept in ``folder``, mapped into memory, or None."""
        import numpy as np

        try:
            arrays = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
            return cls(len(arrays["image_ends"]), arrays) if set(arrays) == _ARRAYS else None
        except (OSError, ValueError, KeyError):
            return None


_ARRAYS = {
    "words",
    "word_ends",
    "hashes",
    "table",
    "frequency",
    "idf",
    "ids",
    "counts",
    "sizes",
    "norms",
    "lengths",
    "image_ends",
}


class _Words:
    """A growing vocabulary of byte strings, and the ids of a text's words in it."""

    def __init__(self, words: np.ndarray, ends: np.ndarray, hashes: np.ndarray) -> None:
        self.words, self.ends, self.hashes = words, ends, hashes

    def intern(self, lines: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Word ids int32 [tokens] of lines, and the tokens up to the end of each line int64 [lines]."""
        import numpy as np

        kernels = _kernels()
        text = "\n".join(lines) + "\n"
        if text.count("\n") != len(lines):
            text = "\n".join([line.replace("\n", " ") for line in lines]) + "\n"
        if not text.isascii():
            text = text.translate(_WIDE_SPACE)
        data = np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)
        known = len(self.ends)
        tokens = np.empty(len(data) // 2 + 1, dtype=np.int32)
        ends_of_lines = np.empty(len(lines), dtype=np.int64)
        room = known + 4096
        while True:
            words = np.concatenate([self.words, np.empty(16 * room, dtype=np.uint8)])
            ends = np.concatenate([self.ends, np.full(room, -1, dtype=np.int64)])
            hashes = np.concatenate([self.hashes, np.empty(room, dtype=np.uint64)])
            slots = kernels.word_slots(hashes, known, 2 * len(ends))
            written, _, total = kernels.intern_words(data, words, ends, hashes, slots, tokens, ends_of_lines)
            if total >= 0:
                break
            room *= 8
        used = int(ends[total - 1]) if total else 0
        self.words, self.ends, self.hashes = words[:used].copy(), ends[:total].copy(), hashes[:total].copy()
        return tokens[:written].copy(), ends_of_lines


def compile_captions(references: Sequence[Sequence[str]]) -> CompiledCaptions | None:
    """Compile tokenised references; None where a caption is too long for the kernels."""
    import numpy as np

    kernels = _kernels()
    vocabulary = _Words(np.empty(0, np.uint8), np.empty(0, np.int64), np.empty(0, np.uint64))
    tokens, ends = vocabulary.intern([text for texts in references for text in texts])
    lengths = np.diff(ends, prepend=0)
    longest = int(lengths.max(initial=0))
    if longest > MAX_WORDS:
        return None
    image_ends = np.cumsum([len(texts) for texts in references], dtype=np.int64)
    table, _, frequency, ids, counts, sizes = kernels.count_ngrams(tokens, ends, image_ends, max(longest, 1))
    corpus_log = np.log(float(len(references)))
    idf = np.full(int(frequency.max(initial=0)) + 1, corpus_log)
    for df in np.unique(frequency):  # scalars, as the official code: an array may take another logarithm
        idf[df] = corpus_log - np.log(float(df))
    arrays = {
        "words": vocabulary.words,
        "word_ends": vocabulary.ends,
        "hashes": vocabulary.hashes,
        "table": table,
        "frequency": frequency,
        "idf": idf,
        "ids": ids,
        "counts": counts,
        "sizes": sizes,
        "norms": kernels.reference_norms(ids, counts, sizes, frequency, idf),
        "lengths": lengths,
        "image_ends": image_ends,
    }
    return CompiledCaptions(len(references), arrays)
