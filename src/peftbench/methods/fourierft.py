"""FourierFT (Gao et al. 2024, arXiv 2405.03003): few learnt coefficients of the Fourier transform of each update.

The places of the coefficients are drawn once, the same for all layers of one shape, by a seed of its own. Defaults are
the paper's for Llama: 1,000 coefficients per layer, scale 300, Gaussian start, so that step 0 is near the base model
and not equal to it; the learning rate is that of peft's comparison of methods. The paper adapts query and value alone
(``targets``); here all linear layers, as with the other methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from peftbench.errors import UserError
from peftbench.methods import _peft
from peftbench.methods._peft import LinearConfig, LinearLayers

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "FourierFT"
TRAINS = MERGEABLE = True
LOCATIONS, DEFAULT_LOCATION = _peft.LOCATIONS, "both"
LEAF_SETTINGS = _peft.LEAF_SETTINGS
AT = LinearLayers("fourierft", DEFAULT_LOCATION)


class Config(LinearConfig, frozen=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 1e-4
    coefficients: Annotated[int, Meta(ge=1)] = 1000
    scale: _peft.Scale = 300.0
    """Small layers need a smaller one: an update has a size of ``scale * sqrt(coefficients) / (in * out)``."""
    init: Literal["normal", "zero"] = "normal"


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """Wrap the base model; only the coefficients are trainable afterwards."""
    from peft import FourierFTConfig

    settings = FourierFTConfig(
        n_frequency=config.coefficients,
        scaling=config.scale,
        init_weights=config.init == "zero",
        target_modules=AT.pattern(names, config, location),
        task_type="CAUSAL_LM",
    )
    return _peft.wrap(model, settings)


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """Per linear layer: the coefficients. ``UserError`` where a layer has fewer weights."""
    sizes = AT.sizes(dims, config, location)
    smallest = min(i * o for i, o in sizes)
    if config.coefficients > smallest:
        raise UserError(
            f"method fourierft: {config.coefficients} coefficients are more than the {smallest} weights of a layer"
        )
    return dims.layers * len(sizes) * config.coefficients
