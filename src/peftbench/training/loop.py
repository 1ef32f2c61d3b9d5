"""Fine-tuning one adapter, from base model and data to weights on disk.

One loop for one process, several (DDP) and DeepSpeed's ZeRO, by way of accelerate. What makes the result
independent of the machine:

- the global batch is fixed; processes and micro-batches only split it;
- the loss of a global batch is the mean over all its supervised tokens: every micro-batch contributes its sum
  divided by that number, which is known from the token ids without communication;
- the order of examples comes from the seed and the epoch alone; method initialisation and dropout from the
  seed.

Dropout masks are drawn per micro-batch, so with dropout two ways of splitting differ by other masks; without
it they agree within rounding. On one CPU process two runs of one spec are equal bit for bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.errors import OutOfMemory, RunFailed, UserError
from peftbench.models.load import load_base, pick_device
from peftbench.store import partial_directory
from peftbench.training.adapt import attach, save
from peftbench.training.batches import IGNORED, Encoded, Item, collate, derived_seed, encode
from peftbench.training.distributed import finish, highest, make_accelerator, use_own_device, whole_parameters
from peftbench.training.epochs import run_epochs
from peftbench.training.features import cache_folder, open_images
from peftbench.training.optimizer import make_optimizer
from peftbench.training.snapshot import file_hashes
from peftbench.training.stepping import make_dynamics, optimizer_step

if TYPE_CHECKING:
    import torch

    from peftbench.data.example import Example
    from peftbench.spec import Execution, TrainSpec
    from peftbench.training.adapt import Tuned
    from peftbench.training.features import Images


class Trainer:
    """State of one run: model, optimizer, where the examples come from, and what was counted."""

    def __init__(
        self,
        spec: TrainSpec,
        tuned: Tuned,
        images: Images,
        examples: Sequence[Encoded],
        pad_id: int,
        execution: Execution,
    ) -> None:
        self.spec, self.tuned, self.images, self.pad_id = spec, tuned, images, pad_id
        self.examples = examples
        self.stand_in = next((encoded for encoded in examples if encoded.image), examples[0])
        if tuned.connector_parameters and not self.stand_in.image:
            raise RunFailed("connector tuned: no training example has an image to learn from: use frozen")
        self.workers = execution.workers
        self.accelerator, self.zero_stage = make_accelerator(spec, execution, tuned.model)
        whole = getattr(tuned.method, "needs_whole_weights", None)
        if self.zero_stage == 3 and whole is not None and whole(tuned.settings):
            raise UserError(
                f"execution: zero_stage: 3 splits weights, but method {spec.method} with these settings computes with "
                "them when it saves: use 2"
            )
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        share = math.ceil(spec.global_batch / self.world)
        self.micro_batch = min(execution.micro_batch or share, share)
        self.halved = 0
        """How often memory ran out, and the micro-batch was halved."""
        tuned.model.train()
        self.model, self.optimizer = self.accelerator.prepare(tuned.model, make_optimizer(tuned, spec.optim))
        self.rest_vision()
        self.padding = self.positions = 0
        self.dynamics = make_dynamics(self)

    def rest_vision(self) -> None:
        """A frozen vision tower has no dropout and no running statistics."""
        if self.spec.vision == "frozen":
            for prefix in self.spec.model.vision:
                _base_model(self.tuned).get_submodule(prefix).eval()

    def items(self, batches: Sequence[list[int]], examples: Sequence[Encoded]) -> Iterator[list[Item]]:
        """This process's share of each global batch, loaded ahead by ``workers`` processes."""
        from torch.utils.data import DataLoader

        # Every process gets its share of long and of short examples.
        shares = [batch[self.rank :: self.world] for batch in batches]
        loader: DataLoader[Any] = DataLoader(
            _Items(examples, self.images),  # type: ignore[arg-type] # map-style by duck typing
            batch_sampler=shares,
            collate_fn=list,
            num_workers=self.workers,
            generator=_generator(0),  # the loader would otherwise draw from the stream of the dropout
        )
        return iter(loader)

    def step(self, items: list[Item], batch: Sequence[Encoded]) -> float:
        """One optimizer step on a global batch; ``items`` is this process's share. Returns the loss.

        When memory runs out, the micro-batch is halved and the step begins again; below one it gives up.
        """
        import torch

        rng = torch.get_rng_state() if self.world == 1 else None
        while True:
            try:
                loss = self._accumulate(items, batch)
                break
            except RuntimeError as error:
                if not _memory_ran_out(error):
                    raise
                # Of several processes the others wait for this one's gradients: all must begin again (``launch``).
                if self.world > 1 or self.micro_batch == 1:
                    raise OutOfMemory(self.micro_batch) from None
                self.micro_batch //= 2
                self.halved += 1
                self.optimizer.zero_grad()
                if rng is not None:
                    torch.set_rng_state(rng)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        if self.spec.optim.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.spec.optim.max_grad_norm)
        optimizer_step(self)
        self.optimizer.zero_grad()
        return loss

    def _accumulate(self, items: list[Item], batch: Sequence[Encoded]) -> float:
        """Gradients of one global batch, micro-batch by micro-batch; the loss over all processes."""
        import torch

        supervised = sum(encoded.supervised for encoded in batch)
        # Every process takes the same number of micro-batches, or collective operations would not meet.
        rounds = math.ceil(math.ceil(len(batch) / self.world) / self.micro_batch)
        total = torch.zeros((), device=self.accelerator.device)
        for i in range(rounds):
            micro = items[i * self.micro_batch : (i + 1) * self.micro_batch]
            last = i == rounds - 1
            self.accelerator.gradient_state._set_sync_gradients(last)
            if last or self.world == 1:
                total += self._backward(micro, supervised, last)
            else:
                with self.accelerator.no_sync(self.model):
                    total += self._backward(micro, supervised)
        return float(self.accelerator.reduce(total, "sum"))

    def _backward(self, micro: list[Item], supervised: int, last: bool = False) -> torch.Tensor:
        """Loss (detached) and gradients of one micro-batch, as its part of the global mean.

        With the ``last`` one of a global batch come the gradients of a method's penalty, which the loss leaves out.
        """
        inputs = self._inputs(micro)
        self.padding += int((inputs["attention_mask"] == 0).sum())
        self.positions += inputs["attention_mask"].numel()
        loss = self.loss_sum(inputs) / supervised
        penalty = self.dynamics.penalty() if last and self.dynamics is not None else None
        # DDP and ZeRO average over processes; ours is a sum, to which the penalty belongs once.
        total = loss * self.world if penalty is None else loss * self.world + penalty
        self.accelerator.backward(total)
        return loss.detach()

    def _inputs(self, items: list[Item]) -> dict[str, torch.Tensor]:
        """The batch of ``items``, with one more row that carries no loss where that keeps processes in step.

        Every process makes the same number of forward passes, also when it has no examples left; and every
        backward pass reaches the tuned connector, also from text alone, with gradient zero instead of none.
        ZeRO sums gradients in the order in which they arrive, so a connector that is left out (or reached by
        another path) in one process would be added to the wrong weights. ZeRO-3 gathers weights as a forward pass
        meets them, so there every pass must meet the same.
        """
        has_image = any(tensors for _, tensors in items)
        same_path = bool(self.tuned.connector_parameters) or self.zero_stage == 3
        extra = not items or (same_path and not has_image)
        if extra:
            image = self.images.load(self.stand_in.image) if self.stand_in.image else {}
            items = [*items, (self.stand_in, image)]
        inputs = collate(items, self.pad_id, left=False)
        if extra:
            inputs["labels"][-1] = IGNORED
        return inputs

    def loss_sum(self, inputs: dict[str, torch.Tensor], model: Any = None) -> torch.Tensor:
        """Sum of the cross-entropy over supervised tokens; zero, not NaN, where there are none.

        ``model``: the bare one instead of the prepared one, for what only this process does.
        """
        import torch

        device = self.accelerator.device
        labels = inputs["labels"]
        # Logits only where some row has a label for the next token: the head is a large part of a small
        # model.
        keep = (labels[:, 1:] != IGNORED).any(dim=0).nonzero().flatten()
        if not len(keep):
            keep = torch.tensor([0])
        targets = labels[:, keep + 1].to(device)
        moved = {key: value.to(device) for key, value in inputs.items() if key != "labels"}
        with torch.autocast(device.type, torch.bfloat16, enabled=self.spec.precision == "bf16"):
            logits = (model or self.model)(**moved, logits_to_keep=keep.to(device), use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )

    def evaluate(self, examples: Sequence[Encoded], stop: Callable[[], bool] = lambda: False) -> float | None:
        """Mean loss per supervised token, without dropout; None where ``stop``, asked at every batch, said so."""
        import torch

        order = sorted(range(len(examples)), key=lambda i: (-len(examples[i].ids), i))
        size = self.micro_batch * self.world
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        total = torch.zeros((), device=self.accelerator.device)
        self.model.eval()
        stopped = False
        with torch.no_grad():
            for items in self.items(batches, examples):
                stopped = stop()
                if stopped:
                    break
                total += self.loss_sum(self._inputs(items))
        self.model.train()
        self.rest_vision()
        if stopped:
            return None
        return float(self.accelerator.reduce(total, "sum")) / sum(e.supervised for e in examples)


