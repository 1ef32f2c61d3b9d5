"""The kinds of figures: the numbers behind them, what they say about runs without results, and how they look."""

import csv
import json
import statistics
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import msgspec
import polars as pl
import pytest

from fake_store import FakeStore
from peftbench.analysis import figures
from peftbench.analysis.figures import (
    fluctuation,
    gain,
    gallery,
    loss_bands,
    losses,
    pareto,
    seen_unseen,
    size,
)
from peftbench.analysis.figures._logs import (
    Log,
    NoLog,
    overfitting_epochs,
    read_log,
    smoothed,
    thinned,
)
from peftbench.analysis.figures._runs import Study, gap_notes
from peftbench.analysis.figures._sheet import Context
from peftbench.analysis.outcomes import Estimate, read_outcomes
from peftbench.analysis.plot import RC, plot_study
from peftbench.analysis.table import read_long, tabulate_study
from peftbench.config import Settings
from peftbench.errors import UserError
from peftbench.graph import Plan
from peftbench.views import PlotSpec, TabulateSpec

ROOT = Path(__file__).parent.parent
TABLES = ROOT / "paper/tables"
UNSEEN = ("sqa_img", "vizwiz", "iconqa_txt", "iconqa_blank", "flickr30k")
KINDS = {
    "figure2_seen_unseen": "seen_unseen",
    "figure3_losses": "losses",
    "figure4_fluctuation": "fluctuation",
    "figure5_size": "size",
    "figure6_gain": "gain",
    "figure7_stability": "loss_bands",
    "figure8_losses": "losses",
}
"""Study -> kind of its figure."""
EVALUATION = [0.9, 0.6, 0.5, 0.55, 0.6, 0.7]


def long(rows: list[dict[str, Any]], **columns: Any) -> pl.DataFrame:
    """A long table with these cells; what they do not say is as usual."""
    usual: dict[str, Any] = {
        "model": "m",
        "dataset": "alpha",
        "method": "lora",
        "connector": "tuned",
        "location": "both",
        "train_size": "full",
        "seed": 1,
        "seen": False,
        "metric": "exact_match",
        "higher_is_better": True,
        "value": 50.0,
        "stderr": 1.0,
        "n": 100,
        "published": None,
        "difference": None,
        "status": "ok",
        "reason": "",
        "digest": "",
    }
    full = []
    for i, row in enumerate(rows):
        cell = usual | columns | row
        cell.setdefault("target", cell["dataset"])
        value = cell["value"]
        cell["model_title"], cell["dataset_title"] = cell["model"].upper(), cell["target"]
        cell["dataset_label"] = cell["target"].upper()
        cell["scores"] = cell.get("scores") or f"runs/{i}/predictions/scores"
        cell["low"] = None if value is None else value - 2
        cell["high"] = None if value is None else value + 2
        full.append(cell)
    return pl.DataFrame(full, infer_schema_length=None)


def published(name: str) -> list[dict[str, str]]:
    with (TABLES / f"{name}.csv").open(newline="") as stream:
        return [row for row in csv.DictReader(stream) if "avg" not in row.values()]


def drawn(kind: str, frame: pl.DataFrame, results: Path = Path("none")) -> Any:
    """The figure of a kind."""
    module = {"seen_unseen": seen_unseen, "size": size, "gain": gain, "fluctuation": fluctuation}
    module |= {"losses": losses, "loss_bands": loss_bands, "gallery": gallery, "pareto": pareto}
    with matplotlib.rc_context(RC):
        return module[kind].draw(frame, Context(title="A title", results=results))


def words(figure: Any) -> str:
    """All text of a figure."""
    from matplotlib.text import Text

    return " ".join(" ".join(text.get_text().split()) for text in figure.findobj(Text) if text.get_text())


