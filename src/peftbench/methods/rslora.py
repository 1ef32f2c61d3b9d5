"""rsLoRA (Kalajdzievski 2023, arXiv 2312.03732): LoRA scaled by ``alpha / sqrt(rank)`` instead of ``alpha / rank``.

So the size of the update does not shrink as the rank grows. Rank, dropout, learning rate and places are those of
``lora``, to differ in the scale alone; alpha 16, peft's advice for LoRA at lower ranks, gives 1.4 at rank 128 (the
paper gives no alpha for a multimodal model). The same as ``lora`` with ``rank_stabilised: true``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftbench.methods import _peft
from peftbench.methods._peft import LinearConfig, LinearLayers

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "rsLoRA"
TRAINS = MERGEABLE = True
LOCATIONS, DEFAULT_LOCATION = _peft.LOCATIONS, "both"
LEAF_SETTINGS = _peft.LEAF_SETTINGS
AT = LinearLayers("rslora", DEFAULT_LOCATION)


class Config(LinearConfig, frozen=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 2e-4
    rank: _peft.Rank = 128
    alpha: _peft.Scale = 16.0
    """Scale times the square root of the rank."""
    dropout: _peft.Dropout = 0.05


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """Wrap the base model; only the matrices are trainable afterwards."""
    from peft import LoraConfig

    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_rslora=True,
        target_modules=AT.pattern(names, config, location),
        task_type="CAUSAL_LM",
    )
    return _peft.wrap(model, settings)


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """Per linear layer: ``rank * (in + out)``."""
    sizes = AT.sizes(dims, config, location)
    return dims.layers * config.rank * sum(i + o for i, o in sizes)
