#!/usr/bin/env python
"""Make a table that describes: data sets, what models have seen, templates, settings, efficiency, overlap.

Leaves <study>.csv, .md, .html and .tex, and a marker that says what they were made from.
"""

from typing import Any

from peftbench.job import Job, run_stage


def describe(job: Job) -> dict[str, Any]:
    """Run the stage; return facts for the marker."""
    from peftbench.analysis.describe import describe_study

    return describe_study(spec=job.spec, results=job.results, out_dir=job.work)


if __name__ == "__main__":
    run_stage("describe", describe, __doc__ or "")
