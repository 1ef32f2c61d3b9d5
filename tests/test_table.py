"""Tables: what stands in each cell, what is averaged and marked, what is said of runs without a score."""

import csv
import json
import re
from pathlib import Path

import msgspec
import polars as pl
import pytest

from fake_store import FakeStore, coin, example, score_facts, table_spec
from peftbench.analysis.grid import Grid, GridRow, build_grid
from peftbench.analysis.outcomes import Estimate, average, over_seeds, read_outcomes
from peftbench.analysis.render import legend, number, to_html, to_latex, to_markdown
from peftbench.analysis.table import MEASURED, items_of, long_frame, read_long, tabulate_study
from peftbench.errors import UserError
from peftbench.views import TabulateSpec

N = 40


def exact(value: float, stderr: float, **changes: object) -> dict[str, object]:
    """Facts of a score record with these numbers."""
    facts = {"value": value, "n": N, "stderr": stderr, "interval": [value - 2 * stderr, value + 2 * stderr]}
    return facts | {"higher_is_better": True, "extra": {}} | changes


@pytest.fixture
def store(tmp_path: Path) -> FakeStore:
    made = FakeStore(tmp_path / "results")
    for name in ("alpha", "beta"):
        made.dataset(name, [example(made, name, i) for i in range(N)])
    return made


def run(store: FakeStore, dataset: str, method: str, connector: str = "tuned", **more: object):
    """One run whose facts are ``exact``; the answers do not matter here."""
    more.setdefault("scores", [0.0] * N)
    more.setdefault("answers", ["x"] * N)
    return store.run(dataset, method, connector, **more)  # type: ignore[arg-type]


def grid_of(store: FakeStore, spec: TabulateSpec) -> Grid:
    return build_grid(spec, read_outcomes(spec, store.root))


def row_of(grid: Grid, name: str) -> GridRow:
    return next(row for row in grid.rows if row.name == name)


@pytest.fixture
def spec(store: FakeStore) -> TabulateSpec:
    """Three methods on two sets; one run failed in training, one was never made; the base model."""
    cells = []
    for dataset, shift in (("alpha", 0.0), ("beta", 10.0)):
        cells.append(run(store, dataset, "lora", facts=exact(70 + shift, 2.0)))
        cells.append(run(store, dataset, "lora", "frozen", facts=exact(67 + shift, 2.0)))
        cells.append(run(store, dataset, "ia3", facts=exact(50 + shift, 2.0)))
        if dataset == "alpha":
            cells.append(run(store, dataset, "ia3", "frozen", facts=exact(40.0, 0.0)))
            cells.append(run(store, dataset, "prefix", facts=exact(20.0, 1.0)))
        else:
            cells.append(
                run(
                    store, dataset, "ia3", "frozen", until="train", failed={"train": "loss is nan\nat step 3"}
                )
            )
            cells.append(run(store, dataset, "prefix", until="predict"))
    for dataset in ("alpha", "beta"):
        cells.append(run(store, dataset, "base", "frozen", facts=exact(45.0, 1.0)))
    return table_spec(cells)


def test_rows_are_in_the_order_of_the_study_after_the_base(store: FakeStore, spec: TabulateSpec) -> None:
    grid = grid_of(store, spec)
    assert [row.name for row in grid.rows] == [
        "untuned base",
        "LoRA, connector tuned",
        "LoRA, connector frozen",
        "IA3, connector tuned",
        "IA3, connector frozen",
        "Prefix-Tuning, connector tuned",
    ]
    assert [column.label for column in grid.columns] == ["ALPHA", "BETA"]
    assert grid.columns[0].note == f"exact_match · n = {N} · unseen"
    assert [block.label for block in grid.blocks] == ["Model tiny"]


