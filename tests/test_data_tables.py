"""The language of data set files, and the readers of tables."""

import gzip
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peftbench.data.load import read_examples
from peftbench.data.prepare import prepare_dataset
from peftbench.data.tables.expressions import BadRow, Expression, MissingColumn, pruned
from peftbench.data.tables.joined import Lookup
from peftbench.data.tables.json_stream import json_rows
from peftbench.data.tables.readers import table_rows
from peftbench.data.tables.spec import Table, parse
from peftbench.errors import UserError
from peftbench.spec import PrepareSpec

ROW = {
    "question": " What? ",
    "answers": [{"answer": "a", "id": 1}, {"answer": "b", "id": 2}],
    "raw": '["x", "y"]',
    "listed": "['it\\'s', 'ok']",
    "image_id": 9,
    "text_id": "9",
    "path": "http://h/a/b.c.jpg",
    "types": {"structural": "verify"},
    "dotted.name": 5,
    "empty": "",
    "none": None,
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("question", " What? "),
        ("question | strip | lower", "what?"),
        ("answers[].answer", ["a", "b"]),
        ("answers[1].answer", "b"),
        ("types.structural", "verify"),
        ("raw | json", ["x", "y"]),
        ("listed | python", ["it's", "ok"]),
        ("image_id | list", [9]),
        ("path | base", "b.c.jpg"),
        ("path | stem", "b.c"),
        ("path | folder", "http://h/a"),
        ("path | split /", ["http:", "", "h", "a", "b.c.jpg"]),
        ("dotted.name", 5),
        ("none", None),
        ("none | json", None),
        ("none.deeper", None),
        ("COCO_{image_id:012d}.jpg", "COCO_000000000009.jpg"),
        ("COCO_{text_id:012d}.jpg", "COCO_000000000009.jpg"),
        ("{path|stem}-{image_id}", "b.c-9"),
        ("= yes, {this} stays", "yes, {this} stays"),
    ],
)
def test_expressions(text: str, value: Any) -> None:
    assert Expression(text)(ROW) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("qestion", "no column 'qestion'; did you mean 'question'"),
        ("answers[].text", "has no value"),
        ("answers[7].answer", "has no value"),
        ("question | json", "has no value"),
        ("listed | json", "has no value"),
        ("{question:d}", "has no value"),
        ("x{empty}", "a part of it is empty"),
        ("x{none}", "a part of it is empty"),
    ],
)
def test_what_a_row_lacks_is_said(text: str, message: str) -> None:
    with pytest.raises(BadRow, match=message):
        Expression(text)(ROW)


@pytest.mark.parametrize(
    "text", ["question | jsn", "", "| json", "{question", "{question}}", "a } b{question}"]
)
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        Expression(text)


def test_expressions_run_no_code() -> None:
    row = {"x": "__import__('os').getcwd()", "y": "A"}
    with pytest.raises(BadRow):
        Expression("x | python")(row)
    with pytest.raises(MissingColumn):
        Expression("{y.__class__.__mro__}")({"z": 1})
    with pytest.raises(BadRow):
        Expression("{y.__class__}")(row)


def test_pruning_keeps_what_expressions_read() -> None:
    paths = {"answers[].answer", "types.structural", "dotted.name", "absent"}
    kept = pruned(ROW, paths)
    assert kept["answers"] == [{"answer": "a"}, {"answer": "b"}]
    assert set(kept) == {"answers", "types", "dotted.name"}
    for path in paths - {"absent"}:
        assert Expression(path)(kept) == Expression(path)(ROW)


# ---- JSON as a stream -------------------------------------------------------------------------------------------


class Dribble(io.BytesIO):
    """A stream that gives a few bytes at a time: every place is once the end of a chunk."""

    def __init__(self, data: bytes, step: int) -> None:
        super().__init__(data)
        self.step = step

    def read(self, size: int | None = -1) -> bytes:
        return super().read(self.step)


