#!/usr/bin/env python
"""Score one set of predictions by the metric of its data set.

Leaves the score of each example (examples.parquet) and the record with the score of the whole.
"""

from typing import Any

from peftbench.job import Job, run_stage


def score(job: Job) -> dict[str, Any]:
    """Run the stage; return facts for the record."""
    from peftbench.evaluation.score import score_predictions

    return score_predictions(
        spec=job.spec,
        predictions_dir=job.input("predictions"),
        data_dir=job.input("data"),
        out_dir=job.work,
    )


if __name__ == "__main__":
    run_stage("score", score, __doc__ or "", heavy=True)
