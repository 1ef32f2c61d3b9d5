"""Exposure: a full fine-tune of a base model on a mix of data sets, by the same loop as the methods.

The paper (A.2) describes one on its three seen data sets before any method is applied; its released scripts leave it
out. Language model, embeddings and connector are trained in fp32 master weights at one rate, the vision tower is
frozen. The result is a folder that loads like any other base model, in the type of the original weights.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError
from peftbench.models.arch import component_counts, partition
from peftbench.models.load import load_base, pick_device
from peftbench.spec import TrainSpec
from peftbench.training.adapt import Tuned, constant_paths
from peftbench.training.batches import encode
from peftbench.training.distributed import finish, highest, use_own_device, whole_state
from peftbench.training.epochs import run_epochs
from peftbench.training.features import LiveImages
from peftbench.training.loop import Trainer, files_of
from peftbench.training.snapshot import file_hashes

if TYPE_CHECKING:
    from peftbench.models.load import Base
    from peftbench.spec import Execution, ExposeSpec

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")
NOT_COPIED = ("record.json", *WEIGHTS)


def expose_base_model(
    spec: ExposeSpec,
    base_dir: Path,
    data_dirs: dict[str, Path],
    image_store: Path,
    out_dir: Path,
    execution: Execution,
    staging: Path | None = None,
) -> dict[str, Any]:
    """Write the fine-tuned model and ``log.csv`` to ``out_dir``; return facts for the record.

    Checkpoints lie in ``staging``, as those of ``train_adapter``. Raises ``UserError`` for bad input, ``RunFailed`` for
    a loss that is not finite, ``Suspended`` where it stopped early at a checkpoint.
    """
    import torch

    from peftbench.data.load import read_examples

    torch.set_num_threads(execution.threads)
    use_own_device(execution)
    base = load_base(base_dir, spec.precision, pick_device(execution.device), spec.model)
    original = {name: parameter.dtype for name, parameter in base.model.named_parameters()}
    torch.manual_seed(spec.seed)
    tuned = everything_but_vision(base, spec)
    if execution.gradient_checkpointing:
        base.model.activation_checkpointing_enable({"use_reentrant": False})
        base.model.disable_input_require_grads()
    images = LiveImages(base, image_store)
    train_set = []
    for part in spec.mix:
        rows = read_examples(data_dirs[part.dataset], "train")
        if not rows:
            raise UserError(f"{data_dirs[part.dataset]}: no training examples")
        train_set += encode(base, images, spec.model, part.prompt, rows, spec.max_length, answers=True)
    trainer = Trainer(_as_training(spec), tuned, images, train_set, base.pad_token_id, execution)
    facts: dict[str, Any] = {
        "examples": len(train_set),
        "parameters": tuned.totals,
        "trainable": tuned.trainable,
        "processes": trainer.world,
        "parallel": trainer.accelerator.distributed_type.value,
        "zero_stage": trainer.zero_stage,
    }
    with files_of(trainer, out_dir) as work:
        facts |= run_epochs(trainer, [], work, base_dir.name, staging, execution.checkpoint_interval)
        state = whole_state(trainer.zero_stage, base.model, original, keep=work is not None)
        if work is not None:
            base.model.save_pretrained(work, state_dict=state)
            _copy_rest(base_dir, work)
            facts["outputs"] = file_hashes(work)
        highest(trainer.accelerator, 0)
    facts |= {"micro_batch": trainer.micro_batch, "halved": trainer.halved}
    finish(trainer.accelerator)
    return facts


def everything_but_vision(base: Base, spec: ExposeSpec) -> Tuned:
    """The base model with all but its vision tower (and its constants) trainable, in fp32."""
    components = partition(base.model, spec.model)
    constant = constant_paths(components, spec.model)
    tuned = Tuned(base.model, SimpleNamespace(TRAINS=True), None)
    tuned.totals = component_counts(components, base.model)
    tuned.trainable = dict.fromkeys(tuned.totals, 0)
    for path, parameter in base.model.named_parameters():
        component = components[path]
        learns = component != "vision" and path not in constant
        parameter.requires_grad_(learns)
        if not learns:
            continue
        parameter.data = parameter.data.float()
        tuned.trainable[component] += parameter.numel()
        group = tuned.connector_parameters if component == "connector" else tuned.method_parameters
        group[path] = parameter
    return tuned


def _as_training(spec: ExposeSpec) -> TrainSpec:
    """What the loop reads of a spec; the method's fields say nothing here."""
    return TrainSpec(
        model=spec.model,
        prompt=spec.mix[0].prompt,
        method="full",
        settings={},
        connector="tuned",
        location="default",
        optim=spec.optim,
        epochs=spec.epochs,
        global_batch=spec.global_batch,
        max_length=spec.max_length,
        seed=spec.seed,
        precision=spec.precision,
        eval_loss=False,
    )


def _copy_rest(base_dir: Path, work: Path) -> None:
    """Tokenizer, processor and whatever else a model folder holds, as they were."""
    for path in sorted(base_dir.rglob("*")):
        relative = path.relative_to(base_dir)
        if path.is_file() and not any(relative.match(pattern) for pattern in NOT_COPIED):
            target = work / relative
            if not target.exists():  # save_pretrained wrote the configuration
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