def test_averages_are_over_the_named_columns_and_need_all_of_them(
    store: FakeStore, spec: TabulateSpec
) -> None:
    grid = grid_of(store, spec)
    assert [(column.label, column.note) for column in grid.averages] == [
        ("Average", "of 2"),
        ("Avg. seen", "of 1"),
        ("Avg. unseen", "of 1"),
    ]
    both, seen, unseen = row_of(grid, "LoRA, connector tuned").averages
    assert both.estimate is not None and seen.estimate is not None and unseen.estimate is not None
    assert both.estimate.value == pytest.approx(75.0)
    assert both.estimate.stderr == pytest.approx((2**2 + 2**2) ** 0.5 / 2)
    assert (seen.estimate.value, unseen.estimate.value) == (80.0, 70.0)
    broken = row_of(grid, "IA3, connector frozen").averages
    assert broken[0].estimate is None and broken[0].reason == "1 of 2 values are missing"
    assert broken[2].estimate is not None  # the unseen set is there


def test_the_best_is_marked_with_all_inside_its_interval(store: FakeStore, spec: TabulateSpec) -> None:
    grid = grid_of(store, spec)
    marked = {row.name: [cell.best for cell in row.cells] for row in grid.rows}
    assert marked["LoRA, connector tuned"] == [True, True]
    assert marked["LoRA, connector frozen"] == [True, True]  # 67 is inside 66..74
    assert not any(any(marks) for name, marks in marked.items() if not name.startswith("LoRA"))


def test_lower_is_better_turns_marks_around(store: FakeStore) -> None:
    cells = [
        run(store, "alpha", "lora", facts=exact(10.0, 1.0, higher_is_better=False)),
        run(store, "alpha", "ia3", facts=exact(30.0, 1.0, higher_is_better=False)),
        run(store, "alpha", "base", "frozen", facts=exact(20.0, 1.0, higher_is_better=False)),
    ]
    grid = grid_of(store, table_spec(cells))
    assert [row.cells[0].best for row in grid.rows] == [False, True, False]
    assert [row.cells[0].against_base for row in grid.rows] == ["", "better", "worse"]


def test_zero_errors_tie_only_with_equal_values(store: FakeStore) -> None:
    values = {"lora": 80.0, "ia3": 80.0, "prefix": 79.9}
    cells = [run(store, "alpha", method, facts=exact(value, 0.0)) for method, value in values.items()]
    grid = grid_of(store, table_spec(cells))
    assert [row.cells[0].best for row in grid.rows] == [True, True, False]
    assert "**80.0** ± 0.0" in to_markdown(grid)


def test_one_run_is_not_marked_as_the_best(store: FakeStore) -> None:
    spec = table_spec([run(store, "alpha", "lora", facts=exact(80.0, 1.0))], averages=["all"])
    grid = grid_of(store, spec)
    assert [cell.best for row in grid.rows for cell in [*row.cells, *row.averages]] == [False, False]


def test_against_the_base_only_where_intervals_do_not_overlap(store: FakeStore, spec: TabulateSpec) -> None:
    grid = grid_of(store, spec)
    sides = {row.name: row.cells[0].against_base for row in grid.rows}
    assert sides == {
        "untuned base": "",  # 43..47
        "LoRA, connector tuned": "better",
        "LoRA, connector frozen": "better",
        "IA3, connector tuned": "",  # 46..54
        "IA3, connector frozen": "worse",
        "Prefix-Tuning, connector tuned": "worse",
    }


def test_failed_and_missing_runs_are_said_so_everywhere(store: FakeStore, spec: TabulateSpec) -> None:
    facts = tabulate_study(spec, store.root, store.root / "tables")
    assert facts["cells"] == {"ok": 10, "failed": 1, "missing": 1}
    rows = list(csv.DictReader((store.root / "tables/trial.csv").open()))
    assert len(rows) == len(spec.cells)
    failed = [row for row in rows if row["status"] == "failed"]
    assert [(row["method"], row["dataset"], row["value"]) for row in failed] == [("ia3", "beta", "")]
    assert failed[0]["reason"] == "training failed: loss is nan at step 3"
    missing = [row for row in rows if row["status"] == "missing"]
    assert [row["reason"] for row in missing] == ["no result of scoring"]
    for suffix in ("md", "html", "tex"):
        text = (store.root / f"tables/trial.{suffix}").read_text()
        assert "failed" in text and "missing" in text, suffix
    assert (
        "Model tiny / IA3 / frozen, BETA: failed: training failed: loss is nan at step 3"
        in (store.root / "tables/trial.html").read_text()
    )


