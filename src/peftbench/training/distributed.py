"""One process or many: how a run is spread, and what processes tell each other."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError
from peftbench.models.load import pick_device

if TYPE_CHECKING:
    import torch

    from peftbench.spec import Execution, TrainSpec

ROOM = 0.6
"""Share of a GPU's memory that weights, gradients and optimizer state may take; the rest is for activations."""


def use_own_device(execution: Execution) -> None:
    """Let each process of a machine use a GPU of its own; ``UserError`` where there are too few."""
    import torch

    local = int(os.environ.get("LOCAL_RANK", "0"))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and pick_device(execution.device).type == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"execution: processes: {local + 1} or more on a machine where {torch.cuda.device_count()} GPUs are "
                "visible: each process needs its own"
            )
        torch.cuda.set_device(local)


def make_accelerator(spec: TrainSpec, execution: Execution, model: Any) -> tuple[Any, int | None]:
    """The accelerator of this process, and the ZeRO stage (None: no DeepSpeed).

    A ZeRO stage needs a distributed launch; ``auto`` is none in one process.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    # Its state is shared by all accelerators of a process; a run before this one must not leak into it.
    AcceleratorState._reset_state()
    on_cpu = pick_device(execution.device).type == "cpu"
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if execution.zero_stage == "auto":
        stage = None if on_cpu or world < 2 else fitting_stage(*_sizes(model), world, _gpu_memory())
    else:
        stage = execution.zero_stage
    if stage is None:
        return Accelerator(cpu=on_cpu), None
    if world < 2:
        raise UserError(
            f"execution: zero_stage: {stage} splits state over processes: set processes to 2 or more"
        )
    # DeepSpeed calls torch by names on their way out, in every step.
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        PartialState(cpu=True)  # the gloo group; with cpu=True below, accelerate silently falls back to DDP
    accelerator = Accelerator(deepspeed_plugin=_zero_plugin(spec, stage, execution.zero_offload))
    assert accelerator.distributed_type.value == "DEEPSPEED", accelerator.distributed_type
    return accelerator, stage


def fitting_stage(weights: int, trained: int, processes: int, memory: int) -> int | None:
    """The least ZeRO stage (None: DDP) with which the state of a run fits ``memory`` bytes of each GPU; 3 at most.

    ``weights`` are the bytes of all parameters, ``trained`` is the number of trained ones: each has a gradient (4
    bytes) and two moments (8), and under ZeRO a master copy (4).
    """
    room = ROOM * memory
    if weights + 12 * trained <= room:
        return None
    if weights + 4 * trained + 12 * trained / processes <= room:
        return 1
    if weights + 16 * trained / processes <= room:
        return 2
    return 3


def _sizes(model: Any) -> tuple[int, int]:
    parameters = list(model.parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters)
    return weights, sum(p.numel() for p in parameters if p.requires_grad)


def _gpu_memory() -> int:
    import torch

    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)


def finish(accelerator: Any) -> None:
    """Meet the other processes for the last time and leave the process group."""
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1:
        # gloo's worker thread drops the finished barrier's tensors, for which it needs the interpreter lock;
        # the group's destructor waits for that thread holding the lock. Let the thread go first.
        time.sleep(0.5)
    accelerator.end_training()


def meet(accelerator: Any) -> None:
    """Wait until all processes are here."""
    accelerator.wait_for_everyone()


def highest(accelerator: Any, value: int) -> int:
    """The largest of the processes' values, in all of them."""
    if accelerator.num_processes == 1:
        return value
    import torch

    tensor = torch.tensor(value, device=accelerator.device)
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return int(tensor)


def of_main(accelerator: Any, value: Any) -> Any:
    """The first process's value, in all of them."""
    if accelerator.num_processes == 1:
        return value
    import torch

    box = [value]
    torch.distributed.broadcast_object_list(box, src=0, device=accelerator.device)
    return box[0]


def gathered(accelerator: Any, value: Any) -> list[Any]:
    """The values of all processes, in all of them."""
    if accelerator.num_processes == 1:
        return [value]
    import torch

    boxes: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(boxes, value)
    return boxes


@contextlib.contextmanager
def whole_parameters(zero_stage: int | None, parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Within, the parameters are whole in every process; only ZeRO-3 splits them. All processes must come here."""
    if zero_stage != 3:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=None):
        yield


def whole_state(
    zero_stage: int | None, model: Any, dtypes: dict[str, torch.dtype], keep: bool
) -> dict[str, torch.Tensor]:
    """The model's state on the CPU, parameters in the ``dtypes`` named; nothing in processes that do not ``keep``.

    Parameter by parameter, so that a model that fits no single GPU can be saved. Shared parameters stay shared.
    """
    made: dict[int, torch.Tensor] = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in made:
            with whole_parameters(zero_stage, [tensor] if id(tensor) in names else []):
                if keep:
                    dtype = dtypes.get(names.get(id(tensor), ""), tensor.dtype)
                    made[id(tensor)] = tensor.detach().to("cpu", dtype, copy=True)
        if keep:
            state[key] = made[id(tensor)]
    return state


def _zero_plugin(spec: TrainSpec, stage: int, offload: bool) -> Any:
    """DeepSpeed as a partitioner of optimizer state; batches, schedule and precision stay the loop's."""
    import deepspeed.ops
    from accelerate import DeepSpeedPlugin

    # Its shared-memory collectives for CPUs are compiled at first use (minutes, a compiler); gloo does
    # without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    zero: dict[str, Any] = {"stage": stage}
    if offload and stage:
        zero["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    config = {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": spec.optim.max_grad_norm or 0.0,
    }
    return DeepSpeedPlugin(hf_ds_config=config)
