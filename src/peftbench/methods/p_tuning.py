"""P-tuning (Liu et al. 2021, arXiv 2103.10385): a learnt prompt, the output of a small network while it trains.

The network ties the prompt's vectors together and is folded into them on saving. 20 tokens as for ``prefix``; the MLP
of three layers as wide as the model is peft's default (the paper's first version has an LSTM, ``encoder: LSTM``); the
learning rate is that of peft's comparison of methods. The prompt stands before the example, as in peft; the paper also
puts tokens between the parts of its templates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Struct

from peftbench.methods import _prompt
from peftbench.models.arch import places

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "P-tuning"
TRAINS, MERGEABLE = True, False
LOCATIONS, DEFAULT_LOCATION = _prompt.LOCATIONS, "both"
LEADS = True


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 1e-4
    tokens: Annotated[int, Meta(ge=1)] = 20
    encoder: Literal["MLP", "LSTM"] = "MLP"
    encoder_size: Annotated[int, Meta(ge=1)] | None = None
    """Hidden width of the network; None: the model's width."""


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """Wrap the base model; only the network behind the prompt is trainable afterwards."""
    places(location, DEFAULT_LOCATION, LOCATIONS, "p_tuning")
    return _prompt.apply(
        model,
        num_virtual_tokens=config.tokens,
        encoder=config.encoder,
        encoder_size=config.encoder_size,
    )


def finish(model: Any) -> None:
    """Before saving: the network becomes the prompt that it yields."""
    from peftbench.tuners.soft_prompt import fold

    fold(model)


def snapshot(model: Any, config: Any) -> dict[str, Any]:
    """What ``finish`` would leave to save, and its configuration (changed in place), the model left as it is."""
    from peftbench.tuners.soft_prompt import folded

    return folded(model, config)


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """Of the network: an embedding per token; three layers, or two of a two-way LSTM and two layers on top."""
    places(location, DEFAULT_LOCATION, LOCATIONS, "p_tuning")
    width, hidden = dims.hidden, config.encoder_size or dims.hidden
    own = config.tokens * width
    if config.encoder == "MLP":
        return own + (width + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * width
    lstm = sum(2 * 4 * hidden * (inputs + hidden + 2) for inputs in (width, 2 * hidden))
    return own + lstm + (2 * hidden + 1) * 2 * hidden + (2 * hidden + 1) * width
