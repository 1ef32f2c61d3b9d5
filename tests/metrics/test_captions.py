"""CIDEr, BLEU and ROUGE-L against pycocoevalcap itself."""

import math
import os
import sys
from pathlib import Path

import captions
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from rows import examples

from peftbench.errors import UserError
from peftbench.metrics import _caption_extras, _ngrams, _ptb, cider

JAVA = _ptb.java_binary()
needs_java = pytest.mark.skipif(
    JAVA is None, reason="no java on the PATH: pycocoevalcap's tokenizer cannot run"
)


def official_cider(candidates: list[str], references: list[list[str]]) -> tuple[float, np.ndarray]:
    truth, given = dict(enumerate(references)), {n: [text] for n, text in enumerate(candidates)}
    mean, each = Cider().compute_score(truth, given)
    return float(mean), each


def official_bleu(candidates: list[str], references: list[list[str]]) -> tuple[list[float], np.ndarray]:
    truth, given = dict(enumerate(references)), {n: [text] for n, text in enumerate(candidates)}
    corpus, each = Bleu(4).compute_score(truth, given, verbose=0)
    return corpus, np.array(each)


def assert_equal_to_official(candidates: list[str], references: list[list[str]]) -> None:
    light = _ngrams.score_light(candidates, references)
    compiled = _ngrams.compile_captions(references)
    assert compiled is not None
    mean, each = official_cider(candidates, references)
    bleu, bleu_each = official_bleu(candidates, references)
    for made in (light, compiled.score(candidates)):
        assert made.cider.tolist() == each.tolist()
        assert float(np.mean(made.cider)) == mean
        corpus, per_image = made.bleu()
        assert corpus == pytest.approx(bleu, rel=0, abs=1e-12)
        assert np.abs(per_image - bleu_each).max() < 1e-12


@pytest.mark.parametrize("images", [1, 2, 7, 60, 400])
def test_drawn_captions_in_every_bit(images: int) -> None:
    references, candidates = captions.drawn(images, 5, seed=images)
    lines = [_ptb.tokenize(texts, "never").lines for texts in references]
    assert_equal_to_official(_ptb.tokenize(candidates, "never").lines, lines)


def test_repeated_long_empty_and_odd_captions() -> None:
    references = [
        ["a a a a a a", "a b a b a b a b", "b"],
        ["the dog the dog the dog sat", "the the the"],
        ["", "x"],
        ["w" + " w" * 300 + " v"],
        ["1\u00a01/2 cups of caf\u00e9 \u2003 x", "-lrb- a -rrb-"],
        ["naïve \u3000 é", "日本 語"],
    ]
    candidates = [
        "a b a b a b",
        "the dog the dog sat the dog",
        "",
        "w " * 301 + "v",
        "1 1/2 cups of café x",
        "日本 語 é",
    ]
    assert_equal_to_official(candidates, references)


WORDS = st.sampled_from(["a", "b", "c", "dog", "the", "é", "zz"])
LINES = st.lists(WORDS, max_size=9).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(LINES, st.lists(LINES, min_size=1, max_size=4)), min_size=1, max_size=6))
def test_any_words_in_every_bit(rows: list[tuple[str, list[str]]]) -> None:
    candidates, references = [text for text, _ in rows], [texts for _, texts in rows]
    assume(any(text for texts in references for text in texts))  # the official code crashes without any word
    assert_equal_to_official(candidates, references)
    truth, given_ = dict(enumerate(references)), {n: [text] for n, text in enumerate(candidates)}
    _, each = Rouge().compute_score(truth, given_)
    assert _caption_extras.rouge_l(candidates, references) == each.tolist()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(max_size=40), st.lists(st.text(max_size=40), min_size=1, max_size=3)), min_size=1
    )
)
def test_any_text_is_scored_within_bounds(rows: list[tuple[str, list[str]]]) -> None:
    result = cider.score(
        [text for text, _ in rows], examples([texts for _, texts in rows]), {"java": "never"}
    )
    assert all(0 <= value <= 1000 + 1e-9 and math.isfinite(value) for value in result.per_example)
    assert 0 <= result.extra["rouge_l"] <= 100 + 1e-9
    assert all(0 <= value <= 100 + 1e-6 for value in result.extra["bleu"])


def test_a_perfect_caption_scores_highest_and_rows_have_no_order() -> None:
    references, _ = captions.drawn(40, 1)
    perfect = [texts[0] for texts in references]
    result = cider.score(perfect, examples(references), {})
    assert result.value == pytest.approx(1000)
    order = list(reversed(range(40)))
    mixed, candidates = captions.drawn(40, 3, seed=4)
    made = cider.score(candidates, examples(mixed), {})
    again = cider.score([candidates[i] for i in order], examples([mixed[i] for i in order]), {})
    assert [made.per_example[i] for i in order] == pytest.approx(again.per_example, rel=1e-12)