def test_a_damaged_record_and_a_score_without_a_number_have_no_value(store: FakeStore) -> None:
    cells = [
        run(store, "alpha", "lora", facts=exact(50.0, 1.0)),
        run(store, "alpha", "ia3", facts={"value": None, "n": N, "stderr": None, "interval": None}),
    ]
    path = store.root / cells[0].scores / "record.json"
    path.write_text(path.read_text().replace('"method": "lora"', '"method": "adapter"'))
    outcomes = read_outcomes(table_spec(cells), store.root)
    assert [outcome.status for outcome in outcomes] == ["missing", "failed"]
    assert "delete it and run again" in outcomes[0].reason
    assert "no finite score" in outcomes[1].reason


def test_a_run_that_was_never_made_names_the_first_stage_that_is_not_there(store: FakeStore) -> None:
    cells = [
        run(store, "alpha", "lora", until="none"),
        run(store, "alpha", "ia3", until="train"),
        run(store, "alpha", "base", "frozen", until="none"),
    ]
    reasons = [outcome.reason for outcome in read_outcomes(table_spec(cells), store.root)]
    assert reasons == ["no result of training", "no result of prediction", "no result of prediction"]


def test_seeds_are_merged_with_their_spread(store: FakeStore) -> None:
    cells = [
        run(store, "alpha", "lora", seed=seed, facts=exact(value, 3.0))
        for seed, value in ((1, 60.0), (2, 64.0), (3, 68.0))
    ]
    grid = grid_of(store, table_spec(cells))
    estimate = grid.rows[0].cells[0].estimate
    assert estimate is not None
    assert (estimate.value, estimate.seeds) == (64.0, 3)
    assert estimate.stderr == pytest.approx((9 + 16 / 3) ** 0.5)
    assert estimate.high - estimate.value == pytest.approx(1.959963984540054 * estimate.stderr)
    assert "means over seeds" in legend(grid)


def test_a_seed_that_failed_leaves_no_mean(store: FakeStore) -> None:
    cells = [
        run(store, "alpha", "lora", seed=1, facts=exact(60.0, 3.0)),
        run(store, "alpha", "lora", seed=2, until="train", failed={"train": "diverged"}),
    ]
    cell = grid_of(store, table_spec(cells)).rows[0].cells[0]
    assert cell.estimate is None and cell.status == "failed"
    assert cell.reason == "1 of 2 seeds: training failed: diverged"


def test_runs_that_differ_in_more_than_the_seed_do_not_share_a_place(store: FakeStore) -> None:
    cells = [
        run(store, "alpha", "lora", location=location, facts=exact(50.0, 1.0)) for location in ("attn", "mlp")
    ]
    with pytest.raises(UserError, match=r"trial\.yaml: rows: runs that differ in location .* add location"):
        grid_of(store, table_spec(cells))
    grid = grid_of(store, table_spec(cells, rows=["model", "method", "location"]))
    assert [row.labels for row in grid.rows] == [
        ["Model tiny", "LoRA", "attn"],
        ["Model tiny", "LoRA", "mlp"],
    ]


def test_further_axes_are_rows_and_columns_too(store: FakeStore) -> None:
    cells = [
        run(store, "alpha", method, axes={"rank": rank}, facts=exact(50.0 + rank, 1.0))
        for rank in (8, 128, 16)
        for method in ("lora", "adapter")
    ]
    cells.append(run(store, "alpha", "base", "frozen", facts=exact(40.0, 1.0)))
    spec = table_spec(cells, rows=["model", "dataset", "method"], columns="rank", averages=["all"])
    grid = grid_of(store, spec)
    assert [column.label for column in grid.columns] == [
        "Rank 8",
        "Rank 128",
        "Rank 16",
    ]  # the order of the study
    base = grid.rows[0]
    assert base.untuned and [cell.estimate.value for cell in base.cells if cell.estimate] == [40.0] * 3
    frame = long_frame(spec, read_outcomes(spec, store.root))
    assert frame["rank"].to_list() == ["8", "8", "128", "128", "16", "16", None]
    with pytest.raises(UserError, match="averages: 'seen' needs data sets as the columns"):
        grid_of(store, msgspec.structs.replace(spec, averages=["seen"]))


