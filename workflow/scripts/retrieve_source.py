#!/usr/bin/env python
"""Fetch one repository of the hub, one file of the web, or local files.

Leaves the files and the record with the size and sha256 of each. The only stage that uses the network: run it where
there is one.
"""

from typing import Any

from peftbench.job import Job, run_stage


def retrieve(job: Job) -> dict[str, Any]:
    """Run the stage; return facts for the record."""
    from peftbench.retrieve.fetch import retrieve

    return retrieve(
        spec=job.spec,
        out_dir=job.work,
        staging=job.staging,
        local_path=job.execution.local,
        mirrors=job.execution.mirrors,
    )


if __name__ == "__main__":
    run_stage("retrieve", retrieve, __doc__ or "")
