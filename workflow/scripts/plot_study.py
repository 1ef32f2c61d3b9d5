#!/usr/bin/env python
"""Draw the figure of one study from its table and, for curves, its runs' logs.

Leaves <study>.png and <study>.svg, and a marker that says which table they were made from.
"""

from typing import Any

from peftbench.job import Job, run_stage


def plot(job: Job) -> dict[str, Any]:
    """Run the stage; return facts for the marker."""
    from peftbench.analysis.plot import plot_study

    table = job.results / f"tables/{job.spec.study}.csv"
    return plot_study(spec=job.spec, table=table, out_dir=job.work, results=job.results)


if __name__ == "__main__":
    run_stage("plot", plot, __doc__ or "")