def test_the_base_has_a_name_where_methods_are_no_axis_of_the_table(store: FakeStore) -> None:
    cells = [
        run(store, "alpha", "lora", facts=exact(60.0, 1.0)),
        run(store, "alpha", "lora", "frozen", facts=exact(60.0, 1.0)),
        run(store, "alpha", "base", "frozen", facts=exact(40.0, 1.0)),
    ]
    grid = grid_of(store, table_spec(cells, rows=["model", "connector"]))
    assert [row.labels[1] for row in grid.rows] == ["untuned base", "tuned", "frozen"]


def test_methods_as_columns_put_the_base_first(store: FakeStore) -> None:
    cells = [
        run(store, dataset, method, facts=exact(60.0, 1.0))
        for method in ("lora", "ia3", "base")
        for dataset in ("alpha", "beta")
    ]
    grid = grid_of(store, table_spec(cells, rows=["model", "dataset"], columns="method", averages=[]))
    assert [column.label for column in grid.columns] == ["untuned base", "LoRA", "IA3"]
    assert [row.untuned for row in grid.rows] == [False, False]


PUBLISHED = [
    {"model": "tiny", "method": "lora", "connector": "tuned", "dataset": "paper_alpha", "score": "71.5"},
    {"model": "tiny", "method": "lora", "connector": "tuned", "dataset": "paper_beta", "score": "78.0"},
    {"model": "tiny", "method": "lora", "connector": "frozen", "dataset": "paper_alpha", "score": ""},
    {"model": "other", "method": "ia3", "connector": "tuned", "dataset": "paper_alpha", "score": "99.0"},
]


def test_published_values_stand_beside_cells_with_the_same_coordinates(
    store: FakeStore, spec: TabulateSpec
) -> None:
    spec = msgspec.structs.replace(spec, published="table1", published_rows=PUBLISHED)
    frame = long_frame(spec, read_outcomes(spec, store.root))
    known = frame.filter(pl.col("published").is_not_null())
    assert known.select("method", "connector", "dataset", "published").rows() == [
        ("lora", "tuned", "alpha", 71.5),
        ("lora", "tuned", "beta", 78.0),
    ]
    assert known["difference"].to_list() == [-1.5, 2.0]
    grid = grid_of(store, spec)
    assert row_of(grid, "LoRA, connector tuned").averages[0].published == pytest.approx(74.75)
    assert row_of(grid, "LoRA, connector frozen").averages[0].published is None
    markdown = to_markdown(grid)
    assert "(paper 71.5, −1.5)" in markdown and "(paper 78.0, +2.0)" in markdown
    assert "Below: the published value" in legend(grid)


def test_published_sizes_are_numbers_with_a_k(store: FakeStore) -> None:
    cells = [
        run(store, "alpha", "lora", train_size=size, facts=exact(50.0, 1.0)) for size in (1000, 5000, "full")
    ]
    rows = [
        {"model": "tiny", "method": "lora", "dataset": "paper_alpha", "train_size": size, "score": score}
        for size, score in (("1k", "10"), ("5k", "50"), ("10k", "100"))
    ]
    spec = table_spec(cells, published="t3", published_rows=rows, rows=["model", "method", "train_size"])
    assert [outcome.published for outcome in read_outcomes(spec, store.root)] == [10.0, 50.0, None]


def test_published_files_that_do_not_fit_are_refused(store: FakeStore) -> None:
    cells = [run(store, "alpha", "lora", facts=exact(50.0, 1.0))]
    row = {"model": "tiny", "method": "lora", "dataset": "paper_alpha", "epoch": "1", "score": "5"}
    spec = table_spec(cells, published="t4", published_rows=[row, row | {"epoch": "2"}])
    with pytest.raises(UserError, match=r"paper/tables/t4\.csv: 2 rows for model tiny, method lora"):
        read_outcomes(spec, store.root)
    spec = table_spec(cells, published="t4", published_rows=[row | {"score": "5,1"}])
    with pytest.raises(UserError, match=r"t4\.csv: '5,1' is no number"):
        read_outcomes(spec, store.root)
    nobodys = [{name: value for name, value in row.items() if name != "model"}]
    spec = table_spec(cells, published="t4", published_rows=nobodys)
    assert read_outcomes(spec, store.root)[0].published is None


