"""Loss on the reference answers: their mean negative log-likelihood in nats per 100 tokens; lower is better.

Nothing is generated: the predict stage reads the answers of the test split (those that training would use) and leaves
their losses. Of the untuned base it is the loss with adapters off; what a run adds to it on data that the run was not
tuned on is a cheap measure of forgetting. The value is the mean over examples of each one's mean over its tokens, the
end token included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError
from peftbench.metrics.base import MetricResult, MetricSettings, finish, read_settings

if TYPE_CHECKING:
    from peftbench.data.example import Example

NEEDS_LOSSES = True
"""The predict stage leaves losses (``score_losses``) rather than answers."""


class Settings(MetricSettings, frozen=True, kw_only=True):
    """It has no settings of its own."""


def score(predictions: Sequence[str], examples: Sequence[Example], settings: dict[str, Any]) -> MetricResult:
    """Always an error: answers as text have no loss."""
    raise UserError("metric answer_loss reads the losses of a model, not its answers: use it in a study")


def score_losses(
    losses: Sequence[float], tokens: Sequence[int], examples: Sequence[Example], settings: dict[str, Any]
) -> MetricResult:
    """``losses`` are sums over the answer tokens of each example, ``tokens`` their numbers."""
    typed = read_settings(Settings, settings, "answer_loss")
    each = [100.0 * loss / count for loss, count in zip(losses, tokens, strict=True)]
    extra = {"tokens": sum(tokens), "per_token": 100.0 * sum(losses) / sum(tokens)}
    return finish(each, examples, typed, extra, higher_is_better=False)
