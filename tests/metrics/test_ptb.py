"""The tokenizer against Java's, on captions, prose, fuzzed text and everything that moves lines."""

import random
import subprocess
from pathlib import Path

import captions
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftbench.errors import UserError
from peftbench.metrics import _ptb

JAVA = _ptb.java_binary()
needs_java = pytest.mark.skipif(
    JAVA is None, reason="no java on the PATH: nothing to compare the tokenizer with"
)


def by_jar(lines: list[str]) -> list[str]:
    """What pycocoevalcap makes of these lines: Java's tokens in one file, less its list of punctuation."""
    jar = _ptb.jar_path()
    assert JAVA is not None and jar is not None
    out = _ptb.run_java(JAVA, jar, lines)
    assert len(out) == len(lines)
    return [" ".join(w for w in line.rstrip().split(" ") if w not in _ptb.PUNCTUATION) for line in out]


def ours(lines: list[str]) -> list[str]:
    """Lines as the captions that Java gets: without separators of lines and surrogates."""
    return [_ptb._SURROGATES.sub("", _ptb._SEPARATORS.sub(" ", line.replace("\n", " "))) for line in lines]


def assert_equal(lines: list[str]) -> _ptb.Tokenized:
    made = _ptb.tokenize(lines)
    differing = [
        (line, mine, java)
        for line, mine, java in zip(lines, made.lines, by_jar(ours(lines)), strict=True)
        if mine != java
    ]
    assert differing == []
    assert made.approximate == 0
    return made


@needs_java
def test_captions_and_prose() -> None:
    references, candidates = captions.drawn(400, 5)
    plain = [text for texts in references for text in texts] + candidates
    assert assert_equal(plain).java == 0, "every plain caption is ours"
    assert_equal(captions.WRITTEN)
    assert_equal(captions.prose(6000))


@needs_java
def test_fuzzed_chunks_in_many_neighbourhoods() -> None:
    rng = random.Random(7)
    cores = [
        "a",
        "an",
        "the",
        "man",
        "in",
        "on",
        "with",
        "dog",
        "st",
        "mr",
        "Mr",
        "DR",
        "etc",
        "Jan",
        "oct",
        "may",
        "la",
        "La",
        "LA",
        "ill",
        "Ill",
        "pa",
        "fig",
        "No",
        "NO",
        "no",
        "art",
        "cannot",
        "gonna",
        "Gimme",
        "can't",
        "won't",
        "DON'T",
        "ain't",
        "b",
        "c",
        "x",
        "I",
        "i",
        "us",
        "mt",
        "Mt",
        "co",
        "inc",
        "ltd",
        "vs",
        "e",
        "g",
        "pm",
        "am",
        "p",
        "ft",
        "cm",
        "jr",
        "Jr",
        "US",
        "U.S.",
        "NYC",
        "tv",
        "ok",
        "Ph",
        "phd",
        "PhD",
        "iPhone",
        "McDonald's",
        "t-shirt",
        "x-ray",
        "well-known's",
        "A-frame",
        "mid-air",
        "WANNA",
        "e-mail",
        "H",
        "HE",
        "The",
        "They",
        "One",
        "O'Brien",
        "o'clock",
        "boys'",
        "it's",
        "IT'S",
        "I'm",
        "you're",
        "they've",
        "she'd",
        "we'll",
        "y'all",
        "5",
        "15",
        "2012",
        "007",
        "555",
        "1234",
        "Wed",
        "sun",
        "dept",
        "ave",
        "Rd",
        "Sgt",
        "and/or",
        "AC/DC",
        "w/",
        "2nd",
        "11th",
        "1990s",
        "80s",
        "20-year-old",
        "int'l",
        "mfg",
        "Mfg",
        "MFG",
        "pty",
        "PTY",
        "&",
    ]
    before = ["", "", "", "", '"', "("]
    after = [
        "",
        "",
        "",
        "",
        ",",
        ".",
        "!",
        "?",
        ";",
        ":",
        '"',
        ',"',
        '."',
        '".',
        "...",
        ")",
        "),",
        ").",
        ".)",
        ".,",
        "..",
    ]
    marks = ["-", "--", "&", ",", ".", "!", "(", ")", '"', "", ":", "..."]
    lines = []
    for _ in range(6000):
        chunks = []
        for _ in range(rng.randint(1, 7)):
            core = rng.choice(cores)
            if rng.random() < 0.1:
                core = "".join(rng.choice("abcdefghijklmnoprstuvwyABST") for _ in range(rng.randint(1, 5)))
            if rng.random() < 0.03:
                core += rng.choice("-/") + rng.choice(cores)
            chunks.append(
                rng.choice(before) + core + rng.choice(after) if rng.random() < 0.95 else rng.choice(marks)
            )
        lines.append(" ".join(chunks))
    assert_equal(lines)


