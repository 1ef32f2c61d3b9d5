"""Bottleneck adapters as a peft tuner: the series form of LLM-Adapters, or Houlsby's placement.

Around a frozen linear layer ``W`` with projections ``D: d -> b`` and ``U: b -> d``, activation ``f``:

- on the input (``mh_adapter``):      ``y = W(x + s * U f(D drop(x)))``
- on the output (``output_adapter``): ``y = h + s * U f(D drop(h))`` with ``h = W x``

The paper's code (LLM-Adapters' fork of peft) puts the first before gate_proj and up_proj and the second after
down_proj, with tanh, no bias, both matrices drawn from N(0, 0.02) - so the function at step 0 is not that of
the base model - and dropout 0.05 on the adapter's input. Importing this module registers the tuner, after
which stock peft saves and loads it (``PeftModel.from_pretrained``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _get_in_out_features
from peft.utils import PeftType
from torch import nn
from transformers.activations import ACT2FN

from peftbench.tuners.registry import register

NAME = "BOTTLENECK"


@dataclass
class BottleneckConfig(PeftConfig):
    """Settings of the adapters; patterns are matched with the full module path (``re.fullmatch``)."""

    target_modules: str | list[str] | None = field(default=None)
    input_modules: str | None = field(
        default=None,
        metadata={"help": "pattern of those targets whose input is adapted; the others' output is"},
    )
    bottleneck_size: int = field(default=256)
    non_linearity: str = field(default="tanh", metadata={"help": "name in transformers.activations.ACT2FN"})
    adapter_dropout: float = field(default=0.05, metadata={"help": "dropout on the adapter's input"})
    scaling: float = field(default=1.0)
    init_std: float = field(default=0.02, metadata={"help": "standard deviation of the down projection"})
    up_init_std: float = field(
        default=0.02, metadata={"help": "of the up projection; 0 starts as the base model"}
    )
    adapter_bias: bool = field(default=False)
    exclude_modules: str | list[str] | None = field(default=None)
    layers_to_transform: int | list[int] | None = field(default=None)
    layers_pattern: str | list[str] | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType[NAME]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A frozen linear layer with an adapter on its input or its output."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_size", "scaling", "bottleneck_dropout")
    # Properties of peft's (untyped) base classes, and containers that torch types as "Tensor or Module".
    active_adapters: Any
    disable_adapters: Any
    set_adapter: Any
    get_base_layer: Any
    base_layer: Any
    _cast_input_dtype: Any
    _move_adapter_to_device_of_base_layer: Any

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig, on_input: bool
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = _get_in_out_features(self.get_base_layer())
        self.on_input = on_input
        self.bottleneck_size: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.activation: dict[str, nn.Module] = {}
        self.bottleneck_dropout = nn.ModuleDict({})
        self.bottleneck_down = nn.ModuleDict({})
        self.bottleneck_up = nn.ModuleDict({})
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add the adapter ``adapter_name``; ``ValueError`` for a bottleneck below 1."""
        if config.bottleneck_size < 1:
            raise ValueError(f"bottleneck_size must be at least 1, got {config.bottleneck_size}")
        width = self.in_features if self.on_input else self.out_features
        self.bottleneck_size[adapter_name] = config.bottleneck_size
        self.scaling[adapter_name] = config.scaling
        self.activation[adapter_name] = ACT2FN[config.non_linearity]
        self.bottleneck_dropout[adapter_name] = nn.Dropout(config.adapter_dropout)
        down = nn.Linear(width, config.bottleneck_size, bias=config.adapter_bias)
        up = nn.Linear(config.bottleneck_size, width, bias=config.adapter_bias)
        self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name] = down, up
        # On the meta device (low_cpu_mem_usage, counting) there is nothing to fill.
        if not down.weight.is_meta:
            for linear, std in ((down, config.init_std), (up, config.up_init_std)):
                nn.init.normal_(linear.weight, std=std) if std else nn.init.zeros_(linear.weight)
                if config.adapter_bias:
                    nn.init.zeros_(linear.bias)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """``x`` is (..., in_features); the result is (..., out_features)."""
        if self.disable_adapters:
            return self.base_layer(x, *args, **kwargs)
        if self.on_input:
            return self.base_layer(self._adapted(x), *args, **kwargs)
        return self._adapted(self.base_layer(x, *args, **kwargs))

    def _adapted(self, h: torch.Tensor) -> torch.Tensor:
        """``h`` plus what the active adapters make of it, computed in the adapter's precision."""
        for name in self.active_adapters:
            if name in self.bottleneck_down:
                down, up = self.bottleneck_down[name], self.bottleneck_up[name]
                z = self._cast_input_dtype(self.bottleneck_dropout[name](h), down.weight.dtype)
                delta = up(self.activation[name](down(z)))
                scale = self.scaling[name]
                h = h + (delta if scale == 1.0 else delta * scale).to(h.dtype)
        return h

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Always an error: the adapter is not linear."""
        raise NotImplementedError("a bottleneck adapter is not linear and cannot be merged")

    def __repr__(self) -> str:
        return "bottleneck." + super().__repr__()


class BottleneckModel(BaseTuner):
    """Puts bottleneck adapters around the targets of a model."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, Any] = {}  # noqa: RUF012 - peft reads it from the class

    def _create_and_replace(
        self,
        config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, config)
            return
        on_input = bool(config.input_modules and re.fullmatch(config.input_modules, current_key))
        layer = BottleneckLayer(target, adapter_name, config, on_input)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        raise ValueError("bottleneck adapters are not linear and cannot be merged")


register(NAME, BottleneckConfig, BottleneckModel)
