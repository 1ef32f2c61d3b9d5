import csv
import json
import re
import shutil
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annotation_study import METHODS, PROMPT, Study, truth, write_csv, write_json
from peftbench.annotation.collect import FORMAT, import_annotations
from peftbench.annotation.counts import automatic, count, free_of_hallucinations, report
from peftbench.annotation.sheet import SheetAnswer, SheetItem, System, make_sheet, read_sheet
from peftbench.errors import UserError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def test_a_sheet_is_blind_and_self_contained(study: Study) -> None:
    sheet = study.sheet()
    page = (study.folder / "sheet/sheet.html").read_text(encoding="utf-8")
    for word in (*METHODS, "epoch", "predictions"):
        assert word not in page.lower(), f"{word} would tell who wrote an answer"
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    assert "default-src 'none'" in page
    assert page.count("data:image/webp;base64,") == 6
    assert "flickr/0 \\u003cdog>" in page, "an id cannot end the script element"
    assert [item.prompt for item in sheet.items] == PROMPT.templates * 6
    assert read_sheet(study.folder / "sheet") == sheet
    for item in sheet.items:
        assert len({a.text for a in item.answers}) == len(item.answers), "each wording once"
        assert sorted(system for a in item.answers for system in a.systems) == sheet.systems
        for answer in item.answers:
            for system in answer.systems:
                i = study.ids.index(item.id)
                assert answer.text == study.caption(system.method, system.epoch, i)


def test_the_seed_decides_the_order(study: Study) -> None:
    first, again, other = study.sheet(), study.sheet("b"), study.sheet("c", seed=6)
    assert first == again
    assert (study.folder / "sheet/sheet.html").read_bytes() == (study.folder / "b/sheet.html").read_bytes()
    assert first.sheet != other.sheet
    assert [i.id for i in first.items] != [i.id for i in other.items]
    firsts = [" and " in study.sheet(f"s{s}", seed=s).items[0].answers[0].text for s in range(20)]
    assert len(set(firsts)) == 2, "no wording always comes first"
    small = study.sheet("d", draw=3)
    assert [i.id for i in small.items] == [i.id for i in first.items][:3]
    chosen = study.sheet("e", ids=study.ids[:2])
    assert sorted(i.id for i in chosen.items) == sorted(study.ids[:2])


def test_sheets_that_cannot_be_made(study: Study) -> None:
    with pytest.raises(UserError, match="no test example 'x'"):
        study.sheet(ids=["x"])
    with pytest.raises(UserError, match="cannot draw 7 of 6"):
        study.sheet(draw=7)
    with pytest.raises(UserError, match="adapter at epoch 3 is given twice"):
        make_sheet(study.answers[:1] * 2, study.folder / "x", data_dir=study.data, image_store=study.images)
    with pytest.raises(UserError, match="no predictions to annotate"):
        make_sheet([], study.folder / "x", data_dir=study.data, image_store=study.images)
    shutil.rmtree(study.images)
    with pytest.raises(UserError, match="image is missing"):
        study.sheet("y")
    assert not (study.folder / "y").exists()


