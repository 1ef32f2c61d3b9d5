"""MiSS (Kang and Yin 2024, arXiv 2409.15371; first called Bone): one small matrix, repeated over shards of the input.

The input's columns are summed in shards of equal size to ``rank`` numbers, which a learnt ``rank x out`` matrix maps to
the output: the update has one matrix where LoRA has two. It starts at zero. Rank 64 is the paper's and peft's; the
learning rate is that of peft's comparison of methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftbench.methods import _peft
from peftbench.methods._peft import LinearConfig, LinearLayers

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "MiSS"
TRAINS = MERGEABLE = True
LOCATIONS, DEFAULT_LOCATION = _peft.LOCATIONS, "both"
LEAF_SETTINGS = _peft.LEAF_SETTINGS
AT = LinearLayers("miss", DEFAULT_LOCATION)


class Config(LinearConfig, frozen=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 1e-4
    rank: _peft.Rank = 64
    dropout: _peft.Dropout = 0.0


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """Wrap the base model; only the blocks are trainable afterwards."""
    from peft import MissConfig

    settings = MissConfig(
        r=config.rank,
        miss_dropout=config.dropout,
        target_modules=AT.pattern(names, config, location),
        task_type="CAUSAL_LM",
    )
    return _peft.wrap(model, settings)


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """Per linear layer: ``rank * out``."""
    sizes = AT.sizes(dims, config, location)
    return dims.layers * config.rank * sum(o for _, o in sizes)
