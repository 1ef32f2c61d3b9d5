"""HRA (Yuan et al. 2024, arXiv 2405.17484): each weight matrix times a chain of learnt Householder reflections.

The product of reflections is orthogonal and differs from one by a matrix of rank ``rank``. Equal neighbours cancel, so
step 0 is the base model (for an even rank, the only one taken). Rank 8 as in the paper's runs on Llama 2 and in peft;
the learning rate is that of peft's comparison of methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from peftbench.methods import _peft
from peftbench.methods._peft import LinearConfig, LinearLayers

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "HRA"
TRAINS = MERGEABLE = True
LOCATIONS, DEFAULT_LOCATION = _peft.LOCATIONS, "both"
LEAF_SETTINGS = _peft.LEAF_SETTINGS
AT = LinearLayers("hra", DEFAULT_LOCATION)


class Config(LinearConfig, frozen=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 1e-4
    rank: Annotated[int, Meta(ge=2, multiple_of=2)] = 8
    """Reflections; even."""
    orthogonalise: bool = False
    """Gram-Schmidt on the reflections' directions (the paper's strict limit of its regulariser)."""


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """Wrap the base model; only the reflections are trainable afterwards."""
    from peft import HRAConfig

    settings = HRAConfig(
        r=config.rank,
        apply_GS=config.orthogonalise,
        target_modules=AT.pattern(names, config, location),
        task_type="CAUSAL_LM",
    )
    return _peft.wrap(model, settings)


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """Per linear layer: ``rank * in``."""
    sizes = AT.sizes(dims, config, location)
    return dims.layers * config.rank * sum(i for i, _ in sizes)