def test_the_long_table_comes_back_as_it_was(store: FakeStore, spec: TabulateSpec) -> None:
    tabulate_study(spec, store.root, store.root / "tables")
    path = store.root / "tables/trial.csv"
    frame = read_long(path)
    expected = long_frame(spec, read_outcomes(spec, store.root)).with_columns(pl.col(pl.String).fill_null(""))
    assert frame.with_columns(pl.col(pl.String).fill_null("")).equals(expected)
    assert list(MEASURED) == frame.columns[-len(MEASURED) :]
    path.write_text("model,dataset\na,b\n")
    with pytest.raises(UserError, match=r"trial\.csv: column 'connector' is missing"):
        read_long(path)
    path.unlink()
    with pytest.raises(UserError, match=r"trial\.csv: No such file"):
        read_long(path)


def test_an_axis_must_not_hide_a_column(store: FakeStore) -> None:
    spec = table_spec([run(store, "alpha", "lora", axes={"value": 1}, facts=exact(5.0, 1.0))])
    with pytest.raises(UserError, match=r"axes\.value"):
        tabulate_study(spec, store.root, store.root / "tables")


def test_two_times_the_same_bytes(store: FakeStore, spec: TabulateSpec) -> None:
    first = tabulate_study(spec, store.root, store.root / "a")
    second = tabulate_study(spec, store.root, store.root / "b")
    assert first == second and len(first["outputs"]) == 4


def test_titles_and_reasons_are_escaped(store: FakeStore) -> None:
    reason = "<script>alert(1)</script> a|b_c {50 %} \\ $x$"
    cells = [
        run(store, "alpha", "lora", until="train", failed={"train": reason}),
        run(store, "alpha", "ia3", facts=exact(5.0, 1.0)),
    ]
    grid = grid_of(store, table_spec(cells))
    html = str(to_html(grid))
    assert "<script>" not in html and "&lt;script&gt;alert(1)" in html
    assert "A &lt;trial&gt; &amp; more" in html
    markdown = to_markdown(grid)
    assert "a\\|b\\_c" in markdown and "\\<script\\>" in markdown
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    tex = to_latex(grid)
    assert r"A <trial> \& more" in tex and r"\textit{failed}" in tex


def test_merged_labels_span_their_rows(store: FakeStore, spec: TabulateSpec) -> None:
    html = str(to_html(grid_of(store, spec)))
    assert html.count('rowspan="2"') == 2  # lora and ia3; the base and prefix have one row
    rows = re.findall(r"<tr class=\"(?:untuned|)(?: first)?\">(.*?)</tr>", html, flags=re.DOTALL)
    assert len(rows) == 6
    assert all(row.count("<td") == 5 for row in rows)  # two sets and three averages


def test_numbers() -> None:
    assert [number(value) for value in (0.04, -0.04, -1.25, 100.0)] == ["0.0", "0.0", "−1.2", "100.0"]
    assert [number(value, signed=True) for value in (0.04, 2.0, -2.0)] == ["±0.0", "+2.0", "−2.0"]


def test_over_seeds_and_average_differ_in_what_shrinks() -> None:
    one = Estimate(value=50.0, stderr=4.0, low=42.0, high=58.0, n=100)
    assert over_seeds([one]) is one
    assert over_seeds([one, one]).stderr == pytest.approx(4.0)  # the same examples again
    assert average([one, one]).stderr == pytest.approx(4.0 / 2**0.5)  # other examples


def test_a_store_of_real_scores_has_their_mean(store: FakeStore) -> None:
    scores = coin(0.6, N, 3)
    cell = store.run("alpha", "lora", answers=["red"] * N, scores=scores)
    outcome = read_outcomes(table_spec([cell]), store.root)[0]
    assert outcome.estimate is not None and outcome.estimate.value == score_facts(scores)["value"]
    record = json.loads((store.root / cell.scores / "record.json").read_text())
    assert outcome.digest == record["digest"] == cell.scores[-16:]


