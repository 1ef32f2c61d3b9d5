"""Train the tiny base model by its recipe and put it where it ships from.

Run by hand after a change of the recipe: ``python -m peftbench.models.tiny.ship [--out DIR] [--device cuda]``.
Takes an hour or two on two CPU cores, which is why the result is shipped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import msgspec

from peftbench.models.sources.tiny import SHIPPED
from peftbench.models.tiny.recipe import Recipe
from peftbench.models.tiny.train import train


def main() -> None:
    """Train, then write the folder and ``recipe.json`` (settings, device, losses, probe, sha256 of each file)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=SHIPPED, help="folder to write (default: where it ships from)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--workers", type=int, default=0, help="further processes that draw the examples")
    parser.add_argument(
        "--keep", type=Path, help="folder that keeps the trained tower between trials of the exposure"
    )
    parser.add_argument("--settings", default="{}", help="JSON: settings of the source block to change")
    args = parser.parse_args()
    source = msgspec.convert({"kind": "tiny", "weights": "train", **json.loads(args.settings)}, Recipe)
    facts = train(source, args.out, args.device, args.workers, keep=args.keep)
    (args.out / "recipe.json").write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=1) + b"\n")
    print(json.dumps(facts["probe"]))


if __name__ == "__main__":
    main()
