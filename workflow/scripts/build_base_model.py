#!/usr/bin/env python
"""Make the folder of one base model, in the layout of the Hugging Face hub.

Leaves the model with its processor, loadable by the Auto classes, and the record.
"""

from typing import Any

from peftbench.job import Job, run_stage


def build(job: Job) -> dict[str, Any]:
    """Run the stage; return facts for the record."""
    from peftbench.models.base import build_base_model

    return build_base_model(spec=job.spec, out_dir=job.work, files=job.files)


if __name__ == "__main__":
    run_stage("build", build, __doc__ or "", heavy=True)
