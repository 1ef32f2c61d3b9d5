"""Answer normalisation of the public VQA evaluators, restated with a short way for plain answers.

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

MARKS = frozenset(';/[]"{}()=+\\_-><@`,?!')
"""The 21 punctuation marks. ``. : ' $ % & * # ~ ^ |`` are none of them."""
PERIOD_LIMIT = 32
_ANY_MARK = re.compile(f"[{re.escape(''.join(sorted(MARKS)))}]")
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_OFFICIAL = re.compile(r"\d,\d")
_COMMA_M4C = re.compile(r"(?<=\d),+(?=\d)")
_EVALAI_OWN = re.compile(r"[,?'\x00-\x1f]")
_PLAIN = re.compile(r"[a-z0-9]+(?: [a-z0-9]+)*")

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


def strip_marks(text: str, comma: re.Pattern[str] = _COMMA_OFFICIAL) -> str:
    """``processPunctuation``: case is kept."""
    out = text
    if _ANY_MARK.search(text):
        digits = "," in text and comma.search(text) is not None
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


def normalise(text: str) -> str:
    """The official normalisation of an answer or prediction (skipped where answers are unanimous)."""
    return map_words(strip_marks(clean(text)))


def evalai(text: str) -> str:
    """The EvalAI answer processor: what LLaVA applies before it submits, and to both sides for TextVQA."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return map_words(strip_marks(clean(text), _COMMA_M4C))


def prediction_forms(text: str) -> tuple[str, str, str, str]:
    """(cleaned, normalised, EvalAI form, EvalAI form normalised) of a prediction.

    For plain lower-case words and digits the last three are one and the same, which most answers are.
    """
    if _PLAIN.fullmatch(text):
        form = _map_plain(text)
        # A contraction that was restored has an apostrophe, which a second pass sees.
        return text, form, form, form if "'" not in form else normalise(form)
    cleaned = clean(text)
    form = map_words(strip_marks(cleaned))
    # Without , ? ' and control characters, the EvalAI processor differs only in when it lowers the case.
    submitted = form if text.isascii() and not _EVALAI_OWN.search(text) else evalai(text)
    return cleaned, form, submitted, submitted if _PLAIN.fullmatch(submitted) else normalise(submitted)


def answer_forms(text: str) -> tuple[str, str, str, str]:
    """(cleaned, normalised, EvalAI form, punctuation-stripped raw text) of an annotator's answer."""
    if _PLAIN.fullmatch(text):
        form = _map_plain(text)
        return text, form, form, text
    cleaned = clean(text)
    stripped = strip_marks(cleaned)
    form = map_words(stripped)
    submitted = form if text.isascii() and not _EVALAI_OWN.search(text) else evalai(text)
    return cleaned, form, submitted, stripped if cleaned == text else strip_marks(text)


def _map_plain(text: str) -> str:
    """``map_words`` of lower-case words with single spaces between them."""
    return text if _SPECIAL.isdisjoint(text.split(" ")) else map_words(text)
