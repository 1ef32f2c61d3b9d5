"""BOFT (Liu et al. 2023, arXiv 2311.06243): a learnt block-diagonal rotation and a learnt scale of each output.

The paper multiplies several such rotations with permutations between them (butterflies). peft can do that only with an
extension for CUDA that each machine has to compile, and otherwise silently takes one factor. Results must not depend on
that, so here it is always one factor, peft's default. Blocks of 4 are peft's; the learning rate is that of its
comparison of methods. peft keeps a dense permutation as wide as the input for every layer: much memory (28 GB on 7B).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from peftbench.methods import _peft
from peftbench.methods._peft import LinearConfig, LinearLayers

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "BOFT"
TRAINS = MERGEABLE = True
LOCATIONS, DEFAULT_LOCATION = _peft.LOCATIONS, "both"
LEAF_SETTINGS = _peft.LEAF_SETTINGS
AT = LinearLayers("boft", DEFAULT_LOCATION)


class Config(LinearConfig, frozen=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 1e-4
    block: Annotated[int, Meta(ge=2, multiple_of=2)] = 4
    """Width of a block; must divide the input of every layer."""


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """Wrap the base model; only the rotations and scales are trainable afterwards."""
    import torch
    from peft import BOFTConfig
    from peft.tuners.boft import layer

    layer._FBD_CUDA = False  # not looked for: peft would try to compile it for every layer
    # One factor has no permutation; peft fills its matrix number by number, which fails without values.
    layer.BOFTLayer.perm2mat = lambda _, indices: torch.eye(len(indices))
    settings = BOFTConfig(
        boft_block_size=config.block,
        boft_n_butterfly_factor=1,
        target_modules=AT.pattern(names, config, location),
        task_type="CAUSAL_LM",
    )
    return _peft.wrap(model, settings)


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """Per linear layer: ``in * block`` and the ``out`` scales. ``UserError`` where blocks do not divide the input."""
    sizes = AT.sizes(dims, config, location)
    _peft.check_blocks([i for i, _ in sizes], config.block, "boft")
    return dims.layers * sum(i * config.block + o for i, o in sizes)
