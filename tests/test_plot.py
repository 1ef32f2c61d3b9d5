"""The figure: what its panels hold, and that it is always drawn with the same bytes."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image

from fake_store import FakeStore, coin, example, table_spec
from peftbench.analysis.dots import figure_data
from peftbench.analysis.plot import plot_study
from peftbench.analysis.table import read_long, tabulate_study
from peftbench.errors import UserError
from peftbench.views import Cell, PlotSpec

N = 30


def study(root: Path, methods: list[str], sets: list[str], base: bool = True, **changes: object) -> Path:
    """A table over made-up runs; returns its CSV."""
    store = FakeStore(root)
    cells: list[Cell] = []
    for k, name in enumerate(sets):
        store.dataset(name, [example(store, name, i) for i in range(N)])
        for j, method in enumerate(methods):
            for connector in ("tuned", "frozen"):
                scores = coin(0.9 - 0.06 * j, N, 100 * k + 10 * j + len(connector))
                cells.append(store.run(name, method, connector, answers=["red"] * N, scores=scores))
        if base:
            scores = coin(0.3, N, k)
            cells.append(store.run(name, "base", "frozen", answers=["red"] * N, scores=scores))
    spec = table_spec(cells, **changes)
    tabulate_study(spec, root, root / "tables")
    return root / "tables/trial.csv"


def test_panels_are_the_average_and_each_set(tmp_path: Path) -> None:
    table = study(tmp_path, ["lora", "ia3"], ["alpha", "beta"])
    data = figure_data(read_long(table))
    assert [panel.title for panel in data.panels] == ["Average", "ALPHA", "BETA"]
    assert data.methods == ["lora", "ia3"] and data.variants == ["connector tuned", "connector frozen"]
    mean, first, second = data.panels
    assert mean.average and mean.base is not None and first.base is not None and second.base is not None
    assert mean.base.value == pytest.approx((first.base.value + second.base.value) / 2)
    for place in range(4):
        values = [panel.dots[place].estimate for panel in (mean, first, second)]
        assert all(values)
        assert values[0].value == pytest.approx((values[1].value + values[2].value) / 2)  # type: ignore[union-attr]


def test_one_set_needs_no_average(tmp_path: Path) -> None:
    data = figure_data(read_long(study(tmp_path, ["lora"], ["alpha"], base=False)))
    assert [panel.title for panel in data.panels] == ["ALPHA"]
    assert data.panels[0].base is None


def test_axes_that_follow_from_the_method_are_no_variants(tmp_path: Path) -> None:
    store = FakeStore(tmp_path)
    store.dataset("alpha", [example(store, "alpha", i) for i in range(N)])
    places = {"lora": "both", "adapter": "mlp"}
    cells = [
        store.run("alpha", m, answers=["red"] * N, scores=coin(0.5, N, 1), location=location, seed=seed)
        for m, location in places.items()
        for seed in (1, 2)
    ]
    tabulate_study(table_spec(cells), tmp_path, tmp_path / "tables")
    data = figure_data(read_long(tmp_path / "tables/trial.csv"))
    assert data.variants == [""]
    assert [dot.estimate.seeds for dot in data.panels[0].dots if dot.estimate] == [2, 2]


def test_a_run_without_a_score_is_a_dot_that_says_so(tmp_path: Path) -> None:
    store = FakeStore(tmp_path)
    for name in ("alpha", "beta"):
        store.dataset(name, [example(store, name, i) for i in range(N)])
    cells = [
        store.run("alpha", "lora", answers=["red"] * N, scores=coin(0.5, N, 1)),
        store.run("beta", "lora", until="train", failed={"train": "diverged"}),
    ]
    tabulate_study(table_spec(cells), tmp_path, tmp_path / "tables")
    data = figure_data(read_long(tmp_path / "tables/trial.csv"))
    assert [(panel.title, panel.dots[0].status) for panel in data.panels] == [
        ("Average", "failed"),
        ("ALPHA", "ok"),
        ("BETA", "failed"),
    ]
    plot_study(PlotSpec(study="trial", title="T"), tmp_path / "tables/trial.csv", tmp_path)
    ET.parse(tmp_path / "trial.svg")


def test_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    table = study(tmp_path, ["lora", "ia3"], ["alpha"])
    spec = PlotSpec(study="trial", title="A <trial> & more")
    first = plot_study(spec, table, tmp_path / "a")
    second = plot_study(spec, table, tmp_path / "b")
    assert first == second
    for name in ("trial.png", "trial.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert b"dc:date" not in (tmp_path / "a/trial.svg").read_bytes()


def test_eight_methods_on_eight_sets_stay_apart(tmp_path: Path) -> None:
    methods = [f"m{i}" for i in range(8)]
    table = study(tmp_path, methods, [f"set{i}" for i in range(8)])
    facts = plot_study(PlotSpec(study="trial", title="Many"), table, tmp_path)
    assert facts["panels"] == 9
    with Image.open(tmp_path / "trial.png") as picture:
        width, height = picture.size
    assert 1200 < width < 2400 and 1000 < height < 2400


def test_a_missing_table_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv: No such file.*run snakemake"):
        plot_study(PlotSpec(study="trial", title="T"), tmp_path / "none.csv", tmp_path)
