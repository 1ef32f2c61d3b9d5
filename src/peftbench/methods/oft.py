"""OFT (Qiu et al. 2023, arXiv 2306.07280): each weight matrix times a learnt block-diagonal rotation of its input.

Blocks are the Cayley transforms of skew-symmetric matrices, so angles between neurons are kept; step 0 is the base
model. As in OFTv2 (Qiu et al. 2025, arXiv 2506.19847) the inverse in the transform is a Neumann series of five terms.
Blocks of 32 are peft's and OFTv2's; the learning rate is that of peft's comparison of methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from peftbench.methods import _peft
from peftbench.methods._peft import LinearConfig, LinearLayers

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "OFT"
TRAINS = MERGEABLE = True
LOCATIONS, DEFAULT_LOCATION = _peft.LOCATIONS, "both"
LEAF_SETTINGS = _peft.LEAF_SETTINGS
AT = LinearLayers("oft", DEFAULT_LOCATION)


class Config(LinearConfig, frozen=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 1e-4
    block: Annotated[int, Meta(ge=2)] = 32
    """Width of a block; must divide the input of every layer."""
    exact: bool = False
    """Solve for the inverse instead of the series."""


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """Wrap the base model; only the rotations are trainable afterwards."""
    from peft import OFTConfig

    settings = OFTConfig(
        r=0,
        oft_block_size=config.block,
        use_cayley_neumann=not config.exact,
        target_modules=AT.pattern(names, config, location),
        task_type="CAUSAL_LM",
    )
    return _peft.wrap(model, settings)


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """Per linear layer: ``in * (block - 1) / 2``. ``UserError`` where blocks do not divide the input."""
    sizes = AT.sizes(dims, config, location)
    _peft.check_blocks([i for i, _ in sizes], config.block, "oft")
    return dims.layers * sum(i // config.block * (config.block * (config.block - 1) // 2) for i, _ in sizes)
