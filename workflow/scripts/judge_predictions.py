#!/usr/bin/env python
"""Have another model judge one set of predictions.

Leaves one judgement per example (judgements.parquet) and the record. With an endpoint as judge it uses the
network and costs money: replies that arrived before an interruption are not asked for again.
"""

from typing import Any

from peftbench.job import Job, run_stage


def judge(job: Job) -> dict[str, Any]:
    """Run the stage; return facts for the record."""
    from peftbench.judging.stage import judge_predictions

    return judge_predictions(
        spec=job.spec,
        predictions_dir=job.input("predictions"),
        data_dir=job.input("data"),
        out_dir=job.work,
        staging=job.staging,
        execution=job.execution,
        model_dir=job.optional_input("judge"),
    )


if __name__ == "__main__":
    run_stage("judge", judge, __doc__ or "")
