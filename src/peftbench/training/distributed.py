"""One process or many: how a run is spread, decided by how it was launched."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError
from peftbench.models.load import pick_device

if TYPE_CHECKING:
    from peftbench.spec import Execution, TrainSpec


def make_accelerator(spec: TrainSpec, execution: Execution, zero_stage: int) -> Any:
    """The accelerator of this process. A ZeRO stage above 0 needs a distributed launch (torchrun)."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    # Its state is shared by all accelerators of a process; a run before this one must not leak into it.
    AcceleratorState._reset_state()
    on_cpu = pick_device(execution.device).type == "cpu"
    if not zero_stage:
        return Accelerator(cpu=on_cpu)
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise UserError(
            f"ZeRO stage {zero_stage} splits state over processes: start at least two with torchrun"
        )
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        PartialState(cpu=True)  # the gloo group; with cpu=True below, accelerate silently falls back to DDP
    accelerator = Accelerator(deepspeed_plugin=_zero_plugin(spec, zero_stage))
    assert accelerator.distributed_type.value == "DEEPSPEED", accelerator.distributed_type
    return accelerator


def finish(accelerator: Any) -> None:
    """Meet the other processes for the last time and leave the process group."""
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1:
        # gloo's worker thread drops the finished barrier's tensors, for which it needs the interpreter lock;
        # the group's destructor waits for that thread holding the lock. Let the thread go first.
        time.sleep(0.5)
    accelerator.end_training()


def _zero_plugin(spec: TrainSpec, stage: int) -> Any:
    """DeepSpeed as a partitioner of optimizer state; batches, schedule and precision stay the loop's."""
    import deepspeed.ops
    from accelerate import DeepSpeedPlugin

    # Its shared-memory collectives for CPUs are compiled at first use (minutes, a compiler); gloo does
    # without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    config = {
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": spec.optim.max_grad_norm or 0.0,
    }
    return DeepSpeedPlugin(hf_ds_config=config)
