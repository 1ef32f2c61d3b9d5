#!/usr/bin/env python
"""Make the table of one study from the scores of its runs.

Leaves <study>.csv, .md, .html and .tex, and a marker that says which scores they were made from.
"""

from typing import Any

from peftbench.job import Job, run_stage


def tabulate(job: Job) -> dict[str, Any]:
    """Run the stage; return facts for the marker."""
    from peftbench.analysis.table import tabulate_study

    return tabulate_study(spec=job.spec, results=job.results, out_dir=job.work)


if __name__ == "__main__":
    run_stage("tabulate", tabulate, __doc__ or "")
