"""Scores per test item: read from what the score stage left, and put beside each other item by item."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from peftbench.analysis.statistics.result import NotComputable
from peftbench.errors import UserError
from peftbench.store import FAILED, RECORD, read_record

if TYPE_CHECKING:
    import numpy as np

SAME_VALUE = 1e-6
"""How far the mean over items may be from the value in the record."""


class Items(Struct, frozen=True, kw_only=True):
    """One configuration on one test set: a score per seed and item."""

    ids: list[str]
    """Of the items, sorted."""
    scores: "np.ndarray"
    """[seeds, items]; NaN where an item could not be scored, such as a judgement that failed."""
    clusters: "np.ndarray | None" = None
    """Code of each item's image, [items]; None where no two items share one, or where it is not known."""

    @property
    def value(self) -> float:
        """Mean over seeds of the mean over scored items."""
        import numpy as np

        return float(np.nanmean(self.scores, axis=1).mean())


def read_items(
    scores: Path, results: Path, column: str = "score", value: float | None = None
) -> Items | NotComputable:
    """The items of one scored run (folder ``scores``), sorted by id; ``column`` of its ``examples.parquet``.

    With ``value``, the mean over the items has to be that: a corpus score that is no mean over items cannot be
    resampled by item. (CIDEr is one: its per-image values hold the document frequencies of the whole reference
    set, and these stay fixed when images are resampled.) Items that share an image are one cluster.
    """
    import numpy as np
    import polars as pl

    path = scores / "examples.parquet"
    try:
        record = read_record(scores / RECORD)
        frame = pl.read_parquet(path, columns=["id", column]).sort("id")
        if record.facts.get(FAILED):
            return NotComputable(f"scoring failed: {record.facts[FAILED]}")
    except UserError as error:
        return NotComputable(str(error))
    except (OSError, pl.exceptions.PolarsError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        return NotComputable(f"{path}: cannot be read ({line})")
    found = frame[column].cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
    if np.isnan(found).all():
        return NotComputable(f"{path}: no scored test items")
    if value is not None and abs(float(np.nanmean(found)) - value) > SAME_VALUE * max(1.0, abs(value)):
        return NotComputable("the score is not the mean of the scores of its items")
    ids = frame["id"].to_list()
    return Items(
        ids=ids,
        scores=found[np.newaxis, :],
        clusters=clusters_of(ids, _images(results, record.inputs.get("data", ""))),
    )


def clusters_of(ids: Sequence[str], images: dict[str, str]) -> "np.ndarray | None":
    """Codes of the items' images; None where no image is shared. An item without an image stands alone."""
    from peftbench.metrics._uncertainty import cluster_codes

    return cluster_codes([images.get(name, "") for name in ids])


@functools.lru_cache(maxsize=32)
def _images(results: Path, digest: str) -> dict[str, str]:
    """Item -> image of the prepared test split with this digest; empty where it is gone."""
    import polars as pl

    if not digest:
        return {}
    for path in sorted((results / "data").glob(f"*-{digest}/test.parquet")):
        try:
            frame = pl.read_parquet(path, columns=["id", "image"])
        except (OSError, pl.exceptions.PolarsError):
            continue
        return dict(zip(frame["id"].to_list(), frame["image"].to_list(), strict=True))
    return {}


def over_seeds(runs: Sequence[Items | NotComputable]) -> Items | NotComputable:
    """Runs that differ in their seed only, as one configuration."""
    import numpy as np

    bad = next((run for run in runs if isinstance(run, NotComputable)), None)
    if bad is not None:
        return bad
    good = [run for run in runs if isinstance(run, Items)]
    if not good:
        return NotComputable("no run")
    if any(run.ids != good[0].ids for run in good):
        return NotComputable("the seeds were scored on different test items")
    return msgspec.structs.replace(good[0], scores=np.vstack([run.scores for run in good]))
