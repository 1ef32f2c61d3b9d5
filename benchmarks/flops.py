"""The efficiency table of the models whose sizes are known: trainable parameters, FLOPs by formula and counted.

    python benchmarks/flops.py                          # the 16 cells of the paper's Table 15
    python benchmarks/flops.py --models qwen-vl-chat    # another model of config/models
    python benchmarks/flops.py --locations --sizes      # also its Tables 2 and 6: where the method is, and how large
    python benchmarks/flops.py --out folder             # as CSV, Markdown and HTML as well
    python benchmarks/flops.py --whole                  # run all layers instead of two, and compare

Needs no weights and no network. A model's sizes are those of ``config/architectures/<model>.json``, or of the model
that it extends.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import Any

from peftbench.analysis.efficiency import costs_table, published_table, write_efficiency
from peftbench.config import Settings
from peftbench.efficiency.architecture import image_shape, instantiate, read_architecture
from peftbench.efficiency.explain import explain, label
from peftbench.efficiency.flops import image_costs, measure
from peftbench.efficiency.parameters import EfficiencyModel, Setting, attach_on_meta
from peftbench.efficiency.table import Cell, Workload, efficiency_rows, read_published
from peftbench.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PAPER_VOCABULARY = 32000
"""Rows of LLaVA's embeddings in the paper's counts; the converted checkpoints have 64 more."""
METHODS = ("adapter", "lora", "ia3", "prefix")
LOCATIONS = {"adapter": ("attn", "both"), "lora": ("attn", "mlp"), "ia3": ("attn", "mlp"), "prefix": ()}
"""Besides the method's own default."""
SIZES: dict[str, tuple[str, tuple[int, ...]]] = {
    "adapter": ("bottleneck", (32, 64, 128)),
    "lora": ("rank", (16, 32, 64)),
    "prefix": ("tokens", (10, 30, 40)),
    "ia3": ("", ()),
}


def load_model(settings: Settings, name: str, published: set[str]) -> EfficiencyModel:
    """A model of ``config/models`` with its sizes; ``UserError`` where they are not known here."""
    config = settings.model(name, "the command line")
    # Named in the model's file; else the file of its own name, or that of the model it extends.
    folder, owner = settings.root / "config/architectures", config.architecture or name
    while not (folder / f"{owner}.json").exists():
        above = None if config.architecture else settings.model(owner, name).extends
        if not above:
            raise UserError(
                f"model {name}: its sizes are not known: there is no config/architectures/{owner}.json"
            )
        owner = above
    stands_for = config.stands_for or name
    return EfficiencyModel(
        name=name,
        title=config.title,
        stands_for=stands_for,
        names=config.names,
        architecture=read_architecture(folder / f"{owner}.json"),
        vocabulary=PAPER_VOCABULARY if stands_for in published else None,
    )


def cells_of(
    model: EfficiencyModel, defaults: dict[str, dict[str, Any]], options: argparse.Namespace
) -> list[Cell]:
    """The rows of one model."""
    settings = []
    for method in METHODS:
        own = defaults.get(method, {})
        variants: list[tuple[str, dict[str, Any]]] = [("default", own)]
        if options.locations:
            variants += [(location, own) for location in LOCATIONS[method]]
        if options.sizes:
            key, sizes = SIZES[method]
            variants += [("default", own | {key: size}) for size in sizes]
        settings += [
            Setting(method=method, settings=values, connector=connector, location=location)
            for location, values in variants
            for connector in ("frozen", "tuned")
        ]
    return [Cell(model=model, setting=setting) for setting in settings]


def check_whole(cell: Cell, workload: Workload) -> int:
    """Operations of a training step with all layers run."""
    model = instantiate(cell.model.architecture, cell.model.names.code)
    attach_on_meta(model, cell.model.names, cell.setting)
    image = image_costs(model, cell.model.names, cell.model.pixels or image_shape(model.config))
    return measure(model, cell.model.names, image, workload.text, workload.answer, whole=True).training.total


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["llava-1.5-7b", "llava-1.5-13b"])
    parser.add_argument("--text", type=int, default=70, help="tokens of the prompt besides the image's")
    parser.add_argument("--answer", type=int, default=5, help="tokens of the answer, its end token included")
    parser.add_argument("--locations", action="store_true")
    parser.add_argument("--sizes", action="store_true")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    with (ROOT / "paper/tables/table15_efficiency.csv").open(encoding="utf-8", newline="") as stream:
        published = read_published(csv.DictReader(stream))
    settings = Settings.from_files(ROOT)
    workload = Workload(
        title="a visual question with a short answer", text=options.text, answer=options.answer
    )
    try:
        cells = []
        for name in options.models:
            model = load_model(settings, name, {key[0] for key in published})
            cells += cells_of(model, settings.model(name, "the command line").methods, options)
        rows = efficiency_rows(cells, workload, published)
    except UserError as error:
        sys.exit(f"error: {error}")
    for table in [costs_table(rows, {}), *published_table(rows)]:
        show(table)
    for text in explain(rows, workload):
        print(text, end="\n\n")
    if options.out:
        write_efficiency(rows, workload, options.out, "efficiency")
    print(f"{len(rows)} rows in {time.monotonic() - started:.1f} s")
    if options.whole:
        for cell, row in zip(cells, rows, strict=True):
            whole = check_whole(cell, workload)
            print(f"{label(row)}: all layers {whole:,}, from two layers {row.train_measured:,}:", end=" ")
            print("equal" if whole == row.train_measured else "DIFFERENT")


def show(table: Any) -> None:
    """One table as aligned text."""
    heads = [" ".join([h.label, h.note.replace(" · ", " ")]).strip().split(" ") for h in table.headings]
    lines = [[" ".join(words[i : i + 1]) for words in heads] for i in range(max(map(len, heads)))]
    for block in table.blocks:
        lines += [[block.label, *[""] * (len(heads) - 1)], *block.rows]
    widths = [
        max(len(line[i]) for line in lines if line[1:] != [""] * (len(heads) - 1)) for i in range(len(heads))
    ]
    print(table.title)
    for line in lines:
        cells = [
            c.ljust(w) if i < table.keys else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    print()


if __name__ == "__main__":
    main()