def test_ties_with_the_best_are_tested_in_pairs_where_items_are_there(store: FakeStore) -> None:
    base = coin(0.5, N, 4)
    lifted = [i for i, score in enumerate(base) if score == 0][:6]
    better = [100.0 if i in lifted else score for i, score in enumerate(base)]  # never worse than base
    other = coin(0.5, N, 9)
    scores = {"lora": better, "ia3": base, "prefix": other}
    cells = [
        run(store, dataset, method, scores=values, facts=score_facts(values))
        for dataset in ("alpha", "beta")
        for method, values in scores.items()
    ]
    spec = table_spec(cells, averages=["all"])
    outcomes = read_outcomes(spec, store.root)
    grid = build_grid(spec, outcomes, items_of(store.root))
    marks = {row.name.split(",")[0]: [c.best for c in (*row.cells, *row.averages)] for row in grid.rows}
    assert marks["LoRA"] == [True] * 3
    assert marks["IA3"] == [False] * 3  # though inside the interval of the best
    assert "paired bootstrap" in legend(grid)
    plain = build_grid(spec, outcomes)
    assert next(row for row in plain.rows if row.name.startswith("IA3")).cells[0].best
    assert "95 % interval" in legend(plain) and "paired" not in legend(plain)


def test_places_without_a_run_are_no_gaps(store: FakeStore) -> None:
    """Tuned on one set and tested on the other: what is left out on purpose is neither missing nor averaged."""
    cells = [
        msgspec.structs.replace(run(store, "alpha", "lora", facts=exact(60.0, 2.0)), target="beta"),
        msgspec.structs.replace(run(store, "beta", "lora", facts=exact(40.0, 2.0)), target="alpha"),
        run(store, "alpha", "base", "frozen", facts=exact(10.0, 1.0)),
        run(store, "beta", "base", "frozen", facts=exact(20.0, 1.0)),
    ]
    spec = table_spec(cells, columns="target", rows=["dataset", "method"], averages=["all"])
    grid = grid_of(store, spec)
    alpha, beta = (row for row in grid.rows if not row.untuned)
    assert [cell.status for cell in alpha.cells] == ["ok", "absent"]
    assert [cell.status for cell in beta.cells] == ["absent", "ok"]
    assert alpha.averages[0].estimate.value == 60.0 and alpha.averages[0].over == 1
    base = next(row for row in grid.rows if row.untuned)
    assert [cell.estimate.value for cell in base.cells] == [20.0, 10.0]
    assert grid.count("missing") == 0
    text = to_markdown(grid)
    assert "missing" not in text and "Without a value" not in text and "–" in text
    assert alpha.averages[0].against_base == "", "averages over other columns are not compared"


def test_measures_of_one_run_are_cells(store: FakeStore) -> None:
    extra = {"rate": {"value": 30.0, "stderr": 5.0, "n": N}, "plain": 7.0}
    measures = {"overall": "value", "rate": "extra.rate", "plain": "extra.plain", "gone": "extra.nothing"}
    made = run(store, "alpha", "lora", facts=exact(60.0, 2.0, extra=extra))
    base = run(store, "alpha", "base", "frozen", facts=exact(10.0, 1.0, extra=extra))
    cells = [msgspec.structs.replace(cell, measure=name) for cell in (made, base) for name in measures]
    spec = table_spec(cells, columns="measure", rows=["dataset", "method"], averages=[], measures=measures)
    grid = grid_of(store, spec)
    assert [column.label for column in grid.columns] == list(measures)
    row = next(row for row in grid.rows if not row.untuned)
    assert [cell.estimate.value if cell.estimate else cell.reason for cell in row.cells] == [
        60.0,
        30.0,
        7.0,
        "scoring failed: the record holds no number extra.nothing",
    ]
    frame = long_frame(spec, read_outcomes(spec, store.root))
    assert frame["measure"].to_list() == list(measures) * 2
