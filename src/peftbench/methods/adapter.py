"""Bottleneck adapters (Houlsby et al. 2019) in the series form of LLM-Adapters, which the paper's code uses.

By default an adapter of width 256 on the input of gate and up and on the output of down (``mlp``); at
``attn`` on the inputs of query, key and value and the output of the output projection. The text of the paper
describes Houlsby's placement instead (after attention and after the MLP): ``placement: houlsby`` with
``location: both``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Struct

from peftbench.errors import UserError
from peftbench.models.arch import check_leaves, places, target_regex

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "Adapter"
TRAINS = True
MERGEABLE = False
LOCATIONS: tuple[str, ...] = ("attn", "mlp", "both")
DEFAULT_LOCATION = "mlp"
LEAF_SETTINGS = ("inputs", "outputs")
"""Settings that name the layers which location "default" means; where one is given, it stays "default"."""


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 5e-5
    bottleneck: Annotated[int, Meta(ge=1)] = 256
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.05
    """On the adapter's input."""
    non_linearity: Literal["tanh", "relu", "gelu", "silu"] = "tanh"
    scaling: float = 1.0
    bias: bool = False
    init: Literal["normal", "identity"] = "normal"
    """Up projection: N(0, 0.02) as in the paper's code, or zero so that step 0 is the base model."""
    placement: Literal["llm_adapters", "houlsby"] = "llm_adapters"
    """Before all but the last layer of each block and after the last; or only after the last."""
    inputs: list[str] | None = None
    """Linear layers adapted at their input, if location "default" shall mean others."""
    outputs: list[str] | None = None
    """Linear layers adapted at their output, likewise; given one of the two, the other is empty."""


def _leaves(
    attention: list[str], mlp: list[str], config: Config, location: str
) -> tuple[list[str], list[str]]:
    """Leaf paths adapted at their input and at their output."""
    if location == "default" and (config.inputs is not None or config.outputs is not None):
        inputs, outputs = config.inputs or [], config.outputs or []
        both = sorted({*inputs} & {*outputs})
        if both or not inputs + outputs:
            raise UserError(
                f"method adapter: {both[0]} stands under inputs and outputs: name it once"
                if both
                else "method adapter: inputs and outputs are both empty: name a linear layer"
            )
        return inputs, outputs
    wanted = places(location, DEFAULT_LOCATION, LOCATIONS, "adapter")
    blocks = [block for block, chosen in zip((attention, mlp), wanted, strict=True) if chosen]
    inputs = [] if config.placement == "houlsby" else [leaf for block in blocks for leaf in block[:-1]]
    return inputs, [block[-1] for block in blocks]


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """Wrap the base model; only the adapters are trainable afterwards."""
    from peft import get_peft_model

    from peftbench.tuners.bottleneck import BottleneckConfig

    inputs, outputs = _leaves(names.attention, names.mlp, config, location)
    settings = BottleneckConfig(
        target_modules=target_regex(names, inputs + outputs),
        input_modules=target_regex(names, inputs) if inputs else None,
        bottleneck_size=config.bottleneck,
        non_linearity=config.non_linearity,
        adapter_dropout=config.dropout,
        scaling=config.scaling,
        up_init_std=0.02 if config.init == "normal" else 0.0,
        adapter_bias=config.bias,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, settings)


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """Per adapter on a stream of width d: ``2 d b``, and ``b + d`` with biases."""
    inputs, outputs = _leaves(dims.attention, dims.mlp, config, location)
    check_leaves(dims, inputs + outputs, "method adapter: inputs or outputs")
    widths = [dims.linear[leaf][0] for leaf in inputs] + [dims.linear[leaf][1] for leaf in outputs]
    b = config.bottleneck
    return dims.layers * sum(2 * d * b + (b + d if config.bias else 0) for d in widths)