def test_counts_per_method_and_epoch(study: Study) -> None:
    sheet = study.sheet()
    flags = truth(sheet)
    strict = dict.fromkeys(flags, True)
    files = [
        write_json(study.folder / "ann.json", sheet, "Ann", flags),
        write_csv(study.folder / "bob.csv", sheet, "Bob ", flags, ";"),
        write_csv(study.folder / "cy.csv", sheet, "Cy", strict),
    ]
    annotations = import_annotations(files, study.folder / "sheet" / "key.json")
    assert [person.annotator for person in annotations.people] == ["Ann", "Bob", "Cy"]
    result = report(annotations, study.folder / "out", study.data)
    expected = {("adapter", "3"): 1, ("lora", "3"): 2, ("prefix", "3"): 3, ("prefix", "6"): 4}
    by_source = {(row.method, row.epoch, row.source): row for row in result.counts}
    for (method, epoch), n in expected.items():
        assert by_source[method, epoch, "people (n=3), majority"].hallucinated == n
        assert by_source[method, epoch, "person: Cy"].hallucinated == 6
        assert by_source[method, epoch, "automatic (CHAIR)"].hallucinated == n
    assert by_source["prefix", "avg", "people (n=3), majority"].hallucinated == 3.5
    assert result.agreement.statistic == "Fleiss' kappa"
    rows = list(csv.DictReader((study.folder / "out/hallucination.csv").open(encoding="utf-8")))
    assert {row["source"] for row in rows} == {
        "people (n=3), majority",
        "person: Ann",
        "person: Bob",
        "person: Cy",
        "automatic (CHAIR)",
    }
    adapter = next(row for row in rows if row["method"] == "adapter" and row["epoch"] == "3")
    assert (adapter["n"], adapter["hallucinated"], adapter["rate"]) == ("6", "1", "16.67")
    assert float(adapter["low"]) < 16.67 < float(adapter["high"])
    stored = json.loads((study.folder / "out/hallucination.json").read_text())
    assert {note["annotator"] for note in stored["notes"]} == {"Ann", "Bob", "Cy"}
    assert stored["agreement"]["annotators"] == 3


def test_an_even_split_is_no_hallucination_and_is_told(study: Study) -> None:
    sheet = study.sheet()
    flags = truth(sheet)
    files = [
        write_json(study.folder / "a.json", sheet, "Ann", flags),
        write_json(study.folder / "b.json", sheet, "Bob", dict.fromkeys(flags, False)),
    ]
    result = count(import_annotations(files, study.folder / "sheet"))
    row = next(row for row in result.counts if (row.method, row.epoch) == ("lora", "3"))
    assert (row.source, row.hallucinated, row.disputed) == ("people (n=2), majority", 0, 2)


def test_one_person(study: Study) -> None:
    sheet = study.sheet()
    path = write_json(study.folder / "a.json", sheet, "Ann", truth(sheet))
    result = count(import_annotations([path], study.folder / "sheet"))
    assert {row.source for row in result.counts} == {"people (n=1)"}
    assert result.agreement.problem == "not computable: one annotator"


def test_no_automatic_rate_without_objects(study: Study) -> None:
    sheet = study.sheet()
    table = pq.read_table(study.data / "test.parquet").to_pylist()
    pq.write_table(
        pa.Table.from_pylist([row | {"source": "{}"} for row in table]), study.data / "test.parquet"
    )
    counts, problem = automatic(sheet, study.data)
    assert counts == []
    assert "has no list of objects" in problem


def test_the_automatic_rate_knows_the_objects_of_all_pictures(study: Study) -> None:
    """A sheet of one picture: the object that an answer invents stands on another one."""
    sheet = study.sheet(ids=study.ids[:1])
    counts, problem = automatic(sheet, study.data)
    assert not problem
    assert {row.hallucinated for row in counts} == {1}
    assert {row.silent for row in counts} == {0}
    quiet = msgspec.structs.replace(sheet, items=[sheet_item(item, "nothing to see") for item in sheet.items])
    counts, _ = automatic(quiet, study.data)
    assert {(row.hallucinated, row.silent) for row in counts if row.epoch != "avg"} == {(0, 1)}
    with pytest.raises(UserError, match="no test example 'x'"):
        automatic(
            msgspec.structs.replace(sheet, items=[msgspec.structs.replace(sheet.items[0], id="x")]),
            study.data,
        )


def sheet_item(item: SheetItem, text: str) -> SheetItem:
    systems = sorted(system for answer in item.answers for system in answer.systems)
    return msgspec.structs.replace(item, answers=[SheetAnswer(key="1", text=text, systems=systems)])


def test_embedded_captions_have_objects() -> None:
    from peftbench.data.embedded.flickr30k import draft

    facts = draft(Random(1), "test").facts
    assert facts["objects"]
    assert set(facts["names"]) >= set(facts["objects"])


