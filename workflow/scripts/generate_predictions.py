#!/usr/bin/env python
"""Generate the answers of one tuned model, or of its untuned base, to one test split.

Leaves one row per example (predictions.parquet) and the record.
"""

from typing import Any

from peftbench.job import Job, run_stage


def predict(job: Job) -> dict[str, Any]:
    """Run the stage; return facts for the record."""
    from peftbench.evaluation.generate import generate_predictions

    return generate_predictions(
        spec=job.spec,
        base_dir=job.input("base"),
        run_dir=job.optional_input("run"),
        data_dir=job.input("data"),
        image_store=job.images,
        out_dir=job.work,
        execution=job.execution,
    )


if __name__ == "__main__":
    run_stage("predict", predict, __doc__ or "", heavy=True)
