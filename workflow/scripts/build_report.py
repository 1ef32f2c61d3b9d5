#!/usr/bin/env python
"""Build the page of one study: table, figure, training curves, and a gallery of answers.

Leaves <study>.html, which opens from disk without a network, and a marker that says what it was made from.
"""

from typing import Any

from peftbench.job import Job, run_stage


def report(job: Job) -> dict[str, Any]:
    """Run the stage; return facts for the marker."""
    from peftbench.report.build import build_report

    return build_report(spec=job.spec, results=job.results, out_dir=job.work)


if __name__ == "__main__":
    run_stage("report", report, __doc__ or "")