DOCUMENT = {
    "info": {"x": [1, {"annotations": []}]},
    "long": [[i, str(i)] for i in range(30)],
    "number": -12.5e3,
    "annotations": [
        {"a": 'é"\\ }]', "b": [1.25, None, True]},
        {"a": "𝄞 ,", "b": []},
        {"a": "", "b": [12345]},
    ],
    "after": "ignored",
}


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_json_rows_whatever_the_chunks(step: int, ascii_only: bool) -> None:
    data = json.dumps(DOCUMENT, ensure_ascii=ascii_only, indent=step % 2).encode()
    assert list(json_rows(Dribble(data, step), "annotations")) == DOCUMENT["annotations"]
    assert list(json_rows(Dribble(data, step), "long")) == DOCUMENT["long"]
    assert list(json_rows(Dribble(data, step), "info.x")) == [1, {"annotations": []}]
    assert list(json_rows(Dribble(data, step), "")) == [DOCUMENT]
    numbers = [10, 200, 3000, -1, 12.5]
    assert list(json_rows(Dribble(json.dumps(numbers).encode(), step), "")) == numbers
    assert list(json_rows(Dribble(b"\xef\xbb\xbf [] ", step), "")) == []


@pytest.mark.parametrize(
    ("data", "field", "message"),
    [
        (b'{"a": []}', "b", "no key 'b'; there is a"),
        (b'{"a": 5}', "a", "'a' is no list"),
        (b"[1]", "a", "no key 'a'"),
        (b'{"a": [1, 2', "a", "the end"),
        (b'{"a": [1 2]}', "a", "is expected"),
        (b'{"a": [{"b": "unfinished', "a", "Unterminated string"),
        (b"[1] x", "", "more after the end"),
        (b"", "", "Expecting value"),
        (b'["\xff"]', "", "not UTF-8"),
    ],
)
def test_broken_json_is_one_line(data: bytes, field: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        list(json_rows(io.BytesIO(data), field))
    assert "\n" not in str(error.value)


# ---- Tables -----------------------------------------------------------------------------------------------------

ROWS = [{"id": str(i), "text": f'line {i}, "quoted"\nand é'} for i in range(5)]


def csv_bytes(separator: str = ",") -> bytes:
    lines = [separator.join(("id", "text"))]
    lines += [f'{r["id"]}{separator}"{r["text"].replace(chr(34), chr(34) * 2)}"' for r in ROWS]
    return "\n".join(lines).encode("utf-8-sig")


def parquet_bytes() -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), stream, row_group_size=2)
    return stream.getvalue()


FORMS = {
    "t.csv": csv_bytes(),
    "t.tsv": csv_bytes("\t"),
    "t.jsonl": "\n".join(json.dumps(r) for r in ROWS).encode() + b"\n\n",
    "t.json": json.dumps(ROWS).encode(),
    "t.parquet": parquet_bytes(),
}


def plain(rows: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("way", ["file", "zip", "gz"])
def test_all_formats_in_all_wrappings(name: str, way: str, tmp_path: Path) -> None:
    if way == "gz" and name.endswith("parquet"):
        pytest.skip("parquet is compressed inside")
    if way == "file":
        (tmp_path / name).write_bytes(FORMS[name])
    elif way == "gz":
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(FORMS[name]))
    else:
        with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"a/b/{name}", FORMS[name])
            archive.writestr(f"__MACOSX/a/b/._{name}", b"litter")
    table = Table(in_="x", member=f"*{name}" if way == "zip" else "")
    rows = list(table_rows(table, {"x": tmp_path}, None))
    assert plain(rows) == ROWS
    assert [row["_row"] for row in rows] == list(range(5))
    assert rows[0]["_folder"] == ("b" if way == "zip" else "")


def test_several_files_are_one_table_in_natural_order(tmp_path: Path) -> None:
    for i in (10, 9, 1):
        (tmp_path / f"part-{i}.jsonl").write_text(json.dumps({"n": i}))
    rows = list(table_rows(Table(in_="x", file="*.jsonl"), {"x": tmp_path}, None))
    assert [(row["n"], row["_row"]) for row in rows] == [(1, 0), (9, 1), (10, 2)]


