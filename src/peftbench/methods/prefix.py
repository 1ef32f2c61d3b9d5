"""Prefix-tuning (Li and Liang 2021): learnt keys and values in every attention layer of the language model.

20 tokens without the MLP reparametrisation by default: that is what the paper counts (its Table 15) and
saves. Its released LLaVA script trains through the MLP: ``projection: true``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from peftbench.models.arch import places, target_regex

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "Prefix-Tuning"
TRAINS = True
MERGEABLE = False
LOCATIONS: tuple[str, ...] = ("attn",)
DEFAULT_LOCATION = "attn"


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 1e-5
    tokens: Annotated[int, Meta(ge=1)] = 20
    init_std: Annotated[float, Meta(ge=0)] = 0.02
    """Standard deviation of the initial prefix; not used with a projection."""
    projection: bool = False
    """Train through a two-layer MLP, which is folded into the plain prefix on saving."""
    projection_size: Annotated[int, Meta(ge=1)] | None = None
    """Hidden width of that MLP; None: the model's width."""


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """Wrap the base model; only the prefixes (or their projection) are trainable afterwards."""
    from peft import get_peft_model

    from peftbench.tuners.kv_prefix import KVPrefixConfig

    places(location, DEFAULT_LOCATION, LOCATIONS, "prefix")
    settings = KVPrefixConfig(
        target_modules=target_regex(names, [names.attention_module]),
        num_virtual_tokens=config.tokens,
        init_std=config.init_std,
        projection=config.projection,
        projection_size=config.projection_size,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, settings)


def finish(model: Any) -> None:
    """Before saving: a projection becomes the plain prefix that it yields."""
    from peftbench.tuners.kv_prefix import fold

    fold(model)


def needs_whole_weights(config: Config) -> bool:
    """Whether saving computes with the weights, for which ZeRO-3 must not have split them."""
    return config.projection


def snapshot(model: Any, config: Any) -> dict[str, Any]:
    """What ``finish`` would leave to save, and its configuration (changed in place), the model left as it is."""
    from peftbench.tuners.kv_prefix import folded

    config.projection = False
    return folded(model)


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """``tokens * 2 * layers * kv heads * head size``; with a projection, the parameters of the MLP."""
    places(location, DEFAULT_LOCATION, LOCATIONS, "prefix")
    saved = 2 * dims.layers * dims.kv_heads * dims.head_dim
    if not config.projection:
        return config.tokens * saved
    width, hidden = dims.hidden, config.projection_size or dims.hidden
    return config.tokens * width + (width + 1) * hidden + (hidden + 1) * saved
