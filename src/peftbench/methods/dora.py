"""DoRA (Liu et al. 2024, arXiv 2402.09353): LoRA on the direction of each weight matrix, its norms learnt apart.

``W' = m * (W + s B A) / ||W + s B A||``, with the vector ``m`` of one norm per output. Defaults are those of its
authors' script for LLaVA-1.5-7B: rank 128, alpha 256, dropout 0.05, all linear layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftbench.methods import _peft
from peftbench.methods._peft import LinearConfig, LinearLayers

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "DoRA"
TRAINS = MERGEABLE = True
LOCATIONS, DEFAULT_LOCATION = _peft.LOCATIONS, "both"
LEAF_SETTINGS = _peft.LEAF_SETTINGS
AT = LinearLayers("dora", DEFAULT_LOCATION)


class Config(LinearConfig, frozen=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 2e-4
    rank: _peft.Rank = 128
    alpha: _peft.Scale | None = None
    """Scale times rank; None: twice the rank."""
    dropout: _peft.Dropout = 0.05


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """Wrap the base model; only the matrices and the norms are trainable afterwards."""
    from peft import LoraConfig

    settings = LoraConfig(
        r=config.rank,
        lora_alpha=2 * config.rank if config.alpha is None else config.alpha,
        lora_dropout=config.dropout,
        use_dora=True,
        target_modules=AT.pattern(names, config, location),
        task_type="CAUSAL_LM",
    )
    return _peft.wrap(model, settings)


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """Per linear layer: ``rank * (in + out)``, and the ``out`` norms."""
    sizes = AT.sizes(dims, config, location)
    return dims.layers * sum(config.rank * (i + o) + o for i, o in sizes)
