"""One process or many: how a run is spread, decided by how it was launched."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError
from peftbench.models.load import pick_device

if TYPE_CHECKING:
    from peftbench.spec import Execution, TrainSpec


def make_accelerator(spec: TrainSpec, execution: Execution, zero_stage: int) -> Any:
    """The accelerator of this process. A ZeRO stage above 0 needs a distributed launch (torchrun)."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # Its state is shared by all accelerators of a process; a run before this one must not leak into it.
    AcceleratorState._reset_state()
    plugin = None
    if zero_stage:
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            raise UserError(
                f"ZeRO stage {zero_stage} splits state over processes: start at least two with torchrun"
            )
        plugin = _zero_plugin(spec, zero_stage)
    return Accelerator(cpu=pick_device(execution.device).type == "cpu", deepspeed_plugin=plugin)


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