class _Items:
    """Map-style data set of examples with their images."""

    def __init__(self, examples: Sequence[Encoded], images: Images) -> None:
        self.examples, self.images = examples, images

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Item:
        encoded = self.examples[index]
        return encoded, self.images.load(encoded.image) if encoded.image else {}


def train_adapter(
    spec: TrainSpec,
    base_dir: Path,
    data_dir: Path,
    subset_dir: Path,
    image_store: Path,
    out_dir: Path,
    execution: Execution,
    staging: Path | None = None,
) -> dict[str, Any]:
    """Train as ``spec`` says; write ``adapter/``, ``connector.safetensors``, ``log.csv`` and ``eval.csv``.

    Files appear in ``out_dir`` only when all is done. Checkpoints lie in ``staging``, which the caller removes once the
    result stands; None: there are none. Returns the facts for the record. In a distributed launch every process
    calls this; the first one writes. Raises ``UserError`` for bad input and for a loss that is not finite,
    ``Suspended`` where it stopped early at a checkpoint.
    """
    import torch

    from peftbench.data.load import read_examples, read_subset

    torch.set_num_threads(execution.threads)
    use_own_device(execution)
    base = load_base(base_dir, spec.precision, pick_device(execution.device), spec.model)
    torch.manual_seed(spec.seed)
    tuned = attach(base, spec)
    if not tuned.method.TRAINS and not tuned.connector_parameters:
        raise UserError(f"method {spec.method} with a frozen connector trains nothing: only predict with it")
    if execution.gradient_checkpointing:
        base.model.activation_checkpointing_enable({"use_reentrant": False})
        # transformers would have every input embedding ask for a gradient, the frozen tower's patches included
        base.model.disable_input_require_grads()

    rows = read_examples(data_dir, "train", read_subset(subset_dir))
    if spec.validation:
        rows, held_out = split_validation(rows, spec.validation)
    else:
        held_out = read_examples(data_dir, "test") if spec.eval_loss else []
    # The whole split, so that every draw of it finds the same cached features.
    everything = read_examples(data_dir, "train") if execution.cache_dir else rows
    shas = [example.image for example in (*everything, *held_out)]
    # a tower that is tuned has no features to keep
    cache = cache_folder(execution) if spec.vision == "frozen" else None
    images, cache_facts = open_images(base, spec.model, image_store, shas, cache)

    def encoded(examples: list[Any]) -> list[Encoded]:
        return encode(base, images, spec.model, spec.prompt, examples, spec.max_length, answers=True)

    train_set, eval_set = encoded(rows), encoded(held_out)
    if not train_set:
        raise RunFailed(f"{subset_dir}: no training examples")
    trainer = Trainer(spec, tuned, images, train_set, base.pad_token_id, execution)
    torch.manual_seed(derived_seed(spec.seed, "dropout", trainer.rank))

    facts: dict[str, Any] = {
        "examples": len(train_set),
        "parameters": tuned.totals,
        "trainable": tuned.trainable,
        "features": cache_facts,
        "processes": trainer.world,
        "parallel": trainer.accelerator.distributed_type.value,
        "zero_stage": trainer.zero_stage,
    }
    with files_of(trainer, out_dir) as work:
        facts |= run_epochs(trainer, eval_set, work, base_dir.name, staging, execution.checkpoint_interval)
        with whole_parameters(trainer.zero_stage, tuned.trained.values()):
            if work is not None:
                save(tuned, work, base_dir.name)
                facts["outputs"] = file_hashes(work)
        # Files get their names when all processes are done: one that dies here leaves no result.
        highest(trainer.accelerator, 0)
    facts |= {"micro_batch": trainer.micro_batch, "halved": trainer.halved}
    finish(trainer.accelerator)
    return facts


@contextlib.contextmanager
def files_of(trainer: Trainer, out_dir: Path) -> Iterator[Path | None]:
    """The folder to fill, in the first process; None in the others."""
    if not trainer.accelerator.is_main_process:
        yield None
        return
    with partial_directory(out_dir) as work:
        yield work


def split_validation(rows: list[Example], share: float) -> tuple[list[Example], list[Example]]:
    """Training and validation examples, in their order: those whose id hashes lowest are held out, at least one.

    The same examples whatever the order of the rows, so that all trials of a study are compared on the same.
    """
    ranked = sorted(rows, key=lambda row: hashlib.sha256(row.id.encode()).digest())
    held = {row.id for row in ranked[: max(1, round(share * len(rows)))]}
    return [row for row in rows if row.id not in held], [row for row in rows if row.id in held]


def _base_model(tuned: Tuned) -> Any:
    return tuned.model.get_base_model() if hasattr(tuned.model, "get_base_model") else tuned.model


def _memory_ran_out(error: RuntimeError) -> bool:
    """CUDA has an error of its own for it; the allocator for CPUs only says so."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _generator(seed: int) -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(seed)
