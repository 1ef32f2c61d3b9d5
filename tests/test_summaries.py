"""Columns that follow from others: means, changes from the base, costs; and the figure of two of them."""

import json
import math
from pathlib import Path

import matplotlib
import msgspec
import pytest

from fake_store import FakeStore
from peftbench.analysis.figures import pareto
from peftbench.analysis.figures._frontier import frontier, place_labels, staircase
from peftbench.analysis.figures._sheet import Context
from peftbench.analysis.grid import build_grid
from peftbench.analysis.outcomes import Estimate, read_outcomes
from peftbench.analysis.plot import RC
from peftbench.analysis.render import to_html, to_latex, to_markdown
from peftbench.analysis.summaries import Number, cost_text, costs_of, harmonic, summarise, without_change
from peftbench.analysis.table import long_frame
from peftbench.config import Settings, merge
from peftbench.errors import UserError
from peftbench.graph import Plan
from peftbench.views import Summary, TabulateSpec

ROOT = Path(__file__).parent.parent
OVERLAY = ROOT / "config/beyond_tiny.yaml"
SUMMARIES = {
    "source": Summary(title="Source", over=["a", "b"]),
    "target": Summary(title="Target", over=["own"]),
    "mean": Summary(title="Mean", over=["source", "target"]),
    "harmonic": Summary(title="H", over=["source", "target"], by="harmonic"),
    "change": Summary(title="Change", over=["source"], change=True),
    "parameters": Summary(title="Parameters", cost="parameters"),
}


def number(value: float, stderr: float = 1.0) -> Number:
    return Number(estimate=Estimate(value=value, stderr=stderr, low=value - 2, high=value + 2, n=100))


def values(found: dict[str, Number]) -> dict[str, float | str]:
    return {name: round(one.estimate.value, 6) if one.estimate else one.reason for name, one in found.items()}


def test_means_changes_and_costs():
    columns = {"a": number(60, 3), "b": number(40, 4), "c": number(20)}
    base = summarise(without_change(SUMMARIES), {"a": number(70), "b": number(50)}, "c", None, lambda _: None)
    found = summarise(SUMMARIES, columns, "c", base, {"parameters": 1000.0}.get)
    assert values(found) == {
        "source": 50.0,
        "target": 20.0,
        "mean": 35.0,
        "harmonic": round(2 * 50 * 20 / 70, 6),
        "change": -10.0,
        "parameters": 1000.0,
    }
    assert found["source"].estimate.stderr == pytest.approx(math.hypot(3, 4) / 2)
    assert values(base)["target"] == "absent" and values(base)["change"] == 60


def test_what_is_missing_is_said():
    columns = {"a": number(60), "b": Number(reason="failed")}
    found = values(summarise(SUMMARIES, columns, "c", None, lambda _: None))
    assert found == {
        "source": "failed",
        "target": "absent",
        "mean": "failed",
        "harmonic": "failed",
        "change": "absent",
        "parameters": "absent",
    }


def test_numbers_of_two_directions_have_no_mean():
    low = msgspec.structs.replace(number(40), higher_is_better=False)
    assert values(summarise(SUMMARIES, {"a": number(60), "b": low}, "a", None, lambda _: None))["source"] == (
        "missing"
    )


def test_error_of_a_harmonic_mean():
    """Against central differences."""

    def of(x: float, y: float) -> float:
        return 2 * x * y / (x + y)

    x, y, sx, sy, h = 50.0, 20.0, 2.0, 3.0, 1e-5
    slope_x = (of(x + h, y) - of(x - h, y)) / (2 * h)
    slope_y = (of(x, y + h) - of(x, y - h)) / (2 * h)
    found = harmonic([number(x, sx).estimate, number(y, sy).estimate])
    assert found.value == pytest.approx(of(x, y))
    assert found.stderr == pytest.approx(math.hypot(slope_x * sx, slope_y * sy), rel=1e-6)
    assert harmonic([number(0).estimate, number(3).estimate]).value == 0


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("parameters", 319_815_680.0, "320 M"),
        ("parameters", 33_024.0, "33 k"),
        ("parameters", 7.1e9, "7.1 B"),
        ("parameters", 12.0, "12"),
        ("memory", 0.5231, "0.523"),
        ("seconds", 75.26, "75.3"),
    ],
)
def test_costs_are_short(name, value, text):
    assert cost_text(name, value) == text


