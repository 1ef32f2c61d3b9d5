"""The page "which method?": it says what the results say, what they are from, and what they do not tell."""

from pathlib import Path

import pytest

from peftbench.cli import main
from peftbench.report.which import which_page
from test_summaries import OVERLAY, ROOT, filled, plan

SCORES = {"base": (70, 10), "spider": (65, 30), "lora": (50, 40), "dora": (50, 40), "ia3": (60, 9)}


def tradeoff(cell):
    return float(SCORES.get(cell.method, (40, 5))[cell.target == cell.dataset])


@pytest.fixture
def page(tmp_path: Path) -> str:
    filled(tmp_path, "spider_tradeoff", tradeoff)
    return which_page(plan(), ["spider_tradeoff"], "llava-1.5-7b", tmp_path)


def test_the_best_and_what_is_not_told_from_it(page):
    assert "**Target:** best is LoRA with 40.0 ± 0.5, better than the untuned base" in page
    assert "not told from it by these test examples: DoRA." in page
    assert "Not told from the untuned base: IA3." in page
    line = next(line for line in page.splitlines() if "together" in line)
    # scores of two methods that are equal are both on the frontier
    assert "as LoRA (50.0 ± 0.4; 40.0 ± 0.5), DoRA (50.0 ± 0.4; 40.0 ± 0.5) and SPIDER (65.0" in line


def test_each_method_with_its_formula_and_what_it_is_good_at(page):
    rows = {line.split(" (`")[0].strip("| "): line for line in page.splitlines() if "(`" in line}
    assert "| 320 M |" in rows["LoRA"] and "best in target, or not told from it" in rows["LoRA"]
    assert "on the frontier of source mean and target" in rows["SPIDER"]
    assert "best in" not in rows["SPIDER"]
    assert rows["Grafting"].endswith("| – |")
    assert "LoRA (Hu et al. 2021): `y = W x + (alpha / rank) B A drop(x)`" in rows["LoRA"]


def test_a_toy_is_called_one(page):
    assert "built from the results of `spider_tradeoff`: model tiny LLaVA, 100 training examples" in page
    assert "**tiny LLaVA is a toy.**" in page and "nothing about models of billions of parameters" in page


def test_the_committed_page_is_of_this_form():
    committed = (ROOT / "docs/which_method.md").read_text(encoding="utf-8")
    assert "Made by `peftbench which`" in committed and "is a toy" in committed
    assert "without a score" not in committed


def test_the_command_writes_the_page(tmp_path, capsys):
    filled(tmp_path / "results", "spider_tradeoff", tradeoff)
    out = tmp_path / "which.md"
    arguments = ["which", "spider_tradeoff", "--root", str(ROOT), "--configfile", str(OVERLAY)]
    assert main([*arguments, "--results", str(tmp_path / "results"), "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8").startswith("# Which method?")
    assert main([*arguments, "--results", str(tmp_path / "none")]) == 1
    assert (
        "none of the runs of spider_tradeoff is there: run snakemake spider_tradeoff"
        in capsys.readouterr().err
    )
    assert main(["which", "demo", *arguments[2:]]) == 1
    assert "demo.yaml: which: it has no summaries with pairs" in capsys.readouterr().err
