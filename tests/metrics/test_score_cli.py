"""``peftbench score`` as people use it: files in, one line of JSON out."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftbench import score_cli
from peftbench.cli import main as peftbench
from peftbench.metrics import _cache, _formats, _vqa_refs


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Files:
    """Predictions and references in a folder, and the command over them."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        self.predictions, self.references = folder / "p.jsonl", folder / "r.jsonl"
        self.out = folder / "out.jsonl"

    def put(self, predictions: list[tuple[Any, Any]], references: list[dict[str, Any]]) -> None:
        write(self.predictions, [{"id": name, "prediction": text} for name, text in predictions])
        write(self.references, references)

    def run(self, metric: str, *more: str) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
        arguments = ["score", "--metric", metric, "--predictions", str(self.predictions)]
        arguments += ["--references", str(self.references), "--per-example", str(self.out), *more]
        status = peftbench(arguments)
        captured = self.capsys.readouterr()
        assert status == 0, captured.err
        rows = [json.loads(line) for line in self.out.read_text().splitlines()]
        return json.loads(captured.out), rows, captured.err

    def fail(self, metric: str, *more: str) -> str:
        arguments = ["score", "--metric", metric, "--predictions", str(self.predictions)]
        status = peftbench([*arguments, "--references", str(self.references), *more])
        captured = self.capsys.readouterr()
        assert status == 1
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        return captured.err


@pytest.fixture
def files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Files:
    return Files(tmp_path, capsys)


TEN = ["yes"] * 10


def test_vqa_score(files: Files) -> None:
    files.put(
        [("b", "dog"), ("a", "Yes"), (3, "two")],
        [
            {"id": "a", "answers": TEN},
            {"id": "b", "answers": ["the dog"] * 3 + [str(n) for n in range(7)]},
            {"id": 3, "answers": [{"answer": "two"}] * 9 + [{"answer": "2"}]},
        ],
    )
    result, rows, _ = files.run("vqa_score", "--variant", "official")
    assert rows == [{"id": "a", "score": 0.0}, {"id": "b", "score": 90.0}, {"id": 3, "score": 100.0}]
    assert result["metric"] == "vqa_score"
    assert result["score"] == pytest.approx(190 / 3)
    assert result["n"] == 3
    assert result["extra"]["variants"]["evalai"] == pytest.approx(290 / 3)
    default, _, _ = files.run("vqa_score")
    assert default["score"] == pytest.approx(290 / 3)


def test_scienceqa_counts_a_missing_prediction_as_wrong(files: Files) -> None:
    files.put(
        [("1", "A"), ("2", "The answer is B.")],
        [{"id": str(n), "choices": ["x", "y"], "answer_index": n - 1} for n in (1, 2)]
        + [{"id": "3", "choices": ["x", "y"], "answer_index": 0, "image": "i.png", "grade": "grade2"}],
    )
    result, rows, warned = files.run("scienceqa")
    assert [row["score"] for row in rows] == [100.0, 100.0, 0.0]
    assert result["score"] == pytest.approx(200 / 3)
    assert warned == "warning: no prediction for id '3': counted as wrong, as the official code does\n"
    strict, _, _ = files.run("scienceqa", "--variant", "lmms_eval")
    assert strict["score"] == pytest.approx(100 / 3)


def test_other_metrics(files: Files) -> None:
    files.put([(1, "a dog runs"), (2, "x")], [{"id": n, "captions": ["a dog runs", "a dog"]} for n in (1, 2)])
    result, rows, _ = files.run("cider")
    assert result["score"] == pytest.approx(sum(row["score"] for row in rows) / 2)
    files.put(
        [(1, "circle"), (2, "7 ")],
        [{"id": 1, "choices": ["circle", "x"], "answer_index": 0}, {"id": 2, "answer": "7"}],
    )
    assert files.run("iconqa")[0]["score"] == 100.0
    assert files.run("iconqa", "--set", "rule=official")[0]["score"] == 50.0
    files.put([(1, "Jane."), (2, "jane")], [{"id": n, "answers": ["Jane"]} for n in (1, 2)])
    assert files.run("exact_match")[0]["score"] == 50.0
    files.put([(1, "No"), (2, "yes")], [{"id": n, "label": "no", "category": "random"} for n in (1, 2)])
    assert files.run("pope")[0]["extra"]["yes_rate"] == 50.0
    files.put([(1, "Rating: 6"), (2, "none")], [{"id": n} for n in (1, 2)])
    assert files.run("mmhal")[0]["score"] == 3.0
    files.put([(1, "a dog"), (2, "a cat")], [{"id": n, "objects": ["dog", "cat"][n - 1 :]} for n in (1, 2)])
    assert files.run("chair")[0]["score"] == 0.0