@pytest.mark.parametrize(
    ("name", "data", "table", "message"),
    [
        ("t.csv", b"a,b\n1,2,3\n", {}, "line 2: more or fewer fields than the header's 2"),
        ("t.csv", b"a,b\n1\n", {}, "line 2: more or fewer fields"),
        ("t.csv", b'a,b\n"1,2\n', {}, "not valid CSV"),
        ("t.csv", "a\né\n".encode("latin-1"), {}, "not UTF-8"),
        ("t.jsonl", b'{"a": 1}\n{"a"\n', {}, "line 2: not JSON"),
        ("t.json", b'{"rows": []}', {"field": "row"}, "no key 'row'; there is rows"),
        ("t.json", b"[1, 2]", {}, "row 0 is int, not an object"),
        ("t.parquet", b"PAR1 not really PAR1", {}, "not readable parquet"),
        ("t.xlsx", b"", {}, "cannot tell the format"),
        ("t.csv", b"a\n1\n", {"file": "*.tsv"}, "no file matches '\\*.tsv'.*t.csv"),
        ("t.csv", b"a\n1\n", {"member": "x"}, "no zip archive"),
        ("t.zip", b"PK nonsense", {}, "not a readable zip archive"),
    ],
)
def test_unreadable_tables_are_one_line(
    name: str, data: bytes, table: dict[str, str], message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        list(table_rows(Table(in_="x", **table), {"x": tmp_path}, None))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_lookup_joins_by_key_and_finds_doubles() -> None:
    rows = [{"_row": i, "key": i * 7, "big": "x" * i, "other": 1} for i in range(50)]
    lookup = Lookup(rows, "key", {"big"}, "table")
    assert lookup.find("49") == lookup.find(49) == {"big": "x" * 7}
    with pytest.raises(BadRow, match="no row with key '50'"):
        lookup.find(50)
    with pytest.raises(UserError, match="key '7' occurs twice"):
        Lookup([*rows, {"_row": 50, "key": "7"}], "key", {"big"}, "table")
    with pytest.raises(UserError, match="row 0: no column 'kez'"):
        Lookup(rows, "kez", {"big"}, "table")


# ---- The block --------------------------------------------------------------------------------------------------


def block(**changes: Any) -> dict[str, Any]:
    source: dict[str, Any] = {
        "kind": "table",
        "from": {"own": {"path": "x"}},
        "splits": {"test": {"rows": {"in": "own"}}},
        "row": {"question": "q", "answers": "a"},
    }
    return source | changes


def test_defaults_are_written_out_and_read_back() -> None:
    typed = parse(block(image={"in": "own", "name": "{f}"}))
    written = msgspec.to_builtins(typed)
    assert written["from"] == ["own"] and written["tolerate"] == 0 and written["row"]["target"] == "first"
    assert parse(written) == typed


def test_a_splits_image_differs_where_it_says_so() -> None:
    split = {"rows": {"in": "own"}, "image": {"in": "b"}}
    origins = {"own": {"path": "x"}, "b": {"path": "y"}}
    typed = parse(block(**{"from": origins}, splits={"test": split}, image={"in": "own", "name": "{f}"}))
    picture = typed.splits["test"].image
    assert picture is not None and (picture.in_, picture.name) == ("b", "{f}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splitz": {}}, "source: unknown key 'splitz'; did you mean 'splits'"),
        (
            {"row": {"answers": "a", "qestion": "q"}},
            "source.row: unknown key 'qestion'; did you mean 'question'",
        ),
        ({"splits": {"test": {}}}, "source.splits.test: key 'rows' is missing"),
        (
            {"splits": {"test": {"rows": {"in": "own", "feild": "x"}}}},
            "source.splits.test.rows: unknown key 'feild'; did you mean 'field'",
        ),
        ({"splits": {"test": {"rows": {"in": "owm"}}}}, "no origin 'owm' in 'from'; did you mean 'own'"),
        ({"row": {"answers": "a", "target": "second"}}, "source.row.target: invalid enum value 'second'"),
        (
            {"row": {"answers": "a | jsn"}},
            "source.row.answers: .*unknown function 'jsn'; did you mean 'json'",
        ),
        ({"row": {"question": "q"}}, "give 'answers', or 'choices' and 'answer'"),
        ({"row": {"answers": "a", "target": "letter"}}, "letter needs 'choices' and 'answer'"),
        ({"row": {"answer": "a"}}, "no choices to point to"),
        ({"image": {}}, "source.image: give exactly one of column and in"),
        ({"image": {"in": "own"}}, "source.image: key 'name' is missing"),
        ({"tolerate": -1}, "source.tolerate"),
        ({"splits": [1]}, "source.splits"),
        (
            {"splits": {"test": {"rows": {"in": "own"}, "join": {"rows": {"in": "own"}, "by": "k"}}}},
            "source.row: key 'id' is missing",
        ),
    ],
)
def test_mistakes_in_the_file_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse(block(**changes))
    assert "\n" not in str(error.value)


