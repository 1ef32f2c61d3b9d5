"""Compiled kernels (numba) of the n-gram metrics: interning of words and n-grams, CIDEr-D, BLEU.

Imported only for large corpora: importing numba costs more than scoring a few hundred captions. The compiled
code is kept beside this file, or where ``NUMBA_CACHE_DIR`` says, so it is compiled once per machine.

No kernel changes the order of floating-point additions, so results equal those of pycocoevalcap in every bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

ORDERS = 4
EMPTY = -1
_Array = np.ndarray


@njit(cache=True)
def word_slots(hashes: _Array, known: int, room: int) -> _Array:
    """Open-addressing table of the first ``known`` words: int32, a power of two of at least ``room``."""
    size = 1
    while size < room:
        size *= 2
    slots = np.full(size, EMPTY, np.int32)
    for word in range(known):
        place = np.int64(hashes[word]) & (size - 1)
        while slots[place] != EMPTY:
            place = (place + 1) & (size - 1)
        slots[place] = word
    return slots


@njit(cache=True)
def intern_words(
    data: _Array, words: _Array, ends: _Array, hashes: _Array, slots: _Array, tokens: _Array, lines: _Array
) -> tuple[int, int, int]:
    """Word ids of a text whose lines end in a new line: (tokens, lines, words), or -1 words if full.

    ``words`` holds the bytes of known words one after the other, ``ends`` where each ends, ``hashes`` their
    hashes, ``slots`` the open-addressing table (a power of two). White space is what ``str.split`` takes for
    it in ASCII. ``tokens`` receives ids, ``lines`` the number of tokens up to the end of each line.
    """
    known = 0
    while known < len(ends) and ends[known] >= 0:
        known += 1
    mask = len(slots) - 1
    written = 0
    line = 0
    place = 0
    size = len(data)
    while place < size:
        byte = data[place]
        if byte == 10:
            lines[line] = written
            line += 1
            place += 1
            continue
        if byte == 32 or (9 <= byte <= 13) or (28 <= byte <= 31):
            place += 1
            continue
        start = place
        code = np.uint64(14695981039346656037)
        while place < size:
            byte = data[place]
            if byte == 32 or (9 <= byte <= 13) or (28 <= byte <= 31):
                break
            code = (code ^ np.uint64(byte)) * np.uint64(1099511628211)
            place += 1
        code ^= code >> np.uint64(29)
        slot = np.int64(code) & mask
        word = slots[slot]
        while word != EMPTY:
            if hashes[word] == code:
                begin = ends[word - 1] if word > 0 else 0
                same = ends[word] - begin == place - start
                offset = 0
                while same and offset < place - start:
                    same = words[begin + offset] == data[start + offset]
                    offset += 1
                if same:
                    break
            slot = (slot + 1) & mask
            word = slots[slot]
        if word == EMPTY:
            begin = ends[known - 1] if known > 0 else 0
            if known >= len(ends) or begin + place - start > len(words):
                return written, line, -1
            for offset in range(place - start):
                words[begin + offset] = data[start + offset]
            ends[known] = begin + place - start
            hashes[known] = code
            slots[slot] = known
            word = known
            known += 1
        tokens[written] = word
        written += 1
    return int(written), int(line), int(known)


@njit(cache=True, inline="always")
def _mix(key: Any) -> Any:
    code = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    code ^= code >> np.uint64(32)
    return np.int64(code & np.uint64(0x7FFFFFFFFFFFFFFF))


@njit(cache=True)
def _rehash(table: _Array, size: int) -> _Array:
    larger = np.empty((size, 3), np.int64)
    larger[:, 0] = EMPTY
    for row in range(len(table)):
        key = table[row, 0]
        if key != EMPTY:
            place = _mix(key) & (size - 1)
            while larger[place, 0] != EMPTY:
                place = (place + 1) & (size - 1)
            larger[place, 0] = key
            larger[place, 1] = table[row, 1]
            larger[place, 2] = table[row, 2]
    return larger


@njit(cache=True, inline="always")
def _duplicate(tokens: _Array, first: int, order: int, position: int, slots: _Array) -> int:
    """Slot of the same n-gram earlier in the line, or -1. ``slots[order-1]`` has the slots of its prefix."""
    last = tokens[first + position + order]
    if order == 0:
        for earlier in range(position):
            if tokens[first + earlier] == last:
                return slots[0, earlier]
        return -1
    prefix = slots[order - 1, position]
    for earlier in range(position):
        if slots[order - 1, earlier] == prefix and tokens[first + earlier + order] == last:
            return slots[order, earlier]
    return -1


@njit(cache=True)
def count_ngrams(tokens: _Array, ends: _Array, image_ends: _Array, longest: int) -> tuple[Any, ...]:
    """n-grams (orders 1-4) of reference lines: (table, number, document frequencies, ids, counts, sizes).

    ``tokens`` int32, ``ends`` tokens up to the end of each line, ``image_ends`` lines up to the end of each
    image. An n-gram of order n is known by the id of its first n-1 words and its last word. ``ids`` and
    ``counts`` hold the distinct n-grams of each line in the order of first appearance, order by order;
    ``sizes`` [lines, 4] how many. The document frequency is the number of images whose references hold the
    n-gram.
    """
    total = 0
    for line in range(len(ends)):
        begin = ends[line - 1] if line > 0 else 0
        words = ends[line] - begin
        for order in range(ORDERS):
            total += max(words - order, 0)
    ids = np.empty(total, np.int32)
    counts = np.empty(total, np.uint16)
    sizes = np.zeros((len(ends), ORDERS), np.int32)
    size = 1 << 16
    table = np.empty((size, 3), np.int64)  # key, image << 32 | id, document frequency
    table[:, 0] = EMPTY
    grams = 0
    slots = np.empty((ORDERS, longest), np.int32)
    numbers = np.empty(longest, np.int32)
    repeated = np.empty(longest, np.bool_)
    written = 0
    image = 0
    for line in range(len(ends)):
        while line >= image_ends[image]:
            image += 1
        first = ends[line - 1] if line > 0 else 0
        words = ends[line] - first
        base = written
        if 10 * (grams + ORDERS * words) > 6 * size:
            while 10 * (grams + ORDERS * words) > 6 * size:
                size *= 4 if size < 1 << 20 else 2
            table = _rehash(table, size)
        for order in range(ORDERS):
            before = written
            for position in range(words - order):
                prefix = np.int64(0)
                check = True
                if order > 0:
                    prefix = np.int64(numbers[position]) + 1
                    check = repeated[position]  # a repeated n-gram has a repeated prefix
                slot = _duplicate(tokens, first, order, position, slots) if check else -1
                if slot >= 0:
                    slots[order, position] = slot
                    counts[base + slot] += 1
                    numbers[position] = ids[base + slot]
                    repeated[position] = True
                    continue
                key = prefix << 32 | np.int64(tokens[first + position + order])
                place = _mix(key) & (size - 1)
                while table[place, 0] != key and table[place, 0] != EMPTY:
                    place = (place + 1) & (size - 1)
                if table[place, 0] == EMPTY:
                    table[place, 0] = key
                    table[place, 1] = np.int64(image) << 32 | np.int64(grams)
                    table[place, 2] = 1
                    grams += 1
                elif table[place, 1] >> 32 != image:
                    table[place, 1] = np.int64(image) << 32 | (table[place, 1] & 0xFFFFFFFF)
                    table[place, 2] += 1
                number = np.int32(table[place, 1] & 0xFFFFFFFF)
                slots[order, position] = written - base
                numbers[position] = number
                repeated[position] = False
                ids[written] = number
                counts[written] = 1
                written += 1
            sizes[line, order] = written - before
    frequency = np.empty(grams, np.int32)
    for row in range(size):
        if table[row, 0] != EMPTY:
            frequency[table[row, 1] & 0xFFFFFFFF] = table[row, 2]
            table[row, 1] &= 0xFFFFFFFF
    return table, grams, frequency, ids[:written].copy(), counts[:written].copy(), sizes


@njit(cache=True)
def reference_norms(ids: _Array, counts: _Array, sizes: _Array, frequency: _Array, idf: _Array) -> _Array:
    """tf-idf norm of each reference line per order, float64 [lines, 4]; ``idf`` by document frequency."""
    norms = np.empty((len(sizes), ORDERS))
    place = 0
    for line in range(len(sizes)):
        for order in range(ORDERS):
            total = 0.0
            for _ in range(sizes[line, order]):
                weight = counts[place] * idf[frequency[ids[place]]]
                total += weight * weight
                place += 1
            norms[line, order] = np.sqrt(total)
    return norms


@njit(cache=True)
def score_candidates(
    tokens: _Array,
    ends: _Array,
    longest: int,
    table: _Array,
    frequency: _Array,
    idf: _Array,
    ids: _Array,
    counts: _Array,
    sizes: _Array,
    norms: _Array,
    lengths: _Array,
    image_ends: _Array,
    penalty: _Array,
) -> tuple[_Array, _Array, _Array]:
    """CIDEr-D of each image over 10, float64 [images]; BLEU's matches [images, 4]; words [images, 2].

    Candidates are ``tokens`` with ``ends``; words that no reference has carry ids beyond theirs. ``lengths``
    are words per reference line; ``penalty`` the Gaussian of the difference in bigrams. The last result holds
    the candidate's words and the words of the reference nearest in length.
    """
    images = len(ends)
    cider = np.empty(images)
    correct = np.zeros((images, ORDERS), np.int64)
    words_of = np.zeros((images, 2), np.int64)
    mask = len(table) - 1
    longest = max(longest, 1)
    slots = np.empty((ORDERS, longest), np.int32)
    numbers = np.empty(longest, np.int32)
    own_ids = np.empty(ORDERS * longest, np.int32)
    own_counts = np.empty(ORDERS * longest, np.int32)
    own_weights = np.empty(ORDERS * longest)
    found = np.empty(ORDERS * longest, np.int32)
    most = np.empty(ORDERS * longest, np.int32)
    limits = np.zeros(ORDERS + 1, np.int64)
    norm = np.empty(ORDERS)
    total = np.empty(ORDERS)
    # The image for which a slot of the candidate holds this n-gram, and that slot.
    seen = np.full((len(frequency), 2), -1, np.int32)
    place = 0
    line = 0
    for image in range(images):
        first = ends[image - 1] if image > 0 else 0
        words = ends[image] - first
        written = 0
        for order in range(ORDERS):
            for position in range(words - order):
                slot = _duplicate(tokens, first, order, position, slots)
                if slot >= 0:
                    slots[order, position] = slot
                    own_counts[slot] += 1
                    numbers[position] = own_ids[slot]
                    continue
                number = np.int32(-1)
                if order == 0 or numbers[position] >= 0:
                    prefix = np.int64(numbers[position]) + 1 if order > 0 else np.int64(0)
                    key = prefix << 32 | np.int64(tokens[first + position + order])
                    probe = _mix(key) & mask
                    while table[probe, 0] != key and table[probe, 0] != EMPTY:
                        probe = (probe + 1) & mask
                    if table[probe, 0] == key:
                        number = np.int32(table[probe, 1])
                slots[order, position] = written
                numbers[position] = number
                own_ids[written] = number
                own_counts[written] = 1
                most[written] = 0
                if number >= 0:
                    seen[number, 0] = image
                    seen[number, 1] = written
                written += 1
            limits[order + 1] = written
        for order in range(ORDERS):
            squares = 0.0
            for slot in range(limits[order], limits[order + 1]):
                number = own_ids[slot]
                weight = own_counts[slot] * idf[frequency[number] if number >= 0 else 0]
                own_weights[slot] = weight
                squares += weight * weight
            norm[order] = np.sqrt(squares)
            total[order] = 0.0
        begin = line
        nearest = np.int64(-1)
        while line < image_ends[image]:
            for slot in range(written):
                found[slot] = 0
            for order in range(ORDERS):
                for _ in range(sizes[line, order]):
                    number = ids[place]
                    if seen[number, 0] == image:
                        slot = seen[number, 1]
                        found[slot] = counts[place]
                        if counts[place] > most[slot]:
                            most[slot] = counts[place]
                    place += 1
            delta = abs(max(words - 1, 0) - max(lengths[line] - 1, 0))
            for order in range(ORDERS):
                value = 0.0
                for slot in range(limits[order], limits[order + 1]):
                    if found[slot]:
                        theirs = found[slot] * idf[frequency[own_ids[slot]]]
                        value += min(own_weights[slot], theirs) * theirs
                if norm[order] != 0 and norms[line, order] != 0:
                    value /= norm[order] * norms[line, order]
                total[order] += value * penalty[delta]
            gap = abs(lengths[line] - words)
            if (
                nearest < 0
                or gap < abs(nearest - words)
                or (gap == abs(nearest - words) and lengths[line] < nearest)
            ):
                nearest = lengths[line]
            line += 1
        # numpy's mean of four values adds them one after the other.
        cider[image] = (((total[0] + total[1]) + total[2]) + total[3]) / ORDERS / (line - begin)
        words_of[image, 0] = words
        words_of[image, 1] = nearest
        for order in range(ORDERS):
            for slot in range(limits[order], limits[order + 1]):
                correct[image, order] += min(own_counts[slot], most[slot])
    return cider, correct, words_of