def shown_texts(figure: Any) -> list[tuple[str, Any]]:
    """The texts that are seen, each with its box in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = list(figure.texts)
    for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes)]:
        texts += legend.get_texts() if legend else []
    for axes in figure.axes:
        texts += [*axes.texts, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            inside = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            texts += [tick.label1 for tick in inside if tick.label1.get_visible()]
    seen = [text for text in texts if text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in seen]


def overlaps(figure: Any) -> list[str]:
    """Pairs of texts that overlap, and texts that leave the figure."""
    texts = shown_texts(figure)
    width, height = figure.bbox.size
    found = [
        f"{name!r} leaves the figure"
        for name, box in texts
        if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height
    ]
    for i, (first, a) in enumerate(texts):
        for second, b in texts[i + 1 :]:
            if min(a.x1, b.x1) - max(a.x0, b.x0) > 0.5 and min(a.y1, b.y1) - max(a.y0, b.y0) > 0.5:
                found.append(f"{first!r} on {second!r}")
    return found


# The numbers of the paper, from its tables.


def test_means_over_unseen_and_seen_sets_are_those_of_figure_2() -> None:
    rows = [
        {k: row[k] for k in ("model", "method", "connector", "dataset")}
        | {"value": float(row["score"]), "published": float(row["score"])}
        | {"seen": row["dataset"] not in UNSEEN}
        for row in published("table1_main")
    ]
    study = Study(long(rows))
    found = {(m.variant, m.method, m.seen): m for m in seen_unseen.means(study)}
    expected = {
        "connector tuned": {"adapter": (83.02, 66.20), "lora": (82.86, 64.51), "ia3": (76.30, 67.48)}
        | {"prefix": (65.62, 67.92)},
        "connector frozen": {"adapter": (82.33, 67.22), "lora": (83.35, 67.21), "ia3": (61.27, 68.56)}
        | {"prefix": (63.76, 67.31)},
    }
    assert len(found) == 16
    for variant, methods in expected.items():
        for method, (unseen, seen) in methods.items():
            for flag, wanted in ((False, unseen), (True, seen)):
                mean = found[variant, method, flag]
                assert isinstance(mean.value, Estimate) and isinstance(mean.published, Estimate)
                assert mean.value.value == pytest.approx(wanted, abs=0.006)
                assert mean.published.value == pytest.approx(wanted, abs=0.006)


def test_error_of_a_mean_adds_data_sets_and_not_models() -> None:
    rows = [{"model": m, "dataset": d} for m in ("a", "b") for d in ("one", "two", "three", "four")]
    (mean,) = seen_unseen.means(Study(long(rows, stderr=2.0)))
    assert isinstance(mean.value, Estimate)
    assert mean.value.stderr == pytest.approx(1.0)  # 2 / sqrt(4 data sets), the same for one model as for two


def table3() -> pl.DataFrame:
    sizes = {"1k": "1000", "5k": "5000", "10k": "10000"}
    rows = [
        {"method": row["method"], "dataset": row["dataset"], "train_size": sizes[row["train_size"]]}
        | {"value": float(row["score"]), "published": float(row["score"])}
        for row in published("table3_data_scale")
    ]
    return long(list(reversed(rows)))  # sizes are put in order by their number, not by their place


def test_relative_gains_are_those_of_figure_6() -> None:
    found = {(g.method, g.step): g for g in gain.gains(Study(table3(), apart=("train_size",)))}
    expected = {"adapter": (13.3, 6.9), "lora": (10.2, 5.0), "ia3": (14.3, 4.0), "prefix": (16.4, 8.3)}
    for method, both in expected.items():
        for step, wanted in zip((("1000", "5000"), ("5000", "10000")), both, strict=True):
            number = found[method, step]
            assert isinstance(number.value, Estimate)
            assert number.value.value == pytest.approx(wanted, abs=0.15)  # the paper's: from rounded averages
            assert number.published == pytest.approx(number.value.value)


def test_relative_gains_of_the_printed_averages_are_figure_6_itself() -> None:
    with (TABLES / "table3_data_scale.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["dataset"] == "avg"]
    at = {(r["method"], r["train_size"]): float(r["score"]) for r in rows}
    numbers = {key: Estimate(value=v, stderr=0.0, low=v, high=v, n=1) for key, v in at.items()}
    found = {
        method: [
            round(step.value, 1)
            for pair in (("1k", "5k"), ("5k", "10k"))
            if isinstance(step := gain.relative_gain(*(numbers[method, size] for size in pair)), Estimate)
        ]
        for method in ("adapter", "lora", "ia3", "prefix")
    }
    assert found == {"adapter": [13.3, 6.9], "lora": [10.2, 5.0], "ia3": [14.3, 4.0], "prefix": [16.4, 8.3]}


def test_interval_of_a_gain_is_by_the_delta_method() -> None:
    before = Estimate(value=50.0, stderr=1.0, low=0, high=0, n=10)
    after = Estimate(value=60.0, stderr=2.0, low=0, high=0, n=10)
    found = gain.relative_gain(before, after)
    assert isinstance(found, Estimate)
    assert found.value == pytest.approx(20.0)
    assert found.stderr == pytest.approx(100 * 1.2 * ((2 / 60) ** 2 + (1 / 50) ** 2) ** 0.5)
    zero = Estimate(value=0.0, stderr=0.0, low=0, high=0, n=10)
    assert not isinstance(gain.relative_gain(zero, after), Estimate)


def table4() -> pl.DataFrame:
    rows = [
        {"method": row["method"], "dataset": row["source"], "target": row["target"]}
        | {"epoch": f"near{row['overfitting_epoch']}", "value": float(row["score"])}
        | {"published": float(row["score"])}
        for row in published("table4_generalization")
    ]
    return long(rows)


def test_deviations_are_what_the_paper_says_of_figure_4() -> None:
    """Adapter above the mean on all pairs, Prefix-Tuning below, the others both; the bars from -15 to 10."""
    found = fluctuation.pairs(Study(table4(), apart=("epoch", "dataset")))
    assert len(found) == 6
    means = {
        method: [statistics.fmean(fluctuation.deviations(pair.scores)[method]) for pair in found]
        for method in ("adapter", "lora", "ia3", "prefix")
    }
    assert min(means["adapter"]) > 0 > max(means["prefix"])
    for method in ("lora", "ia3"):
        assert min(means[method]) < 0 < max(means[method])
    bars = [value for values in means.values() for value in values]
    assert -15 < min(bars) < -14 and 9 < max(bars) < 10
    for k in range(6):
        assert sum(values[k] for values in means.values()) == pytest.approx(0, abs=1e-9)


def test_fluctuation_is_the_mean_distance_from_the_own_mean() -> None:
    scores = fluctuation.Scores(values=[40.0, 44.0, 36.0, 40.0])
    assert scores.fluctuation == pytest.approx(100 * 2 / 40)
    pair = next(
        pair
        for pair in fluctuation.pairs(Study(table4(), apart=("epoch", "dataset")))
        if (pair.source, pair.target) == ("iconqa_txt", "sqa_img")
    )
    values = [41.1, 37.4, 34.7, 33.9]
    mean = sum(values) / 4
    wanted = 100 * sum(abs(value - mean) for value in values) / 4 / mean
    assert pair.scores["prefix"].fluctuation == pytest.approx(wanted)
    assert pair.published["prefix"].fluctuation == pytest.approx(wanted)


# Curves.


@pytest.mark.parametrize(
    "values, marked",
    [
        (EVALUATION, [3, 4, 2, 5, 1]),
        ([0.5, 0.6, 0.7, 0.8, 0.9, 1.0], [1, 2, 3, 4, 5]),
        ([0.9, 0.8, 0.7, 0.6, 0.5], [5, 4, 3, 2, 1]),
        ([0.9, 0.5, 0.5, 0.5, 0.9, 0.9], [2, 3, 1, 4, 5]),
        ([0.9, 0.5], [2, 1]),
        ([0.9], [1]),
    ],
)
def test_overfitting_epochs(values: list[float], marked: list[int], tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,epoch,loss\n1,1,2.0\n")
    lines = [f"{epoch},{epoch},{value},9" for epoch, value in enumerate(values, start=1)]
    (tmp_path / "eval.csv").write_text("\n".join(["epoch,step,loss,tokens", *lines]) + "\n")
    log = read_log(tmp_path)
    assert isinstance(log, Log)
    assert overfitting_epochs(tmp_path, log) == marked
    (tmp_path / "eval.csv").unlink()
    assert overfitting_epochs(tmp_path, Log(train=log.train, evaluation={})) == []


def test_logs_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    assert read_log(tmp_path) == NoLog("log missing")
    log = tmp_path / "log.csv"
    for text, reason in (
        ("step,epoch,loss\n", "log empty"),
        ("step,loss\n1,2\n", "log damaged"),
        ("step,epoch,loss\n1,1,what\n", "log damaged"),
        ("step,epoch,loss\n1,1,nan\n", "no finite loss"),
        ("", "log damaged"),
    ):
        log.write_text(text)
        assert read_log(tmp_path) == NoLog(reason), text
    log.write_text("step,epoch,loss\n1,1,2.0\n2,1,nan\n3,2,1.0\n4,2,0.5\n")
    (tmp_path / "eval.csv").write_text("epoch,step,loss,tokens\n1,2,0.7,9\n2,4,inf,9\n")
    assert read_log(tmp_path) == Log(train=[(0.5, 2.0), (1.5, 1.0), (2.0, 0.5)], evaluation={1: 0.7})


def test_thinned_and_smoothed_curves_keep_their_level() -> None:
    points = [(float(i), float(i % 3)) for i in range(1000)]
    thin = thinned(points, 7)
    assert len(thin) == 7 and all(abs(y - 1) < 0.02 for _, y in thin)
    assert thinned(points, 1000) == points
    smooth = smoothed(points)
    assert [x for x, _ in smooth] == [x for x, _ in points]
    assert all(abs(y - 1) < 0.1 for _, y in smooth[10:-10])
    assert smoothed([(0.0, 3.0)]) == [(0.0, 3.0)]


def test_band_is_the_t_interval_of_the_mean() -> None:
    runs = [[(1.0, 1.0), (2.0, 5.0)], [(1.0, 2.0), (2.0, 5.0)], [(1.0, 3.0), (2.0, 5.0)]]
    found = loss_bands.band(runs)
    assert found.mean == pytest.approx([2.0, 5.0])
    half = 4.302652729911275 / 3**0.5  # Student's t, 2 degrees of freedom; the deviation is 1
    assert found.low == pytest.approx([2 - half, 5.0]) and found.high == pytest.approx([2 + half, 5.0])
    alone = loss_bands.band(runs[:1])
    assert alone.low == alone.mean == alone.high and alone.seeds == 1


def test_default_sizes_are_those_of_the_methods() -> None:
    assert size.default_of("lora", "rank") == "128"
    assert size.default_of("lora", "lora.rank") == "128"
    assert size.default_of("lora", "nothing") is None
    assert size.default_of("no_such_method", "rank") is None


def test_gaps_are_counted_by_run() -> None:
    runs = [("ok", "a"), ("missing", "b"), ("missing", "b"), ("failed", "c"), ("missing", "d")]
    assert gap_notes(runs) == ["1 of 4 runs failed, 2 missing."]
    assert gap_notes(runs[:3]) == ["1 of 2 runs missing."]
    assert gap_notes(runs[:1]) == []


# The studies of the paper, drawn.


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan(Settings.from_files(ROOT, [ROOT / "config/paper.yaml"]))


Fate = Callable[[Any], str]
"""What becomes of a cell: ok, failed or missing."""


def made(plan: Plan, name: str, root: Path, fate: Fate = lambda cell: "ok") -> tuple[PlotSpec, Path]:
    """The table of a study of the paper, over made-up results near the published ones."""
    study = plan.study(name)
    assert study.tabulate and study.plot
    spec = msgspec.convert(json.loads(study.tabulate.spec), TabulateSpec)
    store = FakeStore(root)
    for i, outcome in enumerate(read_outcomes(spec, root)):
        cell, what = outcome.cell, fate(outcome.cell)
        if what == "missing":
            continue
        near = 40.0 + 5 * (i % 4) if outcome.published is None else outcome.published + i % 3 - 1
        scale = 1 + 0.1 * (cell.seed % 5) + 0.2 * len(cell.method)
        train = [scale * (1 + (k % 5) / 20) / (1 + k / 20) for k in range(120)]
        evaluation = [scale * loss / 2 for loss in EVALUATION]
        reason = "diverged" if what == "failed" else ""
        store.fill(cell, near, failed=reason, losses=train, eval_losses=evaluation)
    tabulate_study(spec, root, root / "tables")
    return msgspec.convert(json.loads(study.plot.spec), PlotSpec), root / f"tables/{name}.csv"


@pytest.mark.parametrize("name", KINDS)
def test_each_figure_of_the_paper(name: str, plan: Plan, tmp_path: Path) -> None:
    spec, table = made(plan, name, tmp_path)
    assert spec.kind == KINDS[name]
    facts = [plot_study(spec, table, tmp_path / folder, tmp_path) for folder in ("a", "b")]
    assert facts[0] == facts[1] and facts[0]["panels"] >= 1
    for suffix in ("png", "svg"):
        first, second = ((tmp_path / folder / f"{name}.{suffix}").read_bytes() for folder in ("a", "b"))
        assert first == second
    ET.parse(tmp_path / f"a/{name}.svg")
    figure = drawn(spec.kind, read_long(table), tmp_path)
    assert overlaps(figure) == []
    assert figure.get_size_inches()[0] < 9.5
    text = words(figure)
    assert "failed" not in text and "missing" not in text and "×" not in text
    frame = read_long(table)
    if spec.kind in ("seen_unseen", "fluctuation", "gain") and frame["published"].is_not_null().any():
        assert "published" in text


@pytest.mark.parametrize("name", KINDS)
def test_runs_without_a_result_are_said_so(name: str, plan: Plan, tmp_path: Path) -> None:
    def fate(cell: Any) -> str:
        if cell.method == "lora":
            return "failed" if cell.dataset in ("vizwiz", "okvqa", "scienceqa_all") else "ok"
        return "missing" if cell.method == "adapter" and cell.connector == "tuned" else "ok"

    spec, table = made(plan, name, tmp_path, fate)
    figure = drawn(spec.kind, read_long(table), tmp_path)
    assert overlaps(figure) == []
    text = words(figure)
    frame = read_long(table)
    if spec.kind in ("losses", "loss_bands"):
        failed, without = {
            "figure3_losses": ("", 1),
            "figure7_stability": ("3 training failed", 6),
            "figure8_losses": ("1 of 8 runs failed in training", 2),
        }[name]
        assert failed in text and f"{without} log missing" in text and "no curve (" in text
    else:
        runs = frame.unique("scores").height
        counts = {
            status: frame.filter(pl.col("status") == status).unique("scores").height
            for status in ("failed", "missing")
        }
        assert f"{counts['failed']} of {runs} runs failed, {counts['missing']} missing." in text
        assert "×" in text


@pytest.mark.parametrize("name", KINDS)
def test_a_study_before_its_runs_says_that_they_are_missing(name: str, plan: Plan, tmp_path: Path) -> None:
    spec, table = made(plan, name, tmp_path, lambda cell: "missing")
    figure = drawn(spec.kind, read_long(table), tmp_path)
    text = words(figure)
    assert overlaps(figure) == []
    assert "missing" in text
    if spec.kind != "size":  # its panels stand there with their settings, each of them missing
        assert "Nothing to show" in text


@pytest.mark.parametrize("kind", sorted(set(figures.kinds()) - {"dots"}))
@pytest.mark.parametrize("rows", [1, 0])
def test_every_kind_takes_any_table(kind: str, rows: int, tmp_path: Path) -> None:
    frame = long([{}]).head(rows)
    figure = drawn(kind, frame, tmp_path)
    assert overlaps(figure) == []
    if kind != "seen_unseen" or not rows:
        assert "Nothing to show" in words(figure)


def test_one_seed_has_no_band(tmp_path: Path) -> None:
    rows = [{"rank": str(rank), "scores": f"runs/{rank}/p/s"} for rank in (8, 16)]
    for rank in (8, 16):
        run = tmp_path / f"runs/{rank}"
        run.mkdir(parents=True)
        lines = [f"{k + 1},{1 + k // 10},{1 / (k + 1)}" for k in range(20)]
        (run / "log.csv").write_text("\n".join(["step,epoch,loss", *lines]) + "\n")
    figure = drawn("loss_bands", long(rows), tmp_path)
    assert "One seed: no bands." in words(figure)
    assert not figure.axes[0].collections
    assert "without" not in words(figure) and overlaps(figure) == []
    curves = drawn("losses", long(rows), tmp_path)
    assert "2 of 2 runs measure no evaluation loss." in words(curves) and overlaps(curves) == []


def test_settings_stand_in_the_order_of_their_size() -> None:
    rows = [{"rank": str(rank), "value": float(rank)} for rank in (64, 8, 128, 16)]
    figure = drawn("size", long(rows))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["8", "16", "64", "128"]
    assert list(axes.lines[-5].get_ydata()) == [8, 16, 64, 128]
    shaded = [patch for patch in axes.patches if patch.get_width() > 0.5]
    assert [round(patch.get_x() + patch.get_width() / 2) for patch in shaded] == [3]


def test_one_group_of_sets_needs_no_other() -> None:
    rows = [{"method": m, "connector": c} for m in ("lora", "ia3") for c in ("tuned", "frozen")]
    rows.append({"method": "base", "connector": "frozen", "value": 30.0})
    figure = drawn("seen_unseen", long(rows))
    text = words(figure)
    assert "The study has no seen data set." in text and "untuned base, unseen" in text
    assert overlaps(figure) == []


def test_scores_of_two_directions_are_not_averaged() -> None:
    rows = [{"dataset": "alpha"}, {"dataset": "beta", "higher_is_better": False}]
    assert "lower on others" in words(drawn("seen_unseen", long(rows)))
    sizes = [row | {"train_size": size} for row in rows for size in ("10", "20")]
    assert "lower on others" in words(drawn("gain", long(sizes)))


def test_an_unknown_kind_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown kind 'sizes'; did you mean 'size'\?"):
        plot_study(PlotSpec(study="s", title="T", kind="sizes"), tmp_path / "s.csv", tmp_path)


def test_the_code_of_a_kind_is_part_of_its_job(plan: Plan) -> None:
    codes = {name: plan.study(name).plot for name in KINDS}
    for name, kind in KINDS.items():
        job = codes[name]
        assert job and f"analysis.figures.{kind}" in json.loads(job.code)["modules"]
        assert "analysis.figures.dots" not in json.loads(job.code)["modules"]
