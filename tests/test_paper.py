"""Every table and figure of the paper, made to the end on the tiny model: the same study files, fewer runs."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from peftbench.config import Settings

ROOT = Path(__file__).parent.parent
OVERLAY = ROOT / "config/paper_tiny.yaml"
SETTINGS = Settings.from_files(ROOT, [OVERLAY])
STUDIES = [name for name in SETTINGS.names("study") if SETTINGS.study(name).group == "paper"]
SCORED = [name for name in STUDIES if SETTINGS.study(name).kind == "table"]


def snakemake(directory: Path, *arguments: str) -> str:
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
        [*command, *arguments, "--configfile", str(OVERLAY)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("paper")
    snakemake(directory, "paper", "claims", "--cores", "2")
    return directory / "results"


def test_the_paper_has_these_tables_and_figures() -> None:
    found = set()
    for name in STUDIES:
        kind, first, last = re.fullmatch(r"(table|figure|contamination)(\d*)(?:_(\d+))?.*", name).groups()
        found |= {f"{kind}{n}" for n in range(int(first), int(last or first) + 1)} if first else {kind}
    assert found == {
        *(f"table{n}" for n in range(1, 16)),
        *(f"figure{n}" for n in range(2, 24)),
        "contamination",
    }


@pytest.mark.parametrize("name", SCORED)
def test_every_cell_has_a_value(name: str, paper: Path) -> None:
    table = pl.read_csv(paper / f"tables/{name}.csv", infer_schema_length=None)
    assert table.height > 0
    assert set(table["status"]) == {"ok"}, table.filter(pl.col("status") != "ok").select("reason").rows()[:3]
    for path in (f"tables/{name}.md", f"tables/{name}.tex", f"tables/{name}.html", f"figures/{name}.png"):
        assert (paper / path).stat().st_size > 300
    assert "data:image/" in (paper / f"report/{name}.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(set(STUDIES) - set(SCORED)))
def test_tables_that_describe_are_full(name: str, paper: Path) -> None:
    with (paper / f"tables/{name}.csv").open(encoding="utf-8", newline="") as stream:
        head, *rows = csv.reader(stream)
    assert len(rows) >= 1 and all(len(row) == len(head) for row in rows)
    for suffix in ("md", "tex", "html"):
        assert (paper / f"tables/{name}.{suffix}").stat().st_size > 150


def test_the_claims_have_verdicts(paper: Path) -> None:
    claims = pl.read_csv(paper / "tables/claims.csv", infer_schema_length=None)
    ours = claims.filter(pl.col("source") == "ours")
    assert set(claims["verdict"]) <= {"supported", "refuted", "undecided", "not run"}
    ran = ours.filter(pl.col("verdict") != "not run")
    assert ran.height >= 20, "most claims are about studies that ran"


def test_tables_of_one_model_share_their_runs(paper: Path) -> None:
    """Table 13 names another model than Table 2; here one stands in for both, so its runs are the same."""
    trained = [json.loads(path.read_text()) for path in (paper / "runs").glob("*/*/*/record.json")]
    digests = [record["digest"] for record in trained if record["stage"] == "train"]
    assert len(digests) == len(set(digests))
    two, thirteen = (
        pl.read_csv(paper / f"tables/{n}.csv") for n in ("table2_location", "table13_location_qwen")
    )
    assert two["digest"].to_list() == thirteen["digest"].to_list()


def test_a_second_run_does_nothing(paper: Path) -> None:
    assert "Nothing to be done" in snakemake(paper.parent, "-n", "paper", "claims")
