#!/usr/bin/env python
"""Bring one data set into the normalised form.

Leaves one parquet file per split and the record; images go to the content-addressed store in the results
folder.
"""

from typing import Any

from peftbench.job import Job, run_stage


def prepare(job: Job) -> dict[str, Any]:
    """Run the stage; return facts for the record."""
    from peftbench.data.prepare import prepare_dataset

    return prepare_dataset(spec=job.spec, out_dir=job.work, image_store=job.images, files=job.files)


if __name__ == "__main__":
    run_stage("prepare", prepare, __doc__ or "")