# ---- From rows to examples --------------------------------------------------------------------------------------


def prepared(tmp_path: Path, rows: list[dict[str, Any]], row: dict[str, Any], n: int, **changes: Any) -> Any:
    """Prepare rows as a test split; the folder is new each time."""
    place = tmp_path / str(len(list(tmp_path.iterdir())))
    (place / "own").mkdir(parents=True)
    (place / "own/rows.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    source = msgspec.to_builtins(parse(block(row=row, **changes)))
    spec = PrepareSpec(dataset="mine", source=source, splits={"test": n})
    prepare_dataset(spec, place / "out", place / "images", {"own": place / "own"})
    return read_examples(place / "out", "test")


def test_choices_by_index_letter_and_text(tmp_path: Path) -> None:
    rows = [
        {"q": "?", "c": ["x", "y", "z"], "i": 2, "s": "2", "l": "c", "t": "z", "a": "x", "b": "y", "d": None}
    ]
    for answer, kind in (("i", "index"), ("s", "index"), ("l", "letter"), ("t", "text")):
        row = {"question": "q", "choices": "c", "answer": answer, "answer_is": kind, "target": "choice"}
        [made] = prepared(tmp_path, rows, row, 1)
        assert (made.answer_index, made.target, made.answers) == (2, "z", ["z"])
        [made] = prepared(tmp_path, rows, row | {"target": "letter"}, 1)
        assert (made.target, made.answers) == ("C", ["C"])
    row = {
        "question": "q",
        "choices": ["a", "b", "d"],
        "answer": "= B",
        "answer_is": "letter",
        "target": "letter",
    }
    [made] = prepared(tmp_path, rows, row, 1)
    assert made.choices == ["x", "y"] and made.target == "B"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"a": []}, "it has no answers"),
        ({"a": None}, "it has no answers"),
        ({"a": " "}, "it has no answers"),
        ({"a": ["", "b"]}, "empty target"),
        ({"a": "x", "c": []}, "it has no choices"),
        ({"a": "x", "c": "text"}, "its choices are no list"),
        ({"a": "x", "c": ["x", ""]}, "one of its choices is empty"),
        ({"a": "x", "i": 2}, "its answer 2 is none of its 2 choices"),
        ({"a": "x", "i": -1}, "its answer -1 is none"),
        ({"a": "x", "i": None}, "its answer None is none"),
        ({"id": "", "a": "x"}, "its id is empty"),
    ],
)
def test_bad_rows(bad: dict[str, Any], message: str, tmp_path: Path) -> None:
    good = {"id": "g", "q": "?", "a": ["x"], "c": ["x", "y"], "i": 0}
    row = {"id": "id", "question": "q", "answers": "a", "choices": "c", "answer": "i"}
    with pytest.raises(UserError, match=message):
        prepared(tmp_path, [good, good | {"id": "b"} | bad], row, 2)
    [made] = prepared(tmp_path, [good, good | {"id": "b"} | bad], row, 1, tolerate=1)
    assert made.id == "g"