def test_references_without_any_word_score_zero() -> None:
    assert cider.score(["a dog", "x"], examples([[""], ["."]]), {}).per_example == [0.0, 0.0]


def test_one_image_alone_scores_zero() -> None:
    result = cider.score(["a dog runs"], examples([["a dog runs"]]), {})
    assert result.value == 0
    assert result.extra["images"] == 1


def test_the_score_depends_on_which_images_are_scored_together() -> None:
    references, candidates = captions.drawn(30, 5)
    whole = cider.score(candidates, examples(references), {})
    part = cider.score(candidates[:10], examples(references[:10]), {})
    assert part.per_example != whole.per_example[:10]
    assert part.extra["reference_digest"] != whole.extra["reference_digest"]


@needs_java
def test_end_to_end_equals_pycocoevalcap() -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    references, candidates = captions.drawn(40, 2)
    references += [[text, captions.WRITTEN[-1 - n]] for n, text in enumerate(captions.WRITTEN)]
    candidates += captions.WRITTEN
    truth = PTBTokenizer().tokenize(
        {n: [{"caption": t} for t in texts] for n, texts in enumerate(references)}
    )
    given_ = PTBTokenizer().tokenize({n: [{"caption": text}] for n, text in enumerate(candidates)})
    mean, each = Cider().compute_score(truth, given_)
    result = cider.score(candidates, examples(references), {})
    assert result.value == pytest.approx(100 * mean, rel=0, abs=1e-10)
    assert np.abs(np.array(result.per_example) / 100 - each).max() < 1e-12
    rouge, _ = Rouge().compute_score(truth, given_)
    assert result.extra["rouge_l"] == pytest.approx(100 * rouge, abs=1e-10)
    assert result.extra["tokens"]["exact"] is True


def test_large_sets_are_kept_compiled_and_give_the_same(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    references, candidates = captions.drawn(80, 5)
    small = cider.score(candidates, examples(references), {})
    monkeypatch.setattr(_ngrams, "LIGHT_LIMIT", 100)
    first = cider.score(candidates, examples(references), {})
    kept = list((own_cache / "captions").iterdir())
    assert len(kept) == 1
    second = cider.score(candidates, examples(references), {})
    assert small.per_example == first.per_example == second.per_example
    assert first.extra["bleu"] == second.extra["bleu"] == small.extra["bleu"]
    assert second.extra["tokens"]["kept"] == 400
    (kept[0] / "table.npy").unlink()
    assert cider.score(candidates, examples(references), {}).per_example == small.per_example


def test_the_plain_way_takes_captions_too_long_for_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ngrams, "LIGHT_LIMIT", 1)
    monkeypatch.setattr(_ngrams, "MAX_WORDS", 6)
    references, candidates = captions.drawn(5, 2)
    made = _ngrams.score_captions(candidates, references)
    assert made.cider.tolist() == _ngrams.score_light(candidates, references).cider.tolist()


def test_without_java_the_record_says_that_parity_is_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ptb, "java_binary", lambda: None)
    rows = examples([["a dog for $5", "a cat"], ["a bird"]])
    result = cider.score(["a dog @ home", "a bird"], rows, {"also": ["meteor"]})
    assert result.extra["tokens"] == {"java": 0, "kept": 0, "approximate": 2, "sanitised": 0, "exact": False}
    assert result.extra["meteor"] == {"unavailable": "no java on the PATH"}


@needs_java
def test_meteor_through_pycocoevalcap() -> None:
    rows = examples([["a dog runs", "the dog is running"], ["a cat sleeps"]])
    result = cider.score(["a dog runs", "a bird"], rows, {"also": ["meteor"]})
    assert result.columns["meteor"][0] > result.columns["meteor"][1]
    assert 0 < result.extra["meteor"] <= 100


def test_wrong_input() -> None:
    with pytest.raises(UserError, match="'x1' has no reference captions"):
        cider.score(["a", "b"], examples([["a"], []]), {})
    with pytest.raises(UserError, match="settings of metric cider"):
        cider.score(["a"], examples([["a"]]), {"also": ["bleurt"]})


def test_kernels_find_a_place_where_the_package_cannot_be_written(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ngrams.os, "access", lambda path, mode: False)
    monkeypatch.delitem(sys.modules, "numba", raising=False)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")  # so that it is put back as it was
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setitem(sys.modules, "peftbench.metrics._ngram_kernels", sys)
    _ngrams._kernels()
    assert os.environ["NUMBA_CACHE_DIR"] == str(own_cache / "numba")
