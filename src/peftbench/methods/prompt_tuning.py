"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691): learnt vectors in the place of tokens before every example.

100 tokens that start as tokens drawn from the vocabulary, as in the paper (which draws from its 5,000 most frequent
ones). Its learning rate of 0.3 is for another optimiser and T5; 1e-3 is that of peft's comparison of methods. The
prompt is input: it makes every example longer, is never merged, and works with every model, images included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Struct

from peftbench.methods import _prompt
from peftbench.models.arch import places

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "Prompt tuning"
TRAINS, MERGEABLE = True, False
LOCATIONS, DEFAULT_LOCATION = _prompt.LOCATIONS, "both"
LEADS = True


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 1e-3
    tokens: Annotated[int, Meta(ge=1)] = 100
    init: Literal["vocabulary", "normal"] = "vocabulary"
    init_std: Annotated[float, Meta(ge=0)] = 0.02
    """Standard deviation of a normal start."""


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """Wrap the base model; only the prompt is trainable afterwards."""
    places(location, DEFAULT_LOCATION, LOCATIONS, "prompt_tuning")
    return _prompt.apply(
        model,
        num_virtual_tokens=config.tokens,
        from_vocabulary=config.init == "vocabulary",
        init_std=config.init_std,
    )


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """``tokens * width``."""
    places(location, DEFAULT_LOCATION, LOCATIONS, "prompt_tuning")
    return config.tokens * dims.hidden
