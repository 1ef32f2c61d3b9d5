#!/usr/bin/env python
"""Hold each claim of the paper against our runs and against the published tables.

Leaves claims.csv, claims_comparisons.csv, claims.md, claims.html and diagrams, and a marker that says what they were
made from. Runs that are not there make a claim "not run".
"""

from typing import Any

from peftbench.job import Job, run_stage


def judge(job: Job) -> dict[str, Any]:
    """Run the stage; return facts for the marker."""
    from peftbench.analysis.claims import test_claims

    return test_claims(spec=job.spec, results=job.results, out_dir=job.work)


if __name__ == "__main__":
    run_stage("claims", judge, __doc__ or "")