@needs_java
def test_fuzzed_characters() -> None:
    rng = random.Random(8)
    codes = [
        *range(0x20),
        *range(0x7F, 0x180),
        *range(0x2000, 0x2070),
        0x1680,
        0x180E,
        0x3000,
        0xFEFF,
        0xFFFD,
        0x1F600,
    ]
    pool = [
        chr(code)
        for code in [*codes, 0x200D, 0xFE0F, 0x130, 0x3A3, 0x3C2, 0x661, 0x4E2D, 0xD7FF, 0x10FFFF, 0xD800]
    ]
    words = [
        "a",
        "The",
        "dog",
        "man's",
        "5",
        "1/2",
        "no.",
        "b.",
        "it isn't",
        "(x)",
        "hello, dog.",
        "555 1234",
        "U.S.",
        "etc.",
        "'90s",
        " ",
        "",
    ]
    lines = [
        rng.choice(["", " "]).join(
            rng.choice([rng.choice(pool), rng.choice(words)]) for _ in range(rng.randint(0, 8))
        )
        for _ in range(2500)
    ]
    assert_equal(lines)


ENDINGS = ["dog b.", "no.", "fig.", "etc.", "p.m.", "the '90", "5 1", "(555)"]


@needs_java
def test_a_line_may_depend_on_what_follows() -> None:
    following = [
        ["The dog"],
        ["the dog"],
        ["5 dogs"],
        ["1/2"],
        ["", "", "The dog"],
        [" ", "5"],
        ["A"],
        ["\tHe is"],
    ]
    lines = [line for ending in ENDINGS for more in following for line in (ending, *more, "a cat")]
    assert _ptb.tokenize(lines).lines == by_jar(lines)


@needs_java
@pytest.mark.parametrize("lines", [["etc."], ["the '90"], ["A dog b.", "", ""], ["no.", " ", "fig."]])
def test_the_last_line_has_the_end_after_it(lines: list[str]) -> None:
    assert _ptb.tokenize(lines).lines == by_jar(lines)


@needs_java
def test_answers_of_java_are_kept_and_torn_rows_are_skipped(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["about $5 @ home", "fig.", "3 dogs ~"]
    first = _ptb.tokenize(lines)
    assert (first.java, first.kept) == (3, 0)
    path = own_cache / "ptb" / "lines-1.jsonl"
    path.write_bytes(path.read_bytes() + b"0000000")
    monkeypatch.setattr(_ptb, "java_binary", lambda: None)
    again = _ptb.tokenize([*lines, "what @ else"])
    assert again.lines[:3] == first.lines
    assert (again.java, again.kept, again.approximate) == (0, 2, 2), "the last line is no longer the last"
    assert _ptb.tokenize(lines).kept == 3


@pytest.mark.parametrize("separator", ["\r", "\r\n", "\x0b", "\x0c", "\u2028", "\u2029"])
def test_separators_inside_a_caption_shift_nothing(separator: str) -> None:
    made = _ptb.tokenize(["a cat", f"a red{separator}dog", "a bird", "a cow"], java="never")
    assert made.lines == ["a cat", "a red dog", "a bird", "a cow"]
    assert made.sanitised == 1


def test_new_lines_are_spaces_without_a_warning() -> None:
    made = _ptb.tokenize(["a red\ndog", "", " "], java="never")
    assert made.lines == ["a red dog", "", ""]
    assert made.sanitised == 0


def test_lone_surrogates_are_dropped_and_counted() -> None:
    made = _ptb.tokenize(["a \ud800dog"], java="never")
    assert made.sanitised == 1
    assert made.lines == ["a dog"]


def test_without_java_the_nearest_rule_and_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ptb, "java_binary", lambda: None)
    made = _ptb.tokenize(["A dog .", "about $5 (or 6%)", "U.S. flag's"])
    assert made.lines == ["a dog", "about $ 5 -lrb- or 6 % -rrb-", "u.s. flag 's"]
    assert (made.java, made.approximate) == (0, 2)


@needs_java
def test_the_nearest_rule_is_near() -> None:
    lines = [line for line in captions.prose(6000) if not line.startswith(("|", "*"))]
    java = by_jar(lines)
    same = sum(_ptb.approximate(line) == tokens for line, tokens in zip(lines, java, strict=True))
    assert same / len(lines) > 0.88


def test_a_java_that_fails_is_one_clear_line(tmp_path: Path) -> None:
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\necho 'no memory' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(UserError, match="Java's tokenizer failed \\(no memory\\)"):
        _ptb.run_java(str(broken), tmp_path / "x.jar", ["a"])
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexit 0\n")
    silent.chmod(0o755)
    with pytest.raises(UserError, match="a caption holds a line separator"):
        _ptb._ask_java(str(silent), tmp_path / "x.jar", [(("a", ""), ["x"]), (("b", ""), ["x"])])
    assert subprocess.run([str(silent)], check=False).returncode == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=5))
def test_any_text_gives_one_line_each_without_separators(lines: list[str]) -> None:
    made = _ptb.tokenize(lines, java="never")
    assert len(made.lines) == len(lines)
    assert all("\n" not in line and "  " not in line and line == line.strip(" ") for line in made.lines)


def test_ten_thousand_characters() -> None:
    text = "dog, " * 2000
    assert _ptb.tokenize([text], java="never").lines == ["dog " * 1999 + "dog"]
