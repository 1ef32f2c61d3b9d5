"""``peftbench annotate``: a sheet for people from a study's answers, and what they found."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from peftbench.config import Settings
from peftbench.errors import UserError, did_you_mean
from peftbench.graph import Plan, StudyPlan
from peftbench.reading import read_text
from peftbench.study import Run


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "annotate", help="a sheet on which people mark hallucinations, and their counts (Table 7)"
    )
    steps = parser.add_subparsers(required=True, metavar="STEP")

    make = steps.add_parser("make", help="write sheet.html (for people) and key.json (not for them)")
    make.add_argument("study", help="a study whose answers are there")
    make.add_argument("--out", type=Path, required=True, help="folder for the sheet and its key")
    make.add_argument("--target", help="the data set tested on, where the study has several")
    make.add_argument(
        "--draw", type=int, default=100, help="pictures on the sheet (default: 100, as in the paper)"
    )
    make.add_argument(
        "--ids", type=Path, help="file with one id per line: draw among these test examples only"
    )
    make.add_argument("--seed", type=int, default=0, help="of the draw and of the order of the answers")
    make.add_argument("--root", type=Path, default=Path(), help="the project's folder (default: here)")
    make.add_argument("--configfile", type=Path, nargs="*", default=[], help="overlays, as for snakemake")
    make.set_defaults(run=_make)

    count = steps.add_parser("count", help="counts per method and epoch, and how far annotators agree")
    count.add_argument(
        "files", type=Path, nargs="+", help="what annotators saved: CSV or JSON, one file each"
    )
    count.add_argument("--sheet", type=Path, required=True, help="folder of the sheet, with its key")
    count.add_argument("--out", type=Path, required=True, help="folder for hallucination.csv and .json")
    count.add_argument("--data", type=Path, help="folder of the prepared data set: adds the automatic rate")
    count.set_defaults(run=_count)


def _make(arguments: argparse.Namespace) -> int:
    from peftbench.annotation.sheet import Answers, make_sheet

    settings = Settings.from_files(arguments.root.resolve(), arguments.configfile)
    plan = Plan(settings)
    study = plan.study(arguments.study)
    if not study.runs:
        raise UserError(f"study {arguments.study} has no runs to annotate: it describes")
    target = _target(study, arguments.target)
    results = arguments.root / plan.results
    answers: dict[tuple[str, int | None], Answers] = {}
    for run, score in zip(study.runs, study.scores, strict=True):
        predictions = score.inputs["predictions"]
        folder = results / predictions.inputs.get("predictions", predictions).directory
        if run.target != target or not (folder / "predictions.parquet").exists():
            continue
        epoch = _epoch(run)
        # of several seeds or connectors the first stands for its method
        answers.setdefault((run.method, epoch), Answers(method=run.method, epoch=epoch, folder=folder))
    if not answers:
        raise UserError(
            f"study {arguments.study}: no answers to {target} yet: run 'snakemake {arguments.study}' first"
        )
    ids = read_text(arguments.ids).split() if arguments.ids else None
    sheet = make_sheet(
        list(answers.values()),
        arguments.out,
        data_dir=results / plan.prepare(target).directory,
        image_store=results / "images",
        prompt=settings.dataset(target, "the command line").prompt,
        ids=ids,
        draw=arguments.draw,
        seed=arguments.seed,
    )
    print(f"{arguments.out}/sheet.html: {len(sheet.items)} pictures, answers of {len(answers)} systems")
    print(
        f"{arguments.out}/key.json says who wrote which answer: keep it from the annotators", file=sys.stderr
    )
    return 0


def _target(study: StudyPlan, wanted: str | None) -> str:
    targets = list(dict.fromkeys(run.target for run in study.runs))
    if wanted is None and len(targets) == 1:
        return targets[0]
    if wanted not in targets:
        raise UserError(f"--target: which data set? not {wanted!r}{did_you_mean(wanted, targets)}")
    return str(wanted)


def _epoch(run: Run) -> int | None:
    epoch = run.axes.get("epoch")
    return epoch if isinstance(epoch, int) else None


def _count(arguments: argparse.Namespace) -> int:
    from peftbench.annotation.collect import import_annotations
    from peftbench.annotation.counts import report

    annotations = import_annotations(arguments.files, arguments.sheet)
    result = report(annotations, arguments.out, data_dir=arguments.data)
    import msgspec

    print(json.dumps(msgspec.to_builtins(result), indent=1))
    return 0