def test_the_pictures_for_a_second_sheet(study: Study) -> None:
    sheet = study.sheet()
    flags = truth(sheet)
    path = write_json(study.folder / "a.json", sheet, "Ann", flags)
    annotations = import_annotations([path], study.folder / "sheet")
    free = free_of_hallucinations(annotations, System("lora", 3))
    assert sorted(free) == sorted(study.ids[2:])
    assert free_of_hallucinations(annotations, System("lora", 3), 2) == free[:2]
    with pytest.raises(UserError, match="only 4 answers are free of hallucinations, not 5"):
        free_of_hallucinations(annotations, System("lora", 3), 5)
    with pytest.raises(UserError, match="no answers of base"):
        free_of_hallucinations(annotations, System("base", -1))


def first(flags: dict[tuple[str, str], bool]) -> tuple[str, str]:
    return next(iter(flags))


@pytest.mark.parametrize("kind", ["json", "csv"])
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f: {("who", "1"): True, **f}, "item 'who' is not on the sheet"),
        (lambda f: {(first(f)[0], "z"): True, **f}, "has no answer 'z'"),
        (lambda f: dict(list(f.items())[3:]), "of 6 items are not judged, the first is"),
    ],
)
def test_wrong_rows(study: Study, kind: str, edit: Any, message: str) -> None:
    sheet = study.sheet()
    write = write_json if kind == "json" else write_csv
    path = write(study.folder / f"a.{kind}", sheet, "Ann", edit(truth(sheet)))
    with pytest.raises(UserError, match=message) as caught:
        import_annotations([path], study.folder / "sheet")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_files(study: Study) -> None:
    sheet, flags = study.sheet(), truth(study.sheet())
    key = study.folder / "sheet"
    good = write_json(study.folder / "a.json", sheet, "Ann", flags)
    bad = study.folder / "b.json"

    def refused(message: str, *files: Path, at: Path = key) -> None:
        with pytest.raises(UserError, match=message) as caught:
            import_annotations(files, at)
        assert "\n" not in str(caught.value)

    other = study.sheet("other", seed=9)
    refused("belongs to sheet", write_json(bad, other, "Ann", truth(other)))
    refused("annotator 'ANN' has a file already", good, write_json(bad, sheet, "ANN", flags))
    refused("no annotator's name", write_json(bad, sheet, "  ", flags))
    refused("not a file that an annotation sheet wrote", write_json(bad, sheet, "B", flags, format="x"))
    refused("not JSON", _text(bad, '{"a": '))
    refused("incomplete", _text(bad, json.dumps({"format": FORMAT, "answers": [{}]})))
    refused("incomplete", _text(bad, json.dumps({"format": FORMAT, "answers": 7})))
    refused("no column 'sheet'", _text(bad, "a,b\n1,2\n"))
    refused("no rows", _text(bad, ""))
    refused("No such file", study.folder / "none.json")
    refused("no annotations to import")
    refused("key that was written beside", good, at=study.folder / "none.json")
    refused("not the key of a sheet", good, at=good)
    changed = (key / "key.json").read_text(encoding="utf-8").replace('"a boat"', '"a car"')
    refused("was changed after the sheet was made", good, at=_text(study.folder / "k.json", changed))
    bad.write_bytes(b"\xff\xfe\x00")
    refused("not UTF-8", bad)
    path = write_csv(study.folder / "c.csv", sheet, "C", flags)
    path.write_text(path.read_text(encoding="utf-8-sig").replace(",no,", ",maybe,", 1), encoding="utf-8")
    refused("hallucination is 'maybe': write yes or no", path)
    lines = write_csv(path, sheet, "C", flags).read_text(encoding="utf-8-sig").splitlines(keepends=True)
    refused("stands there twice", _text(path, "".join([*lines, lines[-1]])))
    refused("several values of annotator", _text(path, "".join([*lines, lines[-1].replace(",C,", ",D,")])))


def _text(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
