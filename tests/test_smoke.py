"""The whole path with real training, prediction, scores, table and page: the study ``smoke``, run once.

Also what every shipped configuration would run, by dry-run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from peftbench.config import Settings

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def snakemake(directory: Path, *arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "snakemake",
            "-s",
            str(ROOT / "Snakefile"),
            "--directory",
            str(directory),
            *arguments,
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def planned(directory: Path, *arguments: str) -> dict[str, int]:
    """Jobs per rule that a dry-run announces."""
    said = snakemake(directory, "-n", *arguments)
    if "Nothing to be done" in said:
        return {}
    found = re.findall(r"^(\w+) +(\d+)$", said.rsplit("Job stats:", 1)[1], flags=re.MULTILINE)
    return {rule: int(n) for rule, n in found}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the study has been made, by two jobs at a time that share a warm worker."""
    directory = tmp_path_factory.mktemp("smoke")
    snakemake(directory, "smoke", "--cores", "2")
    return directory


def table(directory: Path) -> pl.DataFrame:
    return pl.read_csv(directory / "results/tables/smoke.csv")


def records(directory: Path, stage: str) -> dict[Path, dict[str, Any]]:
    found = {p: json.loads(p.read_text()) for p in (directory / "results").rglob("record.json")}
    return {p: r for p, r in found.items() if r["stage"] == stage}


def test_the_table_is_full_and_honest(smoke: Path) -> None:
    rows = table(smoke)
    assert rows.height == 8 * 3 and set(rows["status"]) == {"ok"}
    assert rows["stderr"].is_between(0, 15, closed="right").all()
    assert set(rows["n"]) == {300, 500}
    for name in ("tables/smoke.md", "tables/smoke.html", "figures/smoke.png", "figures/smoke.svg"):
        assert (smoke / "results" / name).stat().st_size > 500
    page = (smoke / "results/report/smoke.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page and "untuned base" in page
    assert not re.search(r"""(?:src|href)=["']https?://""", page), "the page must open without a network"


def test_tuning_beats_the_untuned_base_beyond_the_error_bars(smoke: Path) -> None:
    rows = table(smoke)
    for dataset in ("vizwiz_mini", "flickr30k_mini"):
        one = {r["method"]: r for r in rows.filter(pl.col("dataset") == dataset).iter_rows(named=True)}
        for method in ("lora", "adapter"):
            gain = one[method]["value"] - one["base"]["value"]
            assert gain > one[method]["stderr"] + one["base"]["stderr"], (dataset, method, gain)


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium (Debian package chromium)")
def test_the_page_is_drawn_by_a_browser(smoke: Path, tmp_path: Path) -> None:
    """From disk, without a network: the screenshot shows the table's shades and the gallery's pictures."""
    from PIL import Image

    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [
        "--no-first-run",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--screenshot={tmp_path / 'page.png'}",
    ]
    page = (smoke / "results/report/smoke.html").as_uri()
    subprocess.run([*command, "--window-size=1200,3000", page], check=True, capture_output=True, timeout=120)
    picture = Image.open(tmp_path / "page.png").convert("RGB")
    assert picture.size == (1200, 3000)
    top, bottom = picture.crop((0, 0, 1200, 1000)), picture.crop((0, 2000, 1200, 3000))
    assert all(len(part.getcolors(1 << 24) or []) > 300 for part in (top, bottom))


def test_a_second_run_does_nothing(smoke: Path) -> None:
    assert planned(smoke, "smoke") == {}


def test_another_rank_reruns_exactly_its_runs(smoke: Path) -> None:
    jobs = planned(smoke, "smoke", "--config", "methods={lora: {rank: 8}}")
    views = {f"{view}_smoke": 1 for view in ("tabulate_study", "plot_study", "build_report")}
    runs = dict.fromkeys(("train_adapter", "generate_predictions", "score_predictions"), 8)
    assert jobs == {**runs, **views, "smoke": 1, "total": 28}


def test_records_tell_what_was_run_and_what_it_cost(smoke: Path) -> None:
    runs = records(smoke, "train")
    assert len(runs) == 16
    for path, record in runs.items():
        assert path.parent.name.endswith(record["digest"])
        assert record["spec"]["seed"] == 42 and record["spec"]["optim"]["schedule"] == "cosine"
        assert {"torch", "transformers", "peft"} <= set(record["provenance"]["versions"])
        assert record["provenance"]["wall_seconds"] > 0 and record["provenance"]["peak_memory"] > 1e8
        throughput = record["facts"]["throughput"]
        assert throughput["samples_per_s"] > 1 and 0 <= throughput["padding_share"] < 0.5
        weights = {name for name in record["facts"]["outputs"] if name.endswith(".safetensors")}
        assert weights == {"adapter/adapter_model.safetensors", "connector.safetensors"}
        assert set(record["facts"]["trainable"]) >= {"connector"}


def test_a_run_alone_has_the_same_bits(smoke: Path, tmp_path: Path) -> None:
    """Not shared with other runs in a warm worker, started anew: the same weights, bit for bit."""
    path, record = next((p, r) for p, r in sorted(records(smoke, "train").items()) if "vizwiz" in str(p))
    for part in ("data", "subsets", "models", "images", ".tickets"):
        shutil.copytree(smoke / "results" / part, tmp_path / "results" / part)
    run = path.relative_to(smoke)
    snakemake(tmp_path, str(run), "--cores", "1", PEFTBENCH_WORKER="none")
    again = json.loads((tmp_path / run).read_text())

    def weights(made: dict[str, Any]) -> dict[str, str]:
        return {k: v for k, v in made["facts"]["outputs"].items() if k.endswith(".safetensors")}

    assert len(weights(record)) == 2
    assert weights(again) == weights(record)


VIEWS = ("tabulate_study", "plot_study", "build_report")


@pytest.mark.parametrize(
    ("study", "data", "trained"),
    [("demo", 4, 32), ("table1_main", 8, 64), ("smoke", 8, 16)],
)
def test_every_shipped_study_plans_its_jobs(tmp_path: Path, study: str, data: int, trained: int) -> None:
    scored = trained + data  # the untuned base, once per data set
    assert planned(tmp_path, study) == {
        "prepare_dataset": data,
        "draw_subset": data,
        "build_base_model": 1,
        "train_adapter": trained,
        "generate_predictions": scored,
        "score_predictions": scored,
        **{f"{view}_{study}": 1 for view in VIEWS},
        study: 1,
        "total": 2 * data + 1 + trained + 2 * scored + 4,
    }


def test_every_study_is_run_somewhere() -> None:
    """``demo`` and ``smoke`` here and by ``make demo``; the groups in ``test_paper.py`` and ``test_beyond.py``."""
    settings = Settings.from_files(ROOT)
    groups = {"paper", "beyond"}
    others = {name for name in settings.names("study") if settings.study(name).group not in groups}
    assert others == {"demo", "smoke"}