def test_equal_rows_get_ids_of_their_own_whatever_the_order(tmp_path: Path) -> None:
    rows = [{"q": "same", "a": "x"}, {"q": "other", "a": "x"}, {"q": "same", "a": "x"}]
    row = {"question": "q", "answers": "a"}
    ids = [example.id for example in prepared(tmp_path, rows, row, 3)]
    assert ids[2] == f"{ids[0]}-1" and len(set(ids)) == 3
    assert sorted(ids) == sorted(example.id for example in prepared(tmp_path, rows[::-1], row, 3))


def test_doubled_ids_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="row '1': its id occurs twice"):
        prepared(tmp_path, [{"q": "?", "a": "x"}] * 2, {"id": "= 1", "question": "q", "answers": "a"}, 2)


def test_parallel_lists_become_rows(tmp_path: Path) -> None:
    rows = [{"k": "b1", "q": ["who", "what"], "a": ["me", "that"]}, {"k": "b2", "q": [], "a": []}]
    row = {"id": "{k}-{_item}", "question": "q", "answers": "a"}
    made = prepared(tmp_path, rows, row, 2, explode=["q", "a"])
    assert [(m.id, m.question, m.target) for m in made] == [("b1-0", "who", "me"), ("b1-1", "what", "that")]
    with pytest.raises(UserError, match="q, a have 2, 1 elements"):
        prepared(tmp_path, [rows[0] | {"a": ["me"]}], row, 2, explode=["q", "a"])


def test_most_common_answer_and_ties(tmp_path: Path) -> None:
    rows = [{"q": "?", "a": ["b", "a", "a", "b"]}, {"q": "!", "a": ["b", "a", "a"]}]
    made = prepared(tmp_path, rows, {"question": "q", "answers": "a", "target": "most_common"}, 2)
    assert [m.target for m in made] == ["b", "a"]
    assert made[0].answers == ["b", "a", "a", "b"]


def test_filters(tmp_path: Path) -> None:
    rows = [{"q": str(i), "a": "x", "part": i % 3, "note": "" if i % 2 else "n"} for i in range(12)]
    row = {"question": "q", "answers": "a"}
    split = {"rows": {"in": "own"}, "where": {"part": [0, "1"]}, "expected": 8}
    made = prepared(tmp_path, rows, row, 4, splits={"test": split}, has=["note"])
    assert [m.question for m in made] == ["0", "4", "6", "10"]


def test_a_sample_larger_than_its_source_is_refused(tmp_path: Path) -> None:
    rows = [{"q": str(i), "a": "x"} for i in range(5)]
    split = {"rows": {"in": "own"}, "sample": {"take": 4, "skip": 2}}
    with pytest.raises(UserError, match="a sample of 4 rows after 2 is asked for, the source has 5"):
        prepared(tmp_path, rows, {"question": "q", "answers": "a"}, 4, splits={"test": split})


def test_hopeless_files_are_given_up(tmp_path: Path) -> None:
    rows = [{"q": "?", "a": "x"}] + [{"q": "?"}] * 3000
    with pytest.raises(UserError, match="more than 1000 bad rows, 0 tolerated: row 1: no column 'a'"):
        prepared(tmp_path, rows, {"question": "q", "answers": "a"}, 1)


def test_names_of_splits_must_fit(tmp_path: Path) -> None:
    source = msgspec.to_builtins(parse(block()))
    spec = PrepareSpec(dataset="mine", source=source, splits={"tset": 1})
    with pytest.raises(UserError, match=r"source.splits: no split 'tset'; did you mean 'test'"):
        prepare_dataset(spec, tmp_path / "o", tmp_path / "i", {"own": tmp_path})


def test_planning_imports_nothing_heavy() -> None:
    code = (
        "import sys, peftbench.data.sources.table, peftbench.data.sources.embedded;"
        "heavy = {'torch', 'transformers', 'datasets', 'huggingface_hub', 'numpy', 'pyarrow', 'polars', 'PIL'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "[]"
