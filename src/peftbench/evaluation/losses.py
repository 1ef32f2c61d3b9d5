"""What a model thinks of the reference answers: their negative log-likelihood, token by token, nothing generated.

The cheap measure of forgetting: the same loss as in training, on the test split of a data set that the model was not
tuned on, with the run's weights ("adapters on") and with none ("adapters off", the untuned base).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.training.batches import IGNORED, Encoded, collate
from peftbench.training.progress import Progress

if TYPE_CHECKING:
    from peftbench.models.load import Base
    from peftbench.training.features import Images

LOSSES_FILE = "losses.parquet"


def answer_losses(
    base: Base, images: Images, examples: Sequence[Encoded], batch_size: int, autocast: bool
) -> list[float]:
    """Sum of the negative log-likelihood (nats) over the tokens of each example's answer, its end token included.

    ``base`` holds whatever was applied to its model. Examples are sorted by length and padded on the right.
    """
    import torch
    from torch.nn import functional

    model = base.model.eval()
    device = next(model.parameters()).device
    order = sorted(range(len(examples)), key=lambda i: (-len(examples[i].ids), i))
    losses: dict[int, float] = {}
    progress = Progress("predict", len(examples))
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            items = [(examples[i], images.load(examples[i].image) if examples[i].image else {}) for i in rows]
            inputs = {
                key: value.to(device) for key, value in collate(items, base.pad_token_id, False).items()
            }
            labels = inputs.pop("labels")
            # Logits only where some row has a label for the next token.
            keep = (labels[:, 1:] != IGNORED).any(dim=0).nonzero().flatten()
            logits = model(**inputs, logits_to_keep=keep, use_cache=False).logits.float()
            each = functional.cross_entropy(
                logits.transpose(1, 2), labels[:, keep + 1], ignore_index=IGNORED, reduction="none"
            )
            for i, value in zip(rows, each.double().sum(dim=1).tolist(), strict=True):
                losses[i] = value
            progress.step(len(losses))
    return [losses[i] for i in range(len(examples))]


def write_losses(examples: Sequence[Encoded], losses: Sequence[float], folder: Path) -> dict[str, Any]:
    """Write ``losses.parquet`` (id, loss, tokens) into ``folder``; the file's name and sha256."""
    import hashlib

    from peftbench.arrow import pa, pq

    table = pa.table(
        {
            "id": [example.id for example in examples],
            "loss": list(losses),
            "tokens": [example.supervised for example in examples],
        }
    )
    pq.write_table(table, folder / LOSSES_FILE)
    return {LOSSES_FILE: hashlib.sha256((folder / LOSSES_FILE).read_bytes()).hexdigest()}