def test_a_chosen_run_costs_what_its_trial_cost(tmp_path):
    """Choosing among trials takes next to no memory: that of the trial that was chosen counts."""
    store = FakeStore(tmp_path)
    facts = {"trainable": {"method": 7, "connector": 3}, "seconds": 5.0}
    trial = store.record("runs/m/d/lora-{digest}", "train", {}, {}, facts)
    chosen = {"chosen": {"digest": trial.name.rpartition("-")[2]}}
    run = store.record("runs/m/d/lora.chosen-{digest}", "choose", {}, {}, facts | chosen)
    for folder, peak in ((trial, 2**31), (run, 2**20)):
        path = folder / "record.json"
        record = json.loads(path.read_text())
        record["provenance"]["peak_memory"], record["provenance"]["peak_gpu_memory"] = peak, None
        path.write_text(json.dumps(record))
    cost = costs_of(tmp_path, [f"{run.relative_to(tmp_path)}/predictions-0/scores-0"])
    assert (cost("memory"), cost("parameters"), cost("seconds")) == (2.0, 10.0, 5.0)
    assert costs_of(tmp_path, ["runs/m/d/gone-0/p/s"])("memory") is None


# --- studies


def plan(**change) -> Plan:
    settings = Settings.from_files(ROOT, [OVERLAY])
    for name, value in change.items():
        merge(settings.main.reduce.setdefault(name, {}), value)
    return Plan(settings)


def filled(tmp_path: Path, name: str, score) -> tuple[FakeStore, TabulateSpec]:
    """A results folder in which every run of a study scored what ``score(cell)`` says."""
    spec = msgspec.json.decode(plan().study(name).tabulate.spec, type=TabulateSpec)
    store = FakeStore(tmp_path)
    written = set()
    for cell in spec.cells:
        if cell.scores not in written:
            written.add(cell.scores)
            store.fill(cell, score(cell))
    return store, spec


def test_the_base_stands_beside_the_methods_of_each_data_set(tmp_path):
    def score(cell):
        return {"base": 70.0, "spider": 60.0}.get(cell.method, 50.0) if cell.target != cell.dataset else 30.0

    store, spec = filled(tmp_path, "spider_tradeoff", score)
    grid = build_grid(spec, read_outcomes(spec, store.root), None, store.root)
    (block,) = grid.blocks
    assert block.label == "IconQA-txt" and block.rows[0].untuned
    titles = [column.label for column in grid.averages]
    assert titles == [summary.title for _, summary in spec.summaries]
    row = next(row for row in block.rows if "SPIDER" in row.labels)
    found = dict(zip(titles, row.averages, strict=True))
    assert found["Source mean"].estimate.value == 60 and found["Target"].estimate.value == 30
    assert found["Mean"].estimate.value == 45
    assert found["Harmonic mean"].estimate.value == pytest.approx(40)
    change = found["Source − base"]
    assert change.estimate.value == -10 and change.change and change.against_base == "worse"
    assert found["Target − base"].estimate.value == 0 and not found["Target − base"].against_base
    untuned = dict(zip(titles, block.rows[0].averages, strict=True))
    assert untuned["Source mean"].estimate.value == 70 and untuned["Source − base"].status == "absent"
    assert "−10.0" in to_markdown(grid) and "±0.0" in to_markdown(grid)
    assert "Changes are from the untuned base" in to_html(grid)
    assert r"$-$10.0" in to_latex(grid)


def test_the_same_answers_of_the_base_serve_every_data_set():
    """On one test set the base answers once, wherever it is asked from, and lies where other studies find it."""
    changed = {"grids": [{"dataset": ["iconqa_txt", "okvqa"], "target": ["okvqa", "ocrvqa"]}]}
    study = plan(spider_tradeoff=changed).study("spider_tradeoff")
    base = [
        (run.dataset, run.target, score)
        for run, score in zip(study.runs, study.scores, strict=True)
        if run.method == "base"
    ]
    assert [(d, t) for d, t, _ in base] == [
        ("iconqa_txt_mini", "okvqa_mini"),
        ("iconqa_txt_mini", "ocrvqa_mini"),
        ("okvqa_mini", "okvqa_mini"),
        ("okvqa_mini", "ocrvqa_mini"),
    ]
    assert len({score.digest for *_, score in base}) == 2
    assert all(f"/{target}/base-" in score.directory for _, target, score in base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"summaries": {"bad": {"title": "Bad"}}}, "summaries.bad: give either over or cost"),
        (
            {"summaries": {"bad": {"title": "Bad", "over": ["sorce"]}}},
            "summaries.bad: over: 'sorce' is no column; did you mean 'source'",
        ),
        ({"summaries": {"bad": {"title": "Bad", "cost": "euros"}}}, "cost: invalid enum value 'euros'"),
        ({"pairs": [["source", "taret"]]}, "pairs: 'taret' is no summary; did you mean 'target'"),
        ({"include_base": "some"}, "include_base"),
        ({"axes": {"merge": "always"}}, "axes.merge: adapter cannot be merged into the weights"),
        ({"axes": {"merge": "twice"}}, "axes.merge: 'twice' is not possible"),
    ],
)
def test_mistakes_are_one_line(change, message):
    with pytest.raises(UserError, match=message):
        plan(spider_tradeoff=change).study("spider_tradeoff")