def test_questions_of_one_image_are_a_cluster(files: Files) -> None:
    guesses = [(n, "yes" if n < 4 else "no") for n in range(8)]
    files.put(guesses, [{"id": n, "answers": TEN, "image_id": n // 4} for n in range(8)])
    together = files.run("vqa_score")[0]
    files.put(guesses, [{"id": n, "answers": TEN, "image_id": n} for n in range(8)])
    alone = files.run("vqa_score")[0]
    assert together["extra"]["uncertainty"]["clusters"] == 2
    assert together["stderr"] > 2 * alone["stderr"]


@pytest.mark.parametrize(
    ("predictions", "references", "metric", "message"),
    [
        ([("a", "x")], [("a", TEN), ("b", TEN)], "vqa_score", "no prediction for id 'b'"),
        ([("a", "x"), ("c", "x")], [("a", TEN)], "vqa_score", "id 'c' is in no reference row"),
        ([("a", "x"), ("a", "y")], [("a", TEN)], "vqa_score", "id 'a' appears twice"),
        ([("a", "x")], [("a", TEN), ("a", TEN)], "vqa_score", "id 'a' appears twice"),
        ([("a", None)], [("a", TEN)], "vqa_score", "line 1 (row 'a'): Expected `str`, got `null`"),
        ([("a", 7)], [("a", TEN)], "vqa_score", "got `int`"),
        ([("a", "x")], [("a", [])], "vqa_score", "row 'a' has no answers"),
        ([("a", "x")], [("a", ["x", 3])], "vqa_score", "line 1 (row 'a')"),
        ([("a", "x")], [("a", TEN[:9])], "m4c", "row 'a' has 9 answers"),
    ],
)
def test_wrong_rows_are_one_line_that_names_them(
    files: Files,
    predictions: list[tuple[Any, Any]],
    references: list[tuple[str, list[Any]]],
    metric: str,
    message: str,
) -> None:
    files.put(predictions, [{"id": name, "answers": answers} for name, answers in references])
    if metric == "m4c":
        assert message in files.fail("vqa_score", "--variant", "m4c")
    else:
        assert message in files.fail(metric)


def test_other_wrong_input(files: Files) -> None:
    files.put([("a", "A")], [{"id": "a", "choices": ["x"], "answer_index": 1}])
    assert "row 'a': answer_index 1 is none of its 1 choices" in files.fail("scienceqa")
    assert "unknown metric 'sciencequa'; did you mean 'scienceqa'?" in files.fail("sciencequa")
    assert "has no setting 'rle'; did you mean 'rule'?" in files.fail("scienceqa", "--set", "rle=1")
    assert "write NAME=VALUE" in files.fail("scienceqa", "--set", "rule")
    assert "has no variants" in files.fail("pope", "--variant", "x")
    files.references.write_text("")
    assert "the file is empty" in files.fail("scienceqa")
    assert "the file is empty" in files.fail("vqa_score")
    files.references.write_text('{"answers": ["x"]}\n')
    assert 'has no "id"' in files.fail("vqa_score")
    files.predictions.write_bytes(b'{"id": 1, "prediction": "\xff"}\n')
    assert "line 1: not UTF-8" in files.fail("vqa_score")
    files.predictions.write_text('{"id": 1, "prediction": \n')
    assert "line 1: not JSON" in files.fail("vqa_score")
    files.predictions.unlink()
    assert "No such file" in files.fail("vqa_score")


def test_nine_answers_are_scored_as_the_official_code_does_with_a_warning(files: Files) -> None:
    files.put(
        [("a", "yes"), ("b", "yes")],
        [{"id": "a", "answers": TEN}, {"id": "b", "answers": ["yes"] * 2 + ["no"]}],
    )
    result, rows, warned = files.run("vqa_score")
    assert rows[1]["score"] == pytest.approx(100 * (1 / 3 + 1 / 3 + 2 / 3) / 3)
    assert warned == "warning: 1 questions do not have ten answers (first: b): scored over theirs\n"
    assert result["extra"]["variants"]["m4c"] is None


def test_odd_texts_survive(files: Files) -> None:
    texts = ["\ud800", "😀\n\t", "", "x" * 10_000, "\u2028"]
    files.put(list(enumerate(texts)), [{"id": n, "answers": [text] * 10} for n, text in enumerate(texts)])
    result, rows, _ = files.run("vqa_score", "--variant", "official")
    assert result["score"] == 100.0
    assert [row["id"] for row in rows] == [0, 1, 2, 3, 4]
    files.put([("\ud800", "x")], [{"id": "\ud800", "answers": TEN}])
    assert files.run("vqa_score")[1] == [{"id": "\ud800", "score": 0.0}]


OFFICIAL = {
    "info": {"x": [1]},
    "annotations": [
        {
            "question_type": "what }, {",
            "multiple_choice_answer": "net",
            "answers": [
                {"answer": text, "answer_confidence": "yes", "answer_id": n + 1} for n, text in enumerate(TEN)
            ],
            "image_id": number // 3,
            "answer_type": ["yes/no", "other"][number % 2],
            "question_id": 1000 + number,
        }
        for number in range(300)
    ],
    "data_type": "mscoco",
}


@pytest.mark.parametrize("layout", ["plain", "compact", "indented", "array", "block"])
def test_official_files_in_any_layout(files: Files, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    separators = (",", ":") if layout == "compact" else None
    content = OFFICIAL["annotations"] if layout == "array" else OFFICIAL
    files.references.write_text(
        json.dumps(content, separators=separators, indent=1 if layout == "indented" else None)
    )
    files.predictions.write_text(
        json.dumps([{"question_id": 1000 + n, "answer": "yes" if n % 3 else "no"} for n in range(300)])
    )
    if layout == "block":
        monkeypatch.setattr(_vqa_refs, "BLOCK", 5000)
    for _ in range(2):  # compiled, then kept
        result, rows, _ = files.run("vqa_score")
        assert result["score"] == pytest.approx(200 / 3)
        assert rows[0] == {"id": 1000, "score": 0.0}
        assert result["extra"]["uncertainty"]["clusters"] == 100
        assert result["extra"]["by_answer_type"]["other"]["n"] == 150
    # The file changes at once, within one tick of the clock perhaps: what was kept must not be used.
    changed = json.loads(files.references.read_text())
    listed = changed if layout == "array" else changed["annotations"]
    listed[0]["answers"] = [{"answer": "no"}] * 10
    files.references.write_text(json.dumps(changed))
    assert files.run("vqa_score")[1][0]["score"] == 100.0


def test_a_bad_row_of_an_official_file_is_named(files: Files) -> None:
    content = json.loads(json.dumps(OFFICIAL))
    content["annotations"][7]["answers"][3] = {"answer": None}
    files.references.write_text(json.dumps(content))
    files.predictions.write_text(json.dumps([{"question_id": 1000 + n, "answer": "yes"} for n in range(300)]))
    assert "row 7 (row 1007): Expected `str`, got `null`" in files.fail("vqa_score")


def test_a_damaged_or_foreign_cache_is_no_error(
    files: Files, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cache, "RACY_SECONDS", -1.0)
    files.put([("a", "yes")], [{"id": "a", "answers": TEN}])
    files.run("vqa_score")
    (kept,) = (own_cache / "vqa").iterdir()
    kept.write_bytes(kept.read_bytes()[:50])
    assert files.run("vqa_score")[0]["score"] == 100.0
    (known,) = (own_cache / "files").iterdir()
    known.write_text("[]")
    assert files.run("vqa_score")[0]["score"] == 100.0


@pytest.mark.parametrize("form", _formats.FORMATS)
def test_exported_predictions_come_back(files: Files, form: str) -> None:
    files.put([(1, "a\tb"), ("x", 'say "é"\n'), (7, "")], [])
    target = files.folder / ("exported.tsv" if form == "vlmevalkit" else "exported.json")
    status = peftbench(
        ["score", "--predictions", str(files.predictions), "--export", str(target), "--export-format", form]
    )
    assert status == 0
    assert _formats.read_predictions(target) == ([1, "x", 7], ["a\tb", 'say "é"\n', ""])


def test_files_of_other_evaluators(files: Files) -> None:
    llava = {
        "question_id": 4,
        "prompt": "p",
        "text": "yes",
        "answer_id": "k",
        "model_id": "m",
        "metadata": {},
    }
    lmms = {"doc_id": 4, "target": "t", "resps": [["yes", "no"]], "doc_hash": "h"}
    newer = {"doc_id": 4, "target": "t", "filtered_resps": ["yes"], "resps": [["longer yes"]]}
    for row in (llava, lmms, newer):
        write(files.predictions, [row])
        assert _formats.read_predictions(files.predictions) == ([4], ["yes"])
    write(files.references, [{"question_id": 4, "answers": TEN}])
    assert files.run("vqa_score")[0]["score"] == 100.0
    write(files.predictions, [{"doc_id": 4, "filtered_resps": []}])
    assert "doc_id 4 has no response" in files.fail("vqa_score")


def test_a_spreadsheet_of_vlmevalkit(files: Files) -> None:
    path = files.folder / "model_set.xlsx"
    name = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    strings = ["index", "question", "prediction", "what?", "a <b> & c"]
    shared = "".join(f"<si><t>{s.replace('&', '&amp;').replace('<', '&lt;')}</t></si>" for s in strings)
    heading = "".join(f'<c r="{column}1" t="s"><v>{n}</v></c>' for n, column in enumerate("ABC"))
    sheet = (
        f'<row r="1">{heading}</row>'
        '<row r="2"><c r="A2"><v>12</v></c><c r="B2" t="s"><v>3</v></c><c r="C2" t="s"><v>4</v></c></row>'
        '<row r="3"><c r="A3"><v>13.0</v></c><c r="C3" t="inlineStr"><is><t>yes</t></is></c></row>'
        '<row r="4"><c r="A4"><v>14</v></c></row>'
    )
    with zipfile.ZipFile(path, "w") as book:
        book.writestr("xl/sharedStrings.xml", f"<sst {name}>{shared}</sst>")
        book.writestr(
            "xl/worksheets/sheet1.xml", f"<worksheet {name}><sheetData>{sheet}</sheetData></worksheet>"
        )
    assert _formats.read_predictions(path) == ([12, 13, 14], ["a <b> & c", "yes", ""])
    path.write_bytes(b"no zip")
    files.predictions = path
    assert "not a spreadsheet" in files.fail("vqa_score")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=1, max_size=6))
def test_every_format_keeps_every_text(texts: list[str]) -> None:
    import tempfile

    ids = list(range(len(texts)))
    with tempfile.TemporaryDirectory() as folder:
        for form in _formats.FORMATS:
            path = Path(folder) / ("x.tsv" if form == "vlmevalkit" else "x.json")
            path.write_bytes(_formats.write_predictions(ids, texts, form))
            assert _formats.read_predictions(path) == (ids, texts)


def test_the_command_needs_neither_torch_nor_numba(files: Files) -> None:
    files.put([(1, "a dog"), (2, "x")], [{"id": n, "captions": ["a dog runs", "a dog"]} for n in (1, 2)])
    program = (
        "import sys; from peftbench.score_cli import run; "
        f"run(['score', '--metric', 'cider', '--predictions', {str(files.predictions)!r}, "
        f"'--references', {str(files.references)!r}]); "
        "heavy = {'torch', 'numba', 'scipy', 'transformers', 'polars', 'pyarrow'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_says_the_row_formats(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        score_cli.run(["score", "--help"])
    assert '{"id", "answers": [...]}' in capsys.readouterr().out
