"""One process of a distributed run: ``torchrun distributed_run.py JSON`` (see test_distributed.py)."""

import json
import sys
from pathlib import Path

import msgspec

from peftbench.spec import Execution, TrainSpec
from peftbench.training.loop import train_adapter

if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    facts = train_adapter(
        msgspec.convert(job["spec"], TrainSpec),
        *(Path(job[name]) for name in ("base", "data", "subset", "images", "out")),
        Execution(device="cpu", micro_batch=job["micro_batch"], zero_stage=job["zero_stage"]),
    )
    assert facts["processes"] == 2
    assert facts["parallel"] == ("MULTI_CPU" if job["zero_stage"] is None else "DEEPSPEED"), facts["parallel"]
