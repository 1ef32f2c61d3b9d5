"""Galleries: which examples they show, how answers are marked, and their figure."""

import hashlib
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from fake_store import FakeStore, example, table_spec
from peftbench.analysis.figures import gallery as figure_of
from peftbench.analysis.figures._sheet import Context
from peftbench.analysis.gallery import CHOICES, NEAREST, gallery, verdict
from peftbench.analysis.lines import read_lines
from peftbench.analysis.outcomes import read_outcomes
from peftbench.analysis.plot import RC, plot_study
from peftbench.analysis.table import long_frame, tabulate_study
from peftbench.config import Settings
from peftbench.graph import Plan
from peftbench.views import PlotSpec, TabulateSpec
from test_figures import overlaps, words
from test_report import build

ROOT = Path(__file__).parent.parent
N = 12
RIGHT, WRONG = [100.0], [0.0]


@pytest.fixture
def store(tmp_path: Path) -> FakeStore:
    made = FakeStore(tmp_path / "results")
    made.dataset("alpha", [example(made, "alpha", i) for i in range(N)])
    return made


def study(store: FakeStore, scores: dict[str, list[float]], **more: Any) -> TabulateSpec:
    """A study of one data set: the scores of each method."""
    cells = [
        store.run(
            "alpha",
            method,
            "frozen" if method == "base" else "tuned",
            answers=[f"{method} says {i}" for i in range(N)],
            scores=values,
            **more,
        )
        for method, values in scores.items()
    ]
    return table_spec(cells)


def shown(store: FakeStore, table: TabulateSpec, count: int, choose: Any = "random") -> list[Any]:
    lines = read_lines(table, read_outcomes(table, store.root), store.root)
    return gallery(lines, {"tiny": "Tiny"}, store.root, count, choose)


def by_hash() -> list[str]:
    return sorted((f"alpha-{i}" for i in range(N)), key=lambda name: hashlib.sha256(name.encode()).digest())


def test_random_examples_are_those_of_the_lowest_hashes(store: FakeStore) -> None:
    table = study(store, {"lora": RIGHT * N, "base": WRONG * N})
    assert [card.id for card in shown(store, table, 3)] == by_hash()[:3]
    assert all(card.as_asked for card in shown(store, table, 3))


def test_examples_that_only_the_untuned_model_gets_right(store: FakeStore) -> None:
    def of(*places: int) -> list[float]:
        return [100.0 if i in places else 0.0 for i in range(N)]

    rule: Any = "base_right_others_wrong"
    table = study(store, {"base": of(1, 2, 5, 7), "lora": of(1, 9), "ia3": of(5, 3)})
    cards = shown(store, table, 2, rule)
    assert {card.id for card in cards} == {"alpha-2", "alpha-7"} and all(card.as_asked for card in cards)
    assert [card.id for card in cards] == [name for name in by_hash() if name in ("alpha-2", "alpha-7")]
    more = shown(store, table, 4, rule)
    assert {card.id for card in more[2:]} == {"alpha-1", "alpha-5"}, "one of two methods is wrong there"
    assert [card.as_asked for card in more] == [True, True, False, False]


def test_of_a_metric_that_counts_faults_none_is_right() -> None:
    assert [verdict(score, False, higher_is_better=False) for score in (0.0, 100.0, None)] == [
        "right",
        "wrong",
        "none",
    ]


def spec_of(table: TabulateSpec, **changes: Any) -> PlotSpec:
    fields: dict[str, Any] = {"study": "trial", "title": "Answers", "kind": "gallery", "gallery": 2}
    return PlotSpec(**(fields | {"runs": table} | changes))


def drawn(store: FakeStore, table: TabulateSpec, **changes: Any) -> Any:
    frame = long_frame(table, read_outcomes(table, store.root))
    with matplotlib.rc_context(RC):
        return figure_of.draw(
            frame, Context(title="Answers", results=store.root, spec=spec_of(table, **changes))
        )