def test_losses_are_read_where_the_metric_wants_them():
    made = plan()
    loss, answers = made.study("forgetting_loss"), made.study("spider_tradeoff")
    specs = [json.loads(made.jobs[score.inputs["predictions"].digest].spec) for score in loss.scores]
    assert {spec["what"] for spec in specs} == {"losses"}
    trained = [
        {run.digest for score in s.scores if (run := score.inputs["predictions"].inputs.get("run"))}
        for s in (loss, answers)
    ]
    assert trained[0] == trained[1], "the same runs serve both"
    assert {info.metric for info in msgspec.json.decode(loss.tabulate.spec, type=TabulateSpec).datasets} == {
        "answer_loss"
    }


# --- the figure


def test_a_frontier_and_its_edge():
    points = [(1.0, 1.0), (2.0, 3.0), (3.0, 2.0), (3.0, 3.0), (1.0, 1.0)]
    assert frontier(points, False, True) == [True, True, False, False, True]
    assert frontier(points, True, True) == [False, False, False, True, False]
    xs, ys = staircase([(1.0, 1.0), (2.0, 3.0), (4.0, 5.0)], False, True)
    assert list(zip(xs, ys, strict=True)) == [(1, 1), (2, 1), (2, 3), (4, 3), (4, 5)]
    xs, ys = staircase([(4.0, 1.0), (2.0, 3.0)], True, True)
    assert list(zip(xs, ys, strict=True)) == [(4, 1), (2, 1), (2, 3)]


def test_labels_do_not_cover_each_other():
    points = [(100.0, 100.0), (103.0, 101.0), (99.0, 98.0), (102.0, 104.0)]
    boxes = [
        (left, low, left + 40, low + 9)
        for left, low, _ in place_labels(points, [(40.0, 9.0)] * 4, (0, 0, 300, 300))
    ]
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])


def draw(store: FakeStore, spec: TabulateSpec, **more):
    frame = long_frame(spec, read_outcomes(spec, store.root))
    context = Context(
        title="A title", results=store.root, columns=spec.columns, summaries=dict(spec.summaries), **more
    )
    with matplotlib.rc_context(RC):
        return pareto.draw(frame, context)


def texts(figure) -> str:
    from matplotlib.text import Text

    return " | ".join(text.get_text() for text in figure.findobj(Text) if text.get_text())


def bold(figure) -> set[str]:
    from matplotlib.text import Annotation

    return {one.get_text() for one in figure.findobj(Annotation) if one.get_fontweight() == "bold"}


def test_the_figure_marks_what_no_other_beats(tmp_path):
    scores = {"base": (70, 10), "spider": (65, 30), "lora": (50, 40), "dora": (50, 35), "ia3": (60, 20)}

    def score(cell):
        return scores.get(cell.method, (40, 10))[cell.target == cell.dataset]

    store, spec = filled(tmp_path, "spider_tradeoff", score)
    figure = draw(store, spec, pairs=[("source", "target")], labels={"iconqa_txt_mini": "Icons"})
    assert bold(figure) == {"SPIDER", "LoRA"}
    assert "tuned on Icons" in texts(figure) and "Source mean" in texts(figure)


def test_the_figure_says_why_it_is_empty(tmp_path):
    store, spec = filled(tmp_path, "spider_tradeoff", lambda _: 1.0)
    assert "names no pairs of summaries" in texts(draw(store, spec))
    figure = draw(FakeStore(tmp_path / "other"), spec, pairs=[("source", "target")])
    assert "× missing" in texts(figure) and "runs missing" in texts(figure)
