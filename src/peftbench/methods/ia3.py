"""IA3 (Liu et al. 2022): learnt vectors that scale keys, values and the input of the MLP's last layer.

Vectors start at one, so step 0 is the base model. Targets are those of the paper's script: key and value
projections (scaled at their output) and the down projection (scaled at its input).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from peftbench.errors import UserError
from peftbench.models.arch import check_leaves, key_value_leaves, places, target_regex

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "IA3"
TRAINS = True
MERGEABLE = True
LOCATIONS: tuple[str, ...] = ("attn", "mlp", "both")
DEFAULT_LOCATION = "both"
LEAF_SETTINGS = ("targets", "feedforward")
"""Settings that name the layers which location "default" means; where one is given, it stays "default"."""


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 2e-4
    targets: list[str] | None = None
    """Linear layers scaled at their output, if location "default" shall mean others."""
    feedforward: list[str] | None = None
    """Linear layers scaled at their input, likewise; given one of the two, the other is empty."""


def _leaves(
    attention: list[str], mlp: list[str], config: Config, location: str
) -> tuple[list[str], list[str]]:
    """Leaf paths scaled at their output and at their input."""
    if location == "default" and (config.targets is not None or config.feedforward is not None):
        outputs, inputs = config.targets or [], config.feedforward or []
        both = sorted({*inputs} & {*outputs})
        if both or not inputs + outputs:
            raise UserError(
                f"method ia3: {both[0]} stands under targets and feedforward: name it once"
                if both
                else "method ia3: targets and feedforward are both empty: name a linear layer"
            )
        return outputs, inputs
    wanted = places(location, DEFAULT_LOCATION, LOCATIONS, "ia3")
    return (key_value_leaves(attention) if wanted[0] else []), (mlp[-1:] if wanted[1] else [])


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """Wrap the base model; only the vectors are trainable afterwards."""
    from peft import IA3Config, get_peft_model

    outputs, inputs = _leaves(names.attention, names.mlp, config, location)
    settings = IA3Config(
        target_modules=target_regex(names, outputs + inputs),
        # peft requires the inputs to be among the targets; an empty list where there are none.
        feedforward_modules=target_regex(names, inputs) if inputs else [],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, settings)


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """Per layer: the widths of keys and values, and the input width of the MLP's last layer."""
    outputs, inputs = _leaves(dims.attention, dims.mlp, config, location)
    check_leaves(dims, outputs + inputs, "method ia3: targets or feedforward")
    scaled = sum(dims.linear[leaf][1] for leaf in outputs) + sum(dims.linear[leaf][0] for leaf in inputs)
    return dims.layers * scaled