def test_the_figure_shows_picture_prompt_references_and_marked_answers(store: FakeStore) -> None:
    table = study(store, {"base": WRONG * N, "lora": RIGHT * N, "ia3": [40.0] * N})
    figure = drawn(store, table)
    assert overlaps(figure) == []
    text = words(figure)
    (first, second) = (name.removeprefix("alpha-") for name in by_hash()[:2])
    for place in (first, second):
        for method in ("base", "lora", "ia3"):
            assert f"{method} says {place}" in text
    assert text.count("✓") == text.count("✗") == text.count("◐") == 2
    assert text.count("Reference: ") == 2 and CHOICES["random"] in text
    assert all(name in text for name in ("untuned base", "LoRA", "IA3"))
    assert sum(len(axes.images) for axes in figure.axes) == 2


def test_answers_of_all_variants_stand_beside_each_other(store: FakeStore) -> None:
    long = "a caption of many words " * 30
    cells = [
        store.run(
            "alpha",
            method,
            answers=[f"{method} {e}: {long}" for _ in range(N)],
            scores=WRONG * N,
            axes={"epoch": e},
        )
        for method in ("lora", "ia3")
        for e in (3, 6, 9, 12)
    ]
    figure = drawn(store, table_spec(cells))
    assert overlaps(figure) == []
    text = words(figure)
    assert all(f"{method} {e}: a" in text for method in ("lora", "ia3") for e in (3, 6, 9, 12))
    assert all(text.count(f"epoch {e}") == 2 for e in (3, 6, 9, 12)) and "…" in text


def test_failed_and_missing_runs_and_pictures_are_said_so(store: FakeStore) -> None:
    table = study(store, {"lora": RIGHT * N})
    gone = store.run("alpha", "ia3", until="none")
    dead = store.run("alpha", "prefix", until="train", failed={"train": "loss is nan"})
    for path in store.images.rglob("*"):
        if path.is_file():
            path.unlink()
    figure = drawn(store, table_spec([*table.cells, gone, dead]))
    assert overlaps(figure) == []
    text = words(figure)
    assert "× missing" in text and "× failed" in text and text.count("picture missing") == 2
    assert "1 of 3 runs failed, 1 missing." in text
    nothing = words(drawn(store, table_spec([gone])))
    assert "Nothing to show: no run has answered yet." in nothing
    assert "names no examples" in words(drawn(store, table, runs=None))


def test_a_rule_that_finds_too_few_says_so(store: FakeStore) -> None:
    table = study(store, {"base": WRONG * N, "lora": WRONG * N})
    text = words(drawn(store, table, choose="base_right_others_wrong"))
    assert NEAREST in text


def test_figure_and_page_show_the_same_examples_and_are_the_same_each_time(
    store: FakeStore, tmp_path: Path
) -> None:
    scores = [100.0 if i % 3 else 0.0 for i in range(N)]
    table = study(store, {"base": scores, "lora": scores[::-1]})
    tabulate_study(table, store.root, store.root / "tables")
    spec = spec_of(table, choose="base_right_others_wrong")
    facts = [
        plot_study(spec, store.root / "tables/trial.csv", tmp_path / folder, store.root) for folder in "ab"
    ]
    assert facts[0] == facts[1] and facts[0]["panels"] == 2
    ids = [card.id for card in shown(store, table, 2, "base_right_others_wrong")]
    page = build(store, table, gallery=2, choose="base_right_others_wrong").read_text()
    assert all(f"example {name}" in page for name in ids) and page.count("test picture of example") == 2
    assert CHOICES["base_right_others_wrong"] in page


def test_studies_of_the_paper_that_are_galleries() -> None:
    plan = Plan(Settings.from_files(ROOT, [ROOT / "config/paper.yaml"]))
    wanted = {
        "figure9_hallucination": (1, "base_right_others_wrong", 5),
        "figure10_13_hallucination": (2, "random", 17),
        "figure14_23_examples": (1, "random", 64),
    }
    for name, (examples, choose, cells) in wanted.items():
        study = plan.study(name)
        assert plan.settings.study(name).figure == "gallery"
        assert study.plot and f'"choose":"{choose}"' in study.plot.spec
        assert f'"gallery":{examples},' in study.plot.spec and len(study.runs) == cells
    trained = {
        run_digest(job) for name in ("table1_main", "table7_hallucination") for job in plan.study(name).scores
    }
    new = {run_digest(job) for name in wanted for job in plan.study(name).scores} - trained
    assert new == set(), "all their runs are those of Tables 1 and 7, and the untuned model"


def run_digest(score: Any) -> str:
    run = score.inputs["predictions"].inputs.get("run")
    return run.digest if run else "-"
