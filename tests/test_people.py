"""People's counts in the table of a study: from the sheet to the table, each number with its source."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from annotation_study import truth, write_json
from fake_store import FakeStore, coin, example, table_spec
from peftbench.analysis.table import tabulate_study
from peftbench.annotation.collect import import_annotations
from peftbench.annotation.counts import report
from peftbench.annotation.sheet import Answers, make_sheet
from peftbench.config import Settings
from peftbench.errors import UserError
from peftbench.graph import Plan
from peftbench.people_file import read_people
from peftbench.views import Cell, People, TabulateSpec

ROOT = Path(__file__).parent.parent
N = 10


@pytest.fixture
def store(tmp_path: Path) -> FakeStore:
    made = FakeStore(tmp_path / "results")
    made.dataset("alpha", [example(made, "alpha", i) for i in range(N)])
    return made


def study(store: FakeStore) -> dict[tuple[str, int], Cell]:
    """Captions of two methods at two epochs; of those with "and", LoRA has one more than IA3 and epoch."""
    return {
        (method, epoch): store.run(
            "alpha",
            method,
            answers=[f"{method} {'and ' if i < epoch + (method == 'lora') else ''}{i}" for i in range(N)],
            scores=coin(0.3, N, epoch),
            axes={"epoch": epoch},
        )
        for method in ("lora", "ia3")
        for epoch in (1, 3)
    }


def table_of(cells: list[Cell], people: People | None) -> TabulateSpec:
    return table_spec(
        cells, columns="epoch", rows=["model", "method"], averages=["all"], people=people, metric="chair"
    )


def counted(store: FakeStore, cells: dict[tuple[str, int], Cell], out: Path, people: int = 2) -> Path:
    """What people found on the sheet of these answers: all mark what is wrong, the last one also a right answer."""
    answers = [
        Answers(method=method, epoch=epoch, folder=(store.root / cell.scores).parent)
        for (method, epoch), cell in cells.items()
    ]
    data = next(store.root.glob("data/alpha-*"))
    sheet = make_sheet(answers, out / "sheet", data_dir=data, image_store=store.images, seed=1)
    files = []
    for place in range(people):
        flags = dict(truth(sheet))
        if place == people - 1:
            flags[next(mark for mark, wrong in flags.items() if not wrong)] = True
        files.append(write_json(out / f"{place}.json", sheet, f"Ann {place}", flags))
    report(import_annotations(files, out / "sheet"), out)
    return out / "hallucination.json"


def test_counts_of_people_stand_in_the_table_with_their_source(store: FakeStore, tmp_path: Path) -> None:
    cells = study(store)
    people = read_people(counted(store, cells, tmp_path / "people"), "where")
    assert people.annotators == 2 and people.agreement.startswith("Cohen's kappa 0.9")
    tabulate_study(table_of(list(cells.values()), people), store.root, tmp_path / "out")
    frame = pl.read_csv(tmp_path / "out/trial.csv")
    rows = {(row["method"], int(row["epoch"])): row for row in frame.to_dicts()}
    for (method, epoch), row in rows.items():
        wrong = epoch + (method == "lora")
        assert row["people"] == pytest.approx(100 * wrong / N) and row["people_n"] == N
        assert row["people_low"] < row["people"] < row["people_high"]
        assert row["people_source"].startswith("2 people, majority; Cohen's kappa")
        assert row["source"] == "automatic (chair)"
    for suffix in ("md", "html", "tex"):
        text = (tmp_path / f"out/trial.{suffix}").read_text()
        assert "people 4/10 [" in text and "people 1/10 [" in text
        assert "Values: automatic (chair)." in text
        assert "counted by 2 people, majority; Cohen" in text and "any more" not in text


def test_one_person_has_no_kappa_and_three_have_that_of_fleiss(store: FakeStore, tmp_path: Path) -> None:
    cells = study(store)
    one = read_people(counted(store, cells, tmp_path / "one", people=1), "where")
    assert (one.annotators, one.agreement) == (1, "not computable: one annotator")
    three = read_people(counted(store, cells, tmp_path / "three", people=3), "where")
    assert three.annotators == 3 and three.agreement.startswith("Fleiss' kappa 0.9")
    assert len(three.counts) == 4, "neither single people nor means over epochs"


def test_counts_of_other_answers_are_left_out_and_said_so(store: FakeStore, tmp_path: Path) -> None:
    cells = study(store)
    people = read_people(counted(store, cells, tmp_path / "people"), "where")
    cells["ia3", 3] = store.run(
        "alpha", "ia3", answers=["new"] * N, scores=coin(0.3, N, 9), axes={"epoch": 3}, seed=2
    )
    tabulate_study(table_of(list(cells.values()), people), store.root, tmp_path / "out")
    text = (tmp_path / "out/trial.md").read_text()
    assert text.count("; people ") == 3
    assert "1 of their 4 counts are of answers that these runs do not give any more." in text


def test_a_table_that_nobody_has_counted_for_says_so(store: FakeStore, tmp_path: Path) -> None:
    cells = list(study(store).values())
    tabulate_study(table_of(cells, People()), store.root, tmp_path / "out")
    text = (tmp_path / "out/trial.md").read_text()
    assert "People have not counted here yet ('peftbench annotate make trial')." in text
    tabulate_study(table_of(cells, None), store.root, tmp_path / "none")
    assert "automatic" not in (tmp_path / "none/trial.md").read_text()


def test_the_study_names_the_file(store: FakeStore, tmp_path: Path) -> None:
    root = tmp_path / "project"
    root.mkdir()
    for name in ("config", "paper", "workflow"):
        (root / name).symlink_to(ROOT / name)
    shutil.copy(counted(store, study(store), tmp_path / "people"), root / "counts.json")

    def spec(people: str | None) -> dict:
        settings = Settings.from_files(root, [root / "config/paper_tiny.yaml"])
        settings.main.reduce["table7_hallucination"]["people"] = people
        tabulate = Plan(settings).study("table7_hallucination").tabulate
        assert tabulate
        return json.loads(tabulate.spec)

    assert spec("counts.json")["people"]["annotators"] == 2
    assert spec("")["people"]["annotators"] == 0 and spec("")["metric"] == "chair"
    with pytest.raises(UserError, match=r"table7_hallucination\.yaml: people: .*gone\.json: No such file"):
        spec("gone.json")
    for damage in ("[]", "{", '{"counts": [], "agreement": {}}'):
        (root / "bad.json").write_text(damage)
        with pytest.raises(UserError, match="not what 'peftbench annotate count' writes"):
            spec("bad.json")


def test_an_average_over_epochs_is_about_the_same_examples(store: FakeStore, tmp_path: Path) -> None:
    """Its error does not shrink with the number of epochs."""
    cells = list(study(store).values())
    tabulate_study(table_of(cells, None), store.root, tmp_path / "out")
    line = next(row for row in (tmp_path / "out/trial.md").read_text().splitlines() if "LoRA" in row)
    errors = [float(cell.split("±")[1].split("(")[0].split()[0]) for cell in line.split("|") if "±" in cell]
    assert errors[2] == pytest.approx((errors[0] + errors[1]) / 2, abs=0.11)
