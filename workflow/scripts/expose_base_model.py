#!/usr/bin/env python
"""Fine-tune a whole base model on a mix of data sets, its vision tower left as it is.

Leaves the model as a folder in the layout of the Hugging Face hub, the losses (log.csv) and the record.
"""

from typing import Any

from peftbench.job import Job, run_stage


def expose(job: Job) -> dict[str, Any]:
    """Run the stage; return facts for the record."""
    from peftbench.training.expose import expose_base_model

    return expose_base_model(
        spec=job.spec,
        base_dir=job.input("base"),
        data_dirs={part.dataset: job.input(f"data.{part.dataset}") for part in job.spec.mix},
        image_store=job.images,
        out_dir=job.work,
        execution=job.execution,
        staging=job.staging,
    )


if __name__ == "__main__":
    run_stage("expose", expose, __doc__ or "", heavy=True, spreads=True)
