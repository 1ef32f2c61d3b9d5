"""IA3 (Liu et al. 2022): learnt vectors that scale keys, values and the input of the MLP's last layer.

Vectors start at one, so step 0 is the base model. Targets are those of the paper's script: key and value
projections (scaled at their output) and the down projection (scaled at its input).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from peftbench.models.arch import key_value_leaves, places, target_regex

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "IA3"
TRAINS = True
MERGEABLE = True
LOCATIONS: tuple[str, ...] = ("attn", "mlp", "both")
DEFAULT_LOCATION = "both"


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 2e-4


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """Wrap the base model; only the vectors are trainable afterwards."""
    from peft import IA3Config, get_peft_model

    attention, mlp = places(location, DEFAULT_LOCATION, LOCATIONS, "ia3")
    inputs = names.mlp[-1:] if mlp else []
    outputs = key_value_leaves(names.attention) if attention else []
    settings = IA3Config(
        target_modules=target_regex(names, outputs + inputs),
        # peft requires the inputs to be among the targets; an empty list where there are none.
        feedforward_modules=target_regex(names, inputs) if inputs else [],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, settings)


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """Per layer: the widths of keys and values, and the input width of the MLP's last layer."""
    attention, mlp = places(location, DEFAULT_LOCATION, LOCATIONS, "ia3")
    count = sum(dims.linear[leaf][1] for leaf in key_value_leaves(dims.attention)) if attention else 0
    return dims.layers * (count + (dims.linear[dims.mlp[-1]][0] if mlp else 0))
