#!/usr/bin/env python
"""Draw the training examples of one size and seed from a prepared data set.

Leaves their ids in training order (ids.parquet) and the record.
"""

from typing import Any

from peftbench.job import Job, run_stage


def draw(job: Job) -> dict[str, Any]:
    """Run the stage; return facts for the record."""
    from peftbench.data.subset import draw_subset

    return draw_subset(spec=job.spec, data_dir=job.input("data"), out_dir=job.work)


if __name__ == "__main__":
    run_stage("subset", draw, __doc__ or "")
