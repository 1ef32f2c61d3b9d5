#!/usr/bin/env python
"""Choose the best of some trial runs by their validation loss.

Leaves that run's files under a name of their own, and the record with the losses of all.
"""

from typing import Any

from peftbench.job import Job, run_stage


def choose(job: Job) -> dict[str, Any]:
    """Run the stage; return facts for the record."""
    from peftbench.training.choose import choose_run

    trials = [job.input(f"trial.{place}") for place in range(len(job.spec.trials))]
    return choose_run(spec=job.spec, trials=trials, out_dir=job.work)


if __name__ == "__main__":
    run_stage("choose", choose, __doc__ or "")
