"""A trainer on a few examples of the tiny model, for methods that act around its steps."""

from __future__ import annotations

from typing import Any

from peftbench.spec import Execution, Optim
from peftbench.training.adapt import attach
from peftbench.training.features import LiveImages
from peftbench.training.loop import Trainer
from tiny_llava import encoded_batch, load_tiny, train_spec, world

OPTIM = Optim(learning_rate=1e-2, connector_learning_rate=1e-3, warmup_ratio=0.0, schedule="constant")


def trainer_for(
    method: str = "spider",
    settings: dict[str, Any] | None = None,
    execution: Execution | None = None,
    **changes: Any,
) -> tuple[Any, list[Any]]:
    """A trainer on eight examples, and those with their images; one batch of them is one step."""
    base = load_tiny(seed=7)
    spec = train_spec(method, settings=settings or {}, **({"optim": OPTIM} | changes))
    tuned = attach(base, spec)
    items, _ = encoded_batch(base)
    images = LiveImages(base, world().images)
    examples = [encoded for encoded, _ in items]
    trainer = Trainer(spec, tuned, images, examples, base.pad_token_id, execution or Execution(device="cpu"))
    return trainer, items


def steps(trainer: Any, items: list[Any], count: int) -> None:
    """Steps on changing halves of the examples."""
    for i in range(count):
        batch = items[(i % 2) * 4 :][:4] if i % 3 else items
        trainer.step(batch, [encoded for encoded, _ in batch])


def weights(trainer: Any) -> dict[str, Any]:
    """Copies of what the dynamics look after."""
    return {name: p.detach().clone() for name, p in trainer.dynamics.parameters.items()}
