"""The studies beyond the paper, made to the end on the tiny model: every cell, every summary, every figure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import polars as pl
import pytest

from peftbench.analysis.grid import build_grid
from peftbench.analysis.outcomes import read_outcomes
from peftbench.config import Settings
from peftbench.graph import Plan
from peftbench.views import TabulateSpec

ROOT = Path(__file__).parent.parent
OVERLAY = ROOT / "config/beyond_tiny.yaml"
SETTINGS = Settings.from_files(ROOT, [OVERLAY])
STUDIES = [name for name in SETTINGS.names("study") if SETTINGS.study(name).group == "beyond"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("beyond")
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "-s",
        str(ROOT / "Snakefile"),
        "--directory",
        str(directory),
    ]
    done = subprocess.run(
        [*command, "beyond", "--cores", "2", "--configfile", str(OVERLAY)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return directory / "results"


def test_there_are_these_studies() -> None:
    assert STUDIES == ["forgetting_loss", "peft_zoo", "peft_zoo_equal_budget", "spider_tradeoff"]


@pytest.mark.parametrize("name", STUDIES)
def test_every_cell_has_a_value(name: str, results: Path) -> None:
    table = pl.read_csv(results / f"tables/{name}.csv", infer_schema_length=None)
    assert table.height > 0
    assert set(table["status"]) == {"ok"}, table.filter(pl.col("status") != "ok").select("reason").rows()[:3]
    for path in (f"tables/{name}.md", f"tables/{name}.tex", f"tables/{name}.html", f"figures/{name}.png"):
        assert (results / path).stat().st_size > 300
    assert "<svg" in (results / f"report/{name}.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", STUDIES)
def test_every_tuned_row_has_all_its_summaries(name: str, results: Path) -> None:
    spec = msgspec.json.decode(Plan(SETTINGS).study(name).tabulate.spec, type=TabulateSpec)  # type: ignore[union-attr]
    grid = build_grid(spec, read_outcomes(spec, results), None, results)
    tuned = [row for row in grid.rows if not row.untuned]
    assert tuned and all(cell.estimate is not None for row in tuned for cell in row.averages)
    figure = (results / f"figures/{name}.svg").read_text(encoding="utf-8")
    assert figure.count("<!--") > 10  # texts of the figure, which has paths for letters


def test_ia3_answers_the_same_merged_or_not(results: Path) -> None:
    """In fp32; with bf16 weights merging would round."""
    table = pl.read_csv(results / "tables/peft_zoo.csv", infer_schema_length=None)
    values = table.filter(pl.col("method") == "ia3").select("merge", "value").rows()
    assert {merge for merge, _ in values} == {None, "always"} and len({value for _, value in values}) == 1
