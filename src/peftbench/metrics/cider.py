"""CIDEr of captions, equal to pycocoevalcap's; BLEU, ROUGE-L, METEOR and SPICE beside it.

Source: ``COCOEvalCap`` of pycocoevalcap 1.2: PTB tokens of all references, then of all candidates, then the
scorers. Its CIDEr is CIDEr-D; the value here is that score times 100, as papers print it (it may exceed 100).
Document frequencies come from the references evaluated, so the score depends on which images are scored
together: the record holds their number and a digest of their references. Shards must never be averaged, and
one image alone scores 0.

Tokens come from ``_ptb``: without Java, a few lines in a thousand are tokenised by the nearest rule; then
``extra["tokens"]["exact"]`` is false and says how many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from peftbench.errors import UserError
from peftbench.metrics.base import MetricResult, MetricSettings, check_lengths, finish, read_settings

if TYPE_CHECKING:
    import numpy as np

    from peftbench.data.example import Example
    from peftbench.metrics._ngrams import CompiledCaptions, NgramScores
    from peftbench.metrics._ptb import Tokenized


class Settings(MetricSettings, frozen=True, kw_only=True):
    """Settings of the caption metrics."""

    also: tuple[Literal["bleu", "rouge_l", "meteor", "spice"], ...] = ("bleu", "rouge_l")
    """Further metrics for the record. METEOR and SPICE need Java and take far longer than the rest."""
    java: Literal["auto", "never"] = "auto"
    """Whether Java, where there is one, tokenises the lines that Python does not vouch for."""


class _Kept(msgspec.Struct):
    """References, tokenised and perhaps compiled."""

    lines: list[list[str]] | None
    compiled: CompiledCaptions | None
    tokens: dict[str, int]


def score(predictions: Sequence[str], examples: Sequence[Example], settings: dict[str, Any]) -> MetricResult:
    """CIDEr (x100) of each predicted caption against its example's references."""
    import numpy as np

    from peftbench.metrics._ptb import captions_digest, tokenize

    typed = read_settings(Settings, settings, "cider")
    check_lengths(predictions, examples)
    references = [example.answers for example in examples]
    for example in examples:
        if not example.answers:
            raise UserError(f"row {example.id!a} has no reference captions: give at least one")
    flat = [text for texts in references for text in texts]
    digest = captions_digest([*flat, *(str(len(texts)) for texts in references)])
    candidates = tokenize(predictions, typed.java)
    kept = _references(references, flat, digest, typed, len(predictions))
    grams = _ngram_scores(candidates.lines, kept)
    cider = grams.cider
    tokens = _token_facts(candidates, kept.tokens)
    extra: dict[str, Any] = {
        "cider": float(np.mean(cider)),
        "images": len(references),
        "references": len(flat),
        "reference_digest": digest,
        "tokens": tokens,
    }
    columns: dict[str, list[Any]] = {}
    if "bleu" in typed.also:
        corpus, _ = grams.bleu()
        extra["bleu"] = [100 * value for value in corpus]
    if set(typed.also) - {"bleu"}:
        _further(typed, candidates.lines, kept, references, extra, columns)
    result = finish((100 * cider).tolist(), examples, typed, extra, columns=columns)
    result.value = 100 * float(np.mean(cider))
    return result


def _references(
    references: list[list[str]], flat: list[str], digest: str, settings: Settings, candidates: int
) -> _Kept:
    """References tokenised; for large sets also compiled, and kept under their digest."""
    from peftbench.metrics import _cache, _ngrams, _ptb

    heavy = len(flat) + candidates > _ngrams.LIGHT_LIMIT
    folder = _cache.cache_dir() if heavy else None
    # What a machine without Java made must not be taken for exact: only exact tokens are kept.
    stored = folder / "captions" / f"{digest}-{_ngrams.FORMAT}" if folder is not None else None
    if stored is not None and settings.java == "auto":
        compiled = _ngrams.CompiledCaptions.load(stored)
        if compiled is not None:
            return _Kept(None, compiled, {"java": 0, "kept": len(flat), "approximate": 0, "sanitised": 0})
    tokenized = _ptb.tokenize(flat, settings.java)
    lines, start = [], 0
    for texts in references:
        lines.append(tokenized.lines[start : start + len(texts)])
        start += len(texts)
    compiled = _ngrams.compile_captions(lines) if heavy else None
    # Sanitised captions are compiled each time, so that their warning is given each time.
    if stored is not None and compiled is not None and not tokenized.approximate and not tokenized.sanitised:
        compiled.save(stored)
    return _Kept(lines, compiled, _counts(tokenized))


def _ngram_scores(candidates: list[str], kept: _Kept) -> NgramScores:
    from peftbench.metrics import _ngrams

    if kept.compiled is not None and max(map(len, candidates), default=0) <= _ngrams.MAX_WORDS:
        return kept.compiled.score(candidates)
    assert kept.lines is not None
    return _ngrams.score_light(candidates, kept.lines)


def _further(
    settings: Settings,
    candidates: list[str],
    kept: _Kept,
    references: list[list[str]],
    extra: dict[str, Any],
    columns: dict[str, list[Any]],
) -> None:
    """ROUGE-L, METEOR and SPICE, which need the tokens themselves."""
    from peftbench.metrics._caption_extras import by_java, rouge_l
    from peftbench.metrics._ptb import tokenize

    lines = kept.lines
    if lines is None:
        flat = tokenize([text for texts in references for text in texts], settings.java).lines
        ends = iter(flat)
        lines = [[next(ends) for _ in texts] for texts in references]
    for name in settings.also:
        if name == "rouge_l":
            each = rouge_l(candidates, lines)
            extra[name], columns[name] = 100 * _mean(each), [100 * score for score in each]
        elif name != "bleu":
            found = by_java(name, candidates, lines)
            if "unavailable" in found:
                extra[name] = found
            else:
                extra[name], columns[name] = found["value"], found["per_example"]


def _mean(values: list[float]) -> float:
    import numpy as np

    array: np.ndarray = np.array(values)
    return float(np.mean(array))


def _counts(tokenized: Tokenized) -> dict[str, int]:
    return {name: getattr(tokenized, name) for name in ("java", "kept", "approximate", "sanitised")}


def _token_facts(candidates: Tokenized, references: dict[str, int]) -> dict[str, Any]:
    facts: dict[str, Any] = {name: count + references[name] for name, count in _counts(candidates).items()}
    facts["exact"] = facts["approximate"] == 0
    return facts
