"""Tokens of captions as Stanford's PTBTokenizer gives them: in Python where proven, else by Java.

Source: ``PTBTokenizer`` of pycocoevalcap 1.2 (stanford-corenlp-3.4.1, ``-preserveLines -lowerCase``), which
also drops a list of punctuation tokens. Its behaviour was found by probing it as a black box; no table of it
is used here.

A line is *ours* if each of its chunks between spaces has one of the forms of ``_CHUNK`` (plain words,
clitics, hyphenated words, small numbers, usual punctuation around them: 99.7 % of the captions of Flickr30k).
Such a line gives the same tokens whatever stands around it. Every other line goes to Java, all in one call,
and its tokens are kept on disk. Java's answer may depend on the next line ("a." before "The"), so the next
line goes along.

Without Java, lines that are not ours and not kept are tokenised by ``approximate``, and the caller is told
how many.

Characters that end a line for Java but not for pycocoevalcap (CR, VT, FF, U+2028, U+2029) shift all later
captions there. Here they become spaces, with a count. Lone surrogates, which cannot be written as UTF-8, are
dropped.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from peftbench.errors import UserError
from peftbench.metrics._cache import cache_dir

JavaUse = Literal["auto", "never"]
JAR = "stanford-corenlp-3.4.1.jar"
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
"""Tokens that pycocoevalcap drops. It compares after lowering the case, so brackets stay (``-lrb-``)."""
_SEPARATORS = re.compile("[\r\x0b\x0c\u2028\u2029]")
_SURROGATES = re.compile("[\ud800-\udfff]")
CACHE_LIMIT = 64 << 20
"""The file of kept lines is begun anew beyond this size (bytes)."""
HEAD = 16
"""Characters of the next line that can matter to a line that ends in a period."""


class Tokenized(msgspec.Struct):
    """Tokenised captions, tokens joined by single spaces, and how they were made."""

    lines: list[str]
    java: int = 0
    """Lines that Java tokenised now."""
    kept: int = 0
    """Lines whose tokens by Java were on disk."""
    approximate: int = 0
    """Lines that neither this module nor a kept answer of Java could do: parity is not exact for them."""
    sanitised: int = 0
    """Captions that held a separator of lines or a lone surrogate."""


# Abbreviations that keep their period, found by probing: in lower case; with a capital; in capitals.
_ABBREVIATIONS = """
adj adm adv al ala alex apr ariz assn assoc asst atty aug ave bhd bldg blvd brig bros calif capt cf cie
cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri
ft ga gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md mfg
mich minn mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc ph plc ppte ppty
pres prof profs pte ptes pty ptys pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste
supt sys tel tenn thu thurs treas tue tues univ va vs vt wed wis wisc wm wyo
"""
_ABBREVIATED = frozenset(_ABBREVIATIONS.split())
_ABBREVIATED_TITLE = _ABBREVIATED | frozenset(
    ["ark", "az", "del", "ill", "la", "mass", "miss", "ore", "pa", "tex", "wash"]
)
_ABBREVIATED_UPPER = _ABBREVIATED_TITLE - frozenset(
    ["mfg", "mtg", "ppte", "ppty", "pte", "ptes", "pty", "ptys"]
)
_BEFORE_NUMBER = frozenset(["art", "ca", "fig", "figs", "no", "nos", "op", "pp", "prop"])
_SPLIT = {
    "cannot": "can not",
    "gimme": "gim me",
    "gonna": "gon na",
    "gotta": "got ta",
    "lemme": "lem me",
    "wanna": "wan na",
}
_CHUNK = re.compile(
    r"""(?P<open>[("]?)
    (?: (?P<word>[A-Za-z]+) (?P<clitic>'(?:[sS]|[rR][eE]|[vV][eE]|[lL][lL]|[dD]|[mM])|(?<=[sS])'(?![A-Za-z]))?
      | (?P<negated>[A-Za-z]+)[nN]'[tT]
      | (?P<compound>[A-Za-z]+(?:-[A-Za-z]+)+|[A-Za-z]{2,}/[A-Za-z]{2,}|[0-9]{1,4}(?:-[A-Za-z]+)+)(?P<own>'s)?
      | (?P<number>[0-9]+)
      | (?P<ordinal>[0-9]*(?:1st|2nd|3rd|[04-9]th)|[0-9]{2,4}s)
    )?
    (?P<mark>\.\.\.|[,!?;:.]?)(?P<close>[")]?)(?P<last>[,.]?)""",
    re.VERBOSE,
)
_ADJACENT_NUMBERS = re.compile(r"[0-9][0-9,.:;!?)\"]* +[(\"]?[0-9]")


class _NotOursError(Exception):
    """A chunk whose tokens are not proven."""


def chunk_tokens(chunk: str) -> str:
    """Tokens of one chunk, joined by spaces ("" where all are dropped); raises where it is not ours."""
    if chunk == "&":
        return chunk
    if chunk in ("-", "--"):
        return ""
    match = _CHUNK.fullmatch(chunk)
    if match is None:
        raise _NotOursError
    mark, last = match["mark"], match["last"]
    period = mark == "." or (not mark and not match["close"] and last == ".")
    if last and mark and not match["close"]:
        raise _NotOursError  # two marks in a row: ".," keeps the period
    core, word = "", match["word"]
    if word:
        core = _word(word, match["clitic"], period, mark == "...")
    elif negated := match["negated"]:
        core = f"{negated.lower()} n't"
    elif compound := match["compound"]:
        tail = re.split("[-/]", compound)[-1].lower()
        if (period or mark == "...") and (
            len(tail) == 1 or tail in _ABBREVIATED_TITLE or tail in _BEFORE_NUMBER
        ):
            raise _NotOursError
        core = compound.lower() + (" 's" if match["own"] else "")
    elif number := match["number"]:
        if mark == "...":
            raise _NotOursError
        core = number
    elif ordinal := match["ordinal"]:
        core = ordinal
    brackets = ("-lrb-" if match["open"] == "(" else "", core, "-rrb-" if match["close"] == ")" else "")
    return " ".join(part for part in brackets if part)


def _word(word: str, clitic: str | None, period: bool, dots: bool) -> str:
    lower = word.lower()
    if clitic:
        if (len(lower) == 1 and lower != "i") or lower in _SPLIT or (clitic == "'" and (period or dots)):
            raise _NotOursError
        return lower if clitic == "'" else f"{lower} {clitic.lower()}"
    if period or dots:
        if len(lower) == 1 or lower in _BEFORE_NUMBER:
            raise _NotOursError  # what follows decides, on this line or the next
        if lower in _ABBREVIATED_TITLE:
            if dots:
                raise _NotOursError
            if word == lower:
                kept = lower in _ABBREVIATED
            elif word == lower.capitalize():
                kept = True
            elif word == lower.upper():
                kept = lower in _ABBREVIATED_UPPER
            else:
                raise _NotOursError
            return f"{lower}." if kept else lower
    return _SPLIT.get(lower, lower)


class _Memo(dict[str, str]):
    """Tokens of chunks seen before: captions repeat their words."""

    def __missing__(self, chunk: str) -> str:
        tokens = chunk_tokens(chunk)
        if len(self) > 1_000_000:
            self.clear()
        self[chunk] = tokens
        return tokens


_memo = _Memo()


def tokenize(captions: Sequence[str], java: JavaUse = "auto") -> Tokenized:
    """Tokenise captions as pycocoevalcap would tokenise them in this order, one caption per line.

    ``java="never"`` uses neither Java nor its kept answers. Raises UserError where Java runs but fails.
    """
    result = Tokenized([])
    lines = [text.replace("\n", " ") for text in captions]
    joined = "\n".join(lines)
    if _SEPARATORS.search(joined) or not joined.isascii():
        for place, line in enumerate(lines):
            sane = _SURROGATES.sub("", _SEPARATORS.sub(" ", line))
            if sane != line:
                lines[place] = sane
                result.sanitised += 1
        joined = "\n".join(lines)
    numbers = _ADJACENT_NUMBERS.search(joined) is not None
    tokens_of = _memo.__getitem__
    foreign = []
    out = result.lines
    for place, line in enumerate(lines):
        try:
            if numbers and _ADJACENT_NUMBERS.search(line):  # "555 1234" may be one telephone number
                raise _NotOursError
            # Chunks are not stripped of tabs and the like, so a line that has them is not ours.
            tokens = " ".join(map(tokens_of, line.split(" ")))
            out.append(
                " ".join(tokens.split())
                if "  " in tokens or tokens[:1] == " " or tokens[-1:] == " "
                else tokens
            )
        except _NotOursError:
            foreign.append(place)
            out.append("")
    if foreign:
        _by_java(lines, foreign, java, result)
    return result


def _by_java(lines: list[str], foreign: list[int], use: JavaUse, result: Tokenized) -> None:
    """Fill in the lines that are not ours."""
    keys = [(lines[place], _context(lines, place)) for place in foreign]
    kept = {} if use == "never" else _read_kept()
    wanted = [key for key in dict.fromkeys(keys) if key not in kept]
    fresh: dict[tuple[str, str], str] = {}
    if wanted and use == "auto" and (binary := java_binary()) is not None and (jar := jar_path()) is not None:
        nexts = dict(zip(keys, (_following(lines, place) for place in foreign), strict=True))
        fresh = _ask_java(binary, jar, [(key, nexts[key]) for key in wanted])
        _keep(fresh)
    for place, key in zip(foreign, keys, strict=True):
        if key in fresh:
            result.lines[place] = fresh[key]
            result.java += 1
        elif key in kept:
            result.lines[place] = kept[key]
            result.kept += 1
        else:
            result.lines[place] = approximate(lines[place])
            result.approximate += 1


END = "\n"
"""Mark of a context that reaches the end of the text: no line can hold a new line."""


def _following(lines: list[str], place: int) -> list[str]:
    """The lines after a line up to the first that is not blank; the last item is ``END`` where all are blank."""
    stop = place + 1
    while stop < len(lines) and not lines[stop].strip():
        stop += 1
    return lines[place + 1 : stop + 1] if stop < len(lines) else [*lines[place + 1 :], END]


def _context(lines: list[str], place: int) -> str:
    """What of the following lines can matter: nothing unless the line ends in a period or none follows."""
    following = _following(lines, place)
    if following[-1] == END:
        return "\n".join(following)
    if not lines[place].rstrip().endswith("."):
        return ""
    last = following[-1]
    return "\n".join([*following[:-1], last[: len(last) - len(last.lstrip()) + HEAD]])


def java_binary() -> str | None:
    """Path of ``java``, or None."""
    return shutil.which("java")


def jar_path() -> Path | None:
    """The tokenizer's jar inside the installed pycocoevalcap, or None."""
    found = importlib.util.find_spec("pycocoevalcap")
    for folder in (found.submodule_search_locations or []) if found else []:
        jar = Path(folder) / "tokenizer" / JAR
        if jar.is_file():
            return jar
    return None


def run_java(binary: str, jar: Path, lines: Sequence[str]) -> list[str]:
    """Raw output lines of the tokenizer for input lines; UserError where Java fails or loses a line."""
    with tempfile.TemporaryDirectory(prefix="peftbench-ptb-") as folder:
        source = Path(folder) / "captions.txt"
        source.write_bytes("\n".join(lines).encode())
        command = [
            binary,
            "-cp",
            str(jar),
            "edu.stanford.nlp.process.PTBTokenizer",
            "-preserveLines",
            "-lowerCase",
        ]
        done = subprocess.run([*command, str(source)], capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[:1]
        raise UserError(
            f"Java's tokenizer failed ({' '.join(reason)}): set java: never, or mend the Java installation"
        )
    return done.stdout.decode().split("\n")


def _ask_java(
    binary: str, jar: Path, wanted: list[tuple[tuple[str, str], list[str]]]
) -> dict[tuple[str, str], str]:
    # Each line with those that follow it, then a plain word, so that none touches another; the last line comes last.
    wanted = sorted(wanted, key=lambda item: item[0][1].endswith(END))
    lines: list[str] = []
    rows = []
    for (line, context), following in wanted:
        rows.append(len(lines))
        lines.append(line)
        if context.endswith(END):
            lines += following[:-1]
        else:
            lines += [*(following if context else ["x"]), "x"]
    out = run_java(binary, jar, lines)
    if len(out) < len(lines):
        raise UserError(
            f"Java's tokenizer returned {len(out)} lines for {len(lines)}: a caption holds a line separator"
        )
    return {
        key: " ".join(word for word in out[row].rstrip().split(" ") if word not in PUNCTUATION)
        for (key, _), row in zip(wanted, rows, strict=True)
    }


_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_APPROXIMATE = re.compile(
    r"""(?:[^\W\d_]\.){2,}                       # u.s.
    | '(?:s|re|ve|ll|d|m)\b | [^\W_]+(?=n't) | n't
    | [^\W_]+(?:(?:[-/.&@_]|(?<=\d)[,:](?=\d))[^\W_]+)*
    | \*+ | _+ | [()\[\]{}%$\#&@+=<>|^~/\\]""",
    re.VERBOSE,
)


def approximate(line: str) -> str:
    """The nearest rule without Java: words in lower case, clitics apart, punctuation dropped."""
    tokens: list[str] = []
    for chunk in line.split():
        try:
            tokens += chunk_tokens(chunk).split()
        except _NotOursError:
            tokens += [
                _BRACKETS.get(piece, piece) for piece in _APPROXIMATE.findall(chunk.lower().replace("’", "'"))
            ]
    return " ".join(tokens)


def _kept_file() -> Path | None:
    folder = cache_dir()
    return None if folder is None else folder / "ptb" / "lines-1.jsonl"


def _read_kept() -> dict[tuple[str, str], str]:
    """Kept answers of Java. Each row carries a checksum, so a row torn by a crash is skipped."""
    path = _kept_file()
    kept: dict[tuple[str, str], str] = {}
    if path is None:
        return kept
    with contextlib.suppress(OSError):
        for row in path.read_bytes().split(b"\n"):
            if row[:8] == b"%08x" % zlib.crc32(row[8:]):
                line, context, tokens = msgspec.json.decode(row[8:], type=tuple[str, str, str])
                kept[line, context] = tokens
    return kept


def _keep(fresh: dict[tuple[str, str], str]) -> None:
    """Append answers of Java in one write; a folder that cannot be written is no error."""
    path = _kept_file()
    if path is None:
        return
    rows = [msgspec.json.encode((line, context, tokens)) for (line, context), tokens in fresh.items()]
    data = b"".join(b"%08x%b\n" % (zlib.crc32(row), row) for row in rows)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        full = path.exists() and path.stat().st_size > CACHE_LIMIT
        with path.open("wb" if full else "ab") as handle:
            handle.write(data)


def captions_digest(captions: Sequence[str]) -> str:
    """sha256 (hex) of captions in their order: the identity of a set of references."""
    digest = hashlib.sha256()
    for text in captions:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
