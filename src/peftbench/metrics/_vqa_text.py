"""Answer normalisation of the public VQA evaluators, restated to work on many texts at once.

Sources: ``VQAEval`` of GT-Vision-Lab/VQA (a013f00), its 2017 form (a4f1afd), and the EvalAI answer processor
of LLaVA's ``m4c_evaluator.py`` (c121f04). Their slips are kept, because scores depend on them:

- whether a punctuation mark is deleted or becomes a space is decided on the text before any mark was touched;
- the pattern for periods has a mistyped look-behind, so a period goes unless a digit follows it;
- ``re.UNICODE`` is passed as the count of that substitution: at most 32 periods go;
- the table of contractions has dead keys (capitals, though the text is lower case by then) and one reversed
  entry.

``\\d``, ``lower`` and ``split`` are those of Python 3: non-ASCII digits and white space count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MARKS = frozenset(';/[]"{}()=+\\_-><@`,?!')
"""The 21 punctuation marks. ``. : ' $ % & * # ~ ^ |`` are none of them."""
PERIOD_LIMIT = 32
_ANY_MARK = re.compile(f"[{re.escape(''.join(sorted(MARKS)))}]")
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA = re.compile(r"\d,\d")
_GONE = "\x00"
"""Stands for a mark that will be deleted, where many texts are stripped at once."""

FORMS = ("raw", "cleaned", "normalised", "submitted", "resubmitted", "stripped")
"""What answers are compared in: as they are; new lines and blanks; official normalisation; EvalAI form; its
official normalisation; as they are without punctuation."""

_NUMBERS = "none>0 zero>0 one>1 two>2 three>3 four>4 five>5 six>6 seven>7 eight>8 nine>9 ten>10"
_ARTICLES = ("a", "an", "the")

# Words whose missing apostrophe is restored: the key is the word without any.
_BARE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll
how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't
should've shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's
there'd there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's
what've when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've
wouldn't y'all you'd you'll you're you've
"""
# Words with two apostrophes: the keys lack the first or the second one.
_DOUBLE = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've
something'd've there'd've they'd've we'd've who'd've wouldn't've you'd've
"""
# The rest of the table, as it is: capitals that never match, the reversed entry, and three-part words.
_IRREGULAR = {
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "somebody'd": "somebodyd",
    "yall'll": "y'all'll",
    "y'allll": "y'all'll",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
    "let's": "let's",
    "she's": "she's",
    "Id've": "I'd've",
    "I'dve": "I'd've",
    "Im": "I'm",
    "Ive": "I've",
}


def _contractions() -> dict[str, str]:
    table = {word.replace("'", ""): word for word in _BARE.split()}
    for word in _DOUBLE.split():
        first, second, third = word.split("'")
        table[f"{first}{second}'{third}"] = word
        table[f"{first}'{second}{third}"] = word
    return table | _IRREGULAR


CONTRACTIONS = _contractions()
"""The evaluators' 120 contractions."""


def _words() -> dict[str, str]:
    """What becomes of a lower-case word; "" for an article. Numbers come first, then articles."""
    table = dict(CONTRACTIONS)
    table |= dict(pair.split(">") for pair in _NUMBERS.split())
    table.update(dict.fromkeys(_ARTICLES, ""))
    return table


_WORDS = _words()
_SPECIAL = frozenset(_WORDS)


def clean(text: str) -> str:
    """New lines and tabs become spaces, then strip: all that happens to answers that are unanimous."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def strip_marks(text: str) -> str:
    """``processPunctuation``: case is kept."""
    out = text
    if _ANY_MARK.search(text):
        digits = "," in text and _COMMA.search(text) is not None
        for mark in MARKS.intersection(text):
            gone = digits or mark + " " in text or " " + mark in text
            out = out.replace(mark, "" if gone else " ")
    return _PERIOD.sub("", out, count=PERIOD_LIMIT) if "." in out else out


def map_words(text: str) -> str:
    """``processDigitArticle``: lower case, number words, articles, contractions."""
    words = text.lower().split()
    if _SPECIAL.isdisjoint(words):
        return " ".join(words)
    get = _WORDS.get
    return " ".join([new for word in words if (new := get(word, word))])


def _evalai_start(text: str) -> str:
    """What the EvalAI processor does before it strips marks and maps words, as the official code does.

    Its other pattern for commas between digits makes no difference: no comma is left by then.
    """
    return clean(text.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def strip_marks_all(texts: Sequence[str]) -> list[str]:
    """``strip_marks`` of each text: they go as the lines of one string, so that a step is one call for all."""
    if not texts:
        return []
    whole = "\n".join(texts)
    odd: list[int] = []
    if _GONE in whole or whole.count("\n") != len(texts) - 1:  # lines and gone marks must be told apart
        odd = [place for place, text in enumerate(texts) if _GONE in text or "\n" in text]
        alone = set(odd)
        whole = "\n".join(["" if place in alone else text for place, text in enumerate(texts)])
    marks = [mark for mark in MARKS if mark in whole]
    for mark in marks:
        whole = whole.replace(" " + mark, " " + _GONE).replace(mark + " ", _GONE + " ")
    # Where a mark next to a space is gone, the same mark elsewhere in the text would go too. A comma between
    # digits takes all marks with it, and the limit of periods is one per text.
    odd += [
        place
        for place, line in enumerate(whole.split("\n"))
        if (_GONE in line and not MARKS.isdisjoint(line))
        or ("," in line and _COMMA.search(line))
        or (len(line) > PERIOD_LIMIT and line.count(".") > PERIOD_LIMIT)
    ]
    whole = whole.replace(_GONE, "")
    for mark in marks:
        whole = whole.replace(mark, " ")
    lines = _PERIOD.sub("", whole).split("\n")
    for place in odd:
        lines[place] = strip_marks(texts[place])
    return lines


def _clean_all(texts: Sequence[str]) -> list[str]:
    """``clean`` of each text."""
    whole = "".join(texts)
    return list(map(clean if "\n" in whole or "\t" in whole else str.strip, texts))


def all_forms(texts: Sequence[str]) -> dict[str, list[str]]:
    """Every form (see ``FORMS``) of each text.

    The EvalAI form is what LLaVA applies before it submits, and to both sides for TextVQA.
    """
    cleaned = _clean_all(texts)
    stripped = strip_marks_all(cleaned)
    normalised = list(map(map_words, stripped))
    # Without , ? ' the EvalAI processor differs only in when it lowers the case, which matters outside ASCII.
    own = [
        place
        for place, text in enumerate(texts)
        if "'" in text or "," in text or "?" in text or not text.isascii()
    ]
    submitted = _replaced(normalised, own, [_evalai_start(texts[place]) for place in own])
    # Marks and capitals are gone by now. What a second pass may change is a contraction that was restored, a
    # period beyond the limit, or a letter outside ASCII.
    again = [
        place for place, form in enumerate(submitted) if "'" in form or "." in form or not form.isascii()
    ]
    resubmitted = _replaced(submitted, again, [submitted[place] for place in again])
    unclean = [place for place, form in enumerate(cleaned) if form != texts[place]]
    for place, form in zip(unclean, strip_marks_all([texts[place] for place in unclean]), strict=True):
        stripped[place] = form
    columns = (list(texts), cleaned, normalised, submitted, resubmitted, stripped)
    return dict(zip(FORMS, columns, strict=True))


def _replaced(forms: list[str], places: list[int], texts: list[str]) -> list[str]:
    """The forms, but at some places the normalisation of other texts, which are clean."""
    out = list(forms)
    for place, text in zip(places, strip_marks_all(texts), strict=True):
        out[place] = map_words(text)
    return out
