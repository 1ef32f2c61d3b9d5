"""How long planning takes, and how far plans are off.

    python benchmarks/plan.py                               # grids of 1,250 to 10,000 runs: seconds, and whether linear
    python benchmarks/plan.py --paper                       # the full paper: its totals, beside another count
    python benchmarks/plan.py --learn results --predict other/results    # plans from one run, against another run

Needs no weights, no network and no GPU.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import yaml

from peftbench.config import Settings
from peftbench.graph import Plan
from peftbench.planning.calibrate import calibrate, error_of
from peftbench.planning.estimate import Estimator, try_estimate
from peftbench.planning.hardware import read_hardware
from peftbench.planning.page import to_html
from peftbench.planning.records import read_measurements
from peftbench.planning.subject import subjects_of
from peftbench.planning.text import duration, hours, to_csv, to_json
from peftbench.planning.texts import Lengths, read_assumptions
from peftbench.planning.totals import Planner, Sums
from peftbench.planning.wanted import wanted

ROOT = Path(__file__).resolve().parents[1]
SIZES = (1_250, 2_500, 5_000, 10_000)
TABLES = {
    "table1_main": (256, 284.5),
    "table2_location": (42, 36.1),
    "table13_location_qwen": (42, 27.8),
    "table3_data_scale": (92, 25.5),
    "table6_size": (66, 41.2),
    "table14_learning_rate": (76, 47.5),
    "table4_generalization": (12, 46.2),
    "table7_hallucination": (0, 0.0),
    "figure5_size": (0, 0.0),
    "table12_visual_encoder": (16, 14.1),
}
"""Study -> unique trainings and EFLOPs of an independent count of the paper's grids (text of 50 to 300 tokens assumed
by data set, ScienceQA with its questions without pictures), each table counting what those above it lack."""


def grid_project(folder: Path, runs: int) -> Path:
    """A copy of the configuration with one study of ``runs`` trainings."""
    shutil.copytree(ROOT / "config", folder / "config")
    for name in ("workflow", "paper"):
        (folder / name).symlink_to(ROOT / name)
    seeds = -(-runs // (4 * 2 * 5))
    study = {
        "title": "Grid",
        "axes": {
            "model": "llava-1.5-7b",
            "method": ["adapter", "lora", "prefix", "ia3"],
            "connector": ["tuned", "frozen"],
            "dataset": ["scienceqa_img", "vizwiz", "okvqa", "ocrvqa", "vqav2"],
            "seed": list(range(seeds)),
        },
        "rows": ["method", "connector", "seed"],
    }
    (folder / "config/studies/grid.yaml").write_text(yaml.safe_dump(study))
    return folder


def time_grid(runs: int) -> tuple[float, float, float, int]:
    """Seconds to expand the configuration, to plan it and to write it out, and its jobs."""
    with tempfile.TemporaryDirectory() as temporary:
        root = grid_project(Path(temporary), runs)
        start = time.perf_counter()
        plan = Plan(Settings.from_files(root))
        asked = wanted([plan.study("grid")])
        expanded = time.perf_counter()
        planner = Planner(plan, "a100-80gb", read_hardware(root, "a100-80gb"), root)
        result = planner.result(asked, set(asked.jobs), "grid", gpus=8)
        planned = time.perf_counter()
        to_json(result), to_csv(result), to_html(result)
        return expanded - start, planned - expanded, time.perf_counter() - planned, len(result.jobs)


def grids() -> int:
    """Print the times; 1 where ten thousand runs take over twice their share of the smallest grid."""
    print("runs     jobs    expand s   plan s  write s   ms per run")
    shares = []
    for runs in SIZES:
        expand, plan, write, jobs = time_grid(runs)
        shares.append((expand + plan + write) / runs)
        print(f"{runs:6,} {jobs:8,} {expand:9.2f} {plan:8.2f} {write:8.2f} {1000 * shares[-1]:12.3f}")
    linear = shares[-1] < 2 * shares[0]
    print("linear" if linear else "not linear")
    return 0 if linear else 1


def paper(hardware: str) -> int:
    """Print the totals of the full paper beside the independent count."""
    start = time.perf_counter()
    plan = Plan(Settings.from_files(ROOT, [ROOT / "config/paper.yaml"]))
    group = [name for name in plan.settings.names("study") if plan.study(name).group == "paper"]
    order = [*TABLES, *(name for name in group if name not in TABLES)]
    asked = wanted([plan.study(name) for name in order])
    planner = Planner(plan, hardware, read_hardware(ROOT, hardware), ROOT)
    result = planner.result(asked, set(asked.jobs), "paper", gpus=8)
    sums: dict[str, Sums] = {}
    for job in result.jobs:
        if job.stage == "train":
            sums.setdefault(job.study, Sums()).add(job)
    print(f"planned in {time.perf_counter() - start:.1f} s: {len(result.jobs):,} jobs")
    print(f"{'study':24} trainings  EFLOPs  GPU-hours | counted elsewhere")
    for study in order:
        one = sums.get(study)
        there = TABLES.get(study)
        if one or there:
            one = one or Sums()
            beside = f"{there[0]:6d} {there[1]:8.1f}" if there else ""
            print(f"{study:24} {one.run:9d} {one.flops / 1e18:7.1f} {hours(one.gpu_hours):>10} | {beside}")
    train, predict = result.stages["train"], result.stages["predict"]
    print(
        f"{'all trainings':24} {train.run:9d} {train.flops / 1e18:7.1f} {hours(train.gpu_hours):>10} | "
        f"{sum(n for n, _ in TABLES.values()):6d} {sum(f for _, f in TABLES.values()):8.1f}"
    )
    print(f"{'answering':24} {predict.run:9d} {predict.flops / 1e18:7.1f} {hours(predict.gpu_hours):>10}")
    cost = f"{result.cost:,.0f} {result.hardware.currency}"
    print(f"{result.hardware.title}: {duration(result.schedule.seconds)} on 8, {cost}")
    return 0


def transfer(learn: list[Path], predict: list[Path], hardware: str) -> int:
    """Print, per stage, what a plan from some records says of jobs that others measured."""
    plan = Plan(Settings.from_files(ROOT))
    assumptions = read_assumptions(ROOT)
    lengths = Lengths(assumptions)
    known, new = (subjects_of(read_measurements(folders).all) for folders in (learn, predict))
    lengths.learn(known)
    estimator = Estimator(plan.settings, read_hardware(ROOT, hardware), assumptions, lengths)
    calibration = calibrate(known, estimator, assumptions)
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for subject, one in new:
        found = try_estimate(estimator, subject, subject.computes or 0)
        if found is None or one.failed:
            continue
        for target, real in (("cpu", one.cpu), ("wall", one.wall)):
            guess = calibration.correct(subject, target, found.fixed, found.work)
            if real > 0:
                pairs.setdefault((subject.stage, target), []).append((guess, real))
    print(f"learnt from {len(known)} records, compared with {len(new)}")
    print("stage      time  records  planned s  measured s   total   median error")
    for (stage, target), found_pairs in pairs.items():
        error = error_of(stage, target, found_pairs)
        guessed, measured = (sum(pair[i] for pair in found_pairs) for i in (0, 1))
        print(
            f"{stage:10} {target:5} {error.records:7d} {guessed:10.1f} {measured:11.1f} {error.total:+6.1f} % "
            f"{error.median:12.1f} %"
        )
    return 0


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--paper", action="store_true", help="the totals of the full paper")
    parser.add_argument(
        "--learn", type=Path, nargs="+", metavar="RESULTS", help="results folders to learn from"
    )
    parser.add_argument(
        "--predict", type=Path, nargs="+", metavar="RESULTS", help="results folders to compare with"
    )
    parser.add_argument(
        "--hardware", help="a file of config/hardware (default: a100-80gb, cpu-2-cores for --learn)"
    )
    arguments = parser.parse_args()
    if bool(arguments.learn) != bool(arguments.predict):
        parser.error("--learn and --predict go together")
    if arguments.learn:
        return transfer(arguments.learn, arguments.predict, arguments.hardware or "cpu-2-cores")
    return paper(arguments.hardware or "a100-80gb") if arguments.paper else grids()


if __name__ == "__main__":
    sys.exit(main())
