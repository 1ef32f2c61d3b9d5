"""Draw nested subsets of a training split: every smaller draw is part of every larger one (paper, section 5.3)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from peftbench.data.load import read_ids
from peftbench.errors import UserError
from peftbench.spec import SubsetSpec


def nested_draw(ids: Iterable[str], size: int | Literal["full"], seed: int) -> list[str]:
    """Return ``size`` of the ids, those with the smallest ``sha256(seed/id)``; all of them for "full".

    The order of ``ids`` does not matter, and with one seed 1k is part of 5k is part of 10k.
    """
    ranked = sorted(ids, key=lambda i: (hashlib.sha256(f"{seed}/{i}".encode()).digest(), i))
    return ranked if size == "full" else ranked[:size]


def draw_subset(spec: SubsetSpec, data_dir: Path, out_dir: Path) -> dict[str, Any]:
    """Write ``ids.parquet`` (column ``id``) for one draw of the train split; return facts for the record.

    Raises ``UserError`` when the split has fewer rows than asked for.
    """
    from peftbench.arrow import pa, pq

    ids = read_ids(data_dir, "train")
    if spec.size != "full" and spec.size > len(ids):
        raise UserError(
            f"{data_dir}: has {len(ids)} training rows, the study asks for {spec.size}: lower train_size, or say full"
        )
    drawn = nested_draw(ids, spec.size, spec.seed)
    out_dir.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({"id": pa.array(drawn, pa.string())}), out_dir / "ids.parquet", compression="zstd"
    )
    return {"rows": len(drawn), "of": len(ids)}
