#!/usr/bin/env python
"""Fine-tune one model with one method on one data set.

Leaves the PEFT weights (adapter/), the connector's weights where it is tuned (connector.safetensors), the
losses (log.csv) and the record.
"""

from typing import Any

from peftbench.job import Job, run_stage


def train(job: Job) -> dict[str, Any]:
    """Run the stage; return facts for the record."""
    from peftbench.training.loop import train_adapter

    return train_adapter(
        spec=job.spec,
        base_dir=job.input("base"),
        data_dir=job.input("data"),
        subset_dir=job.input("subset"),
        image_store=job.images,
        out_dir=job.work,
        execution=job.execution,
        staging=job.staging,
    )


if __name__ == "__main__":
    run_stage("train", train, __doc__ or "", heavy=True, spreads=True)
