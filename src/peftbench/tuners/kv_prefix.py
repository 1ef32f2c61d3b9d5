"""Prefix-tuning as a peft tuner: learnt keys and values that every token of a layer attends to.

peft's own PREFIX_TUNING carries the prefix in the key-value cache, which gradient checkpointing drops and
which breaks models with multimodal positions. Here the prefix enters inside a registered attention function
instead: a wrapper around each attention module hands its prefix to the function, which puts it before the
keys and values and extends the mask. So checkpointing recomputes it, generation caches only real tokens, and
padded batches stay right, since the prefix is visible from every row and real tokens keep their positions.

The function class and the number of parameters are those of PREFIX_TUNING: ``n`` keys and values per
key-value head and layer, not rotated. (There real tokens start at position ``n``, here at 0; with free keys
that are not rotated this is only another parametrisation.) With ``projection`` the prefix is the output of a
two-layer MLP while it trains (Li and Liang 2021; the paper's released LLaVA script); ``fold`` replaces it by
the plain prefix that is saved.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from peftbench.models.arch import head_shape
from peftbench.tuners.registry import register

NAME = "KV_PREFIX"
IMPLEMENTATIONS = {"sdpa": "kv_prefix_sdpa", "eager": "kv_prefix_eager"}
"""Attention implementation of the base model -> the one that carries prefixes."""


def _prepend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Keys, values and mask with the prefix of ``module`` in front; unchanged if it has none.

    ``query`` is (batch, heads, q, head size); ``key`` and ``value`` are (batch, kv heads, k, head size),
    before any repetition of grouped heads; ``mask`` broadcasts to (batch, heads, q, k), boolean (True =
    visible) or additive.
    """
    prefix = getattr(module, "_kv_prefix", None)
    if prefix is None:
        return key, value, mask
    length = prefix[0].shape[1]
    key = torch.cat([prefix[0].to(key.dtype).expand(key.shape[0], -1, -1, -1), key], dim=2)
    value = torch.cat([prefix[1].to(value.dtype).expand(value.shape[0], -1, -1, -1), value], dim=2)
    if mask is not None:
        mask = F.pad(mask, (length, 0), value=True if mask.dtype == torch.bool else 0.0)
    return key, value, mask


def _sdpa_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """``sdpa`` with the module's prefix."""
    key, value, attention_mask = _prepend(module, query, key, value, attention_mask)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's own ``eager`` attention with the module's prefix (models whose logits are soft-capped)."""
    key, value, attention_mask = _prepend(module, query, key, value, attention_mask)
    eager = sys.modules[type(module).__module__].eager_attention_forward
    return eager(module, query, key, value, attention_mask, **kwargs)


def _sdpa_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """``sdpa``'s mask, but never None for several queries.

    None means "let sdpa be causal", which aligns queries and keys at the upper left: with more keys than
    queries that would hide the last tokens instead of the future ones. One query sees everything, so None is
    right there.
    """
    q_length = kwargs["q_length"] if "q_length" in kwargs else args[1]
    if q_length > 1:
        kwargs["allow_is_causal_skip"] = False
    return sdpa_mask(*args, **kwargs)


AttentionInterface.register(IMPLEMENTATIONS["sdpa"], _sdpa_attention)
AttentionMaskInterface.register(IMPLEMENTATIONS["sdpa"], _sdpa_mask)
AttentionInterface.register(IMPLEMENTATIONS["eager"], _eager_attention)
AttentionMaskInterface.register(IMPLEMENTATIONS["eager"], eager_mask)


@dataclass
class KVPrefixConfig(PeftConfig):
    """Settings of the prefix; the pattern names attention modules by their full path."""

    target_modules: str | list[str] | None = field(default=None)
    num_virtual_tokens: int = field(default=20)
    init_std: float = field(default=0.02)
    projection: bool = field(default=False, metadata={"help": "train the prefix through an MLP"})
    projection_size: int | None = field(default=None, metadata={"help": "hidden width; None: the model's"})
    exclude_modules: str | list[str] | None = field(default=None)
    layers_to_transform: int | list[int] | None = field(default=None)
    layers_pattern: str | list[str] | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType[NAME]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]


class KVPrefixLayer(nn.Module, BaseTunerLayer):
    """An attention module with learnt keys and values, each (kv heads, n, head size)."""

    adapter_layer_names = ("kv_prefix_k", "kv_prefix_v")
    # Properties of peft's (untyped) base classes, and modules that torch types as "Tensor or Module".
    active_adapters: Any
    disable_adapters: Any
    set_adapter: Any
    get_base_layer: Any
    base_layer: Any

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: KVPrefixConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.kv_prefix_k = nn.ParameterDict({})
        self.kv_prefix_v = nn.ParameterDict({})
        # Prefixes of a projection, set before each forward of the model; they take the parameters' place.
        self.projected: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: KVPrefixConfig) -> None:
        """Add the prefix ``adapter_name``; ``ValueError`` for a length below 1."""
        if config.num_virtual_tokens < 1:
            raise ValueError(f"num_virtual_tokens must be at least 1, got {config.num_virtual_tokens}")
        kv_heads, head_dim = head_shape(self.get_base_layer())
        device = next(self.get_base_layer().parameters()).device
        for prefixes in (self.kv_prefix_k, self.kv_prefix_v):
            values = torch.empty(kv_heads, config.num_virtual_tokens, head_dim)
            # Drawn on the CPU so that a seed means the same everywhere.
            prefixes[adapter_name] = nn.Parameter(nn.init.normal_(values, std=config.init_std).to(device))
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The attention module's own forward; its attention function finds the prefix on the module."""
        base = self.base_layer
        active = [name for name in self.active_adapters if name in self.kv_prefix_k]
        if self.disable_adapters or not active:
            base._kv_prefix = None
        else:
            pairs = [self.projected.get(n) or (self.kv_prefix_k[n], self.kv_prefix_v[n]) for n in active]
            keys, values = zip(*pairs, strict=True)
            one = len(pairs) == 1
            base._kv_prefix = (
                keys[0] if one else torch.cat(keys, 1),
                values[0] if one else torch.cat(values, 1),
            )
        return base(*args, **kwargs)


class PrefixProjection(nn.Module):
    """The MLP reparametrisation: one embedding per prefix token, two linear layers, tanh between.

    ``forward`` gives (layers, 2, kv heads, n, head size). Shapes and initialisation are those of peft's
    ``PrefixEncoder``.
    """

    def __init__(
        self, tokens: int, width: int, hidden: int, layers: int, kv_heads: int, head_dim: int
    ) -> None:
        super().__init__()
        self.shape = (layers, 2, kv_heads, head_dim)
        self.embedding = nn.Embedding(tokens, width)
        self.transform = nn.Sequential(
            nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, layers * 2 * kv_heads * head_dim)
        )

    def forward(self) -> torch.Tensor:
        flat = self.transform(self.embedding.weight)
        return flat.view(flat.shape[0], *self.shape).permute(1, 2, 3, 0, 4)


class KVPrefixModel(BaseTuner):
    """Puts a prefix into each attention module matched by the configuration."""

    prefix = "kv_prefix_"
    tuner_layer_cls = KVPrefixLayer
    target_module_mapping: dict[str, Any] = {}  # noqa: RUF012 - peft reads it from the class

    def _create_and_replace(
        self,
        config: KVPrefixConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        if isinstance(target, KVPrefixLayer):
            target.update_layer(adapter_name, config)
            return
        self._use_prefix_attention(target.config)
        layer = KVPrefixLayer(target, adapter_name, config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        setattr(parent, target_name, layer)

    @staticmethod
    def _use_prefix_attention(config: Any) -> None:
        """Switch the language model's shared configuration to the attention that carries prefixes."""
        current = config._attn_implementation
        if current not in IMPLEMENTATIONS.values():
            if current not in IMPLEMENTATIONS:
                raise ValueError(f"a prefix needs attention sdpa or eager, the model uses {current}")
            config._attn_implementation = IMPLEMENTATIONS[current]

    def _post_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        assert isinstance(config, KVPrefixConfig)
        if not config.projection:
            return
        layers = self._layers()
        attention = layers[0].get_base_layer()
        kv_heads, head_dim = head_shape(attention)
        width = attention.config.hidden_size
        projection = PrefixProjection(
            config.num_virtual_tokens, width, config.projection_size or width, len(layers), kv_heads, head_dim
        ).to(next(attention.parameters()).device)
        # Under the model, so that optimizers, DDP and peft's freezing see it; its name carries the tuner's
        # prefix.
        model.kv_prefix_projection = projection
        for layer in layers:
            layer.kv_prefix_k[adapter_name].requires_grad_(False)
            layer.kv_prefix_v[adapter_name].requires_grad_(False)

        def project(*_: Any) -> None:
            # Once per forward pass of the whole model, before its first layer.
            for layer, (keys, values) in zip(layers, projection().unbind(0), strict=True):
                layer.projected[adapter_name] = (keys, values)

        # On the language model: peft calls the outer model's forward directly, past its hooks.
        decoder: Any = model
        if hasattr(model, "get_decoder"):
            decoder = model.get_decoder()  # type: ignore[operator]
        self._projection_hook = decoder.register_forward_pre_hook(project)

    def _layers(self) -> list[KVPrefixLayer]:
        return [module for module in self.model.modules() if isinstance(module, KVPrefixLayer)]


def fold(model: nn.Module, adapter_name: str = "default") -> None:
    """Replace a projection by the prefix it yields, in place; nothing happens if there is none.

    Afterwards the model computes the same function, holds only plain prefixes, and its configuration says so.
    """
    tuner = next(m for m in model.modules() if isinstance(m, KVPrefixModel))
    projection = getattr(tuner.model, "kv_prefix_projection", None)
    if projection is None:
        return
    assert isinstance(projection, PrefixProjection)
    with torch.no_grad():
        for layer, (keys, values) in zip(tuner._layers(), projection().unbind(0), strict=True):
            layer.kv_prefix_k[adapter_name].copy_(keys)
            layer.kv_prefix_v[adapter_name].copy_(values)
            layer.projected.pop(adapter_name, None)
    tuner._projection_hook.remove()
    del tuner.model.kv_prefix_projection
    config = tuner.peft_config[adapter_name]
    assert isinstance(config, KVPrefixConfig)
    config.projection = False


def folded(model: nn.Module, adapter_name: str = "default") -> dict[str, torch.Tensor]:
    """The state dict that peft would save after ``fold``, with the model left as it is."""
    from peft import get_peft_model_state_dict

    tuner = next(m for m in model.modules() if isinstance(m, KVPrefixModel))
    projection = getattr(tuner.model, "kv_prefix_projection", None)
    state: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    if projection is None:
        return state
    names = {id(module): name for name, module in model.named_modules()}
    plain = {key: value for key, value in state.items() if "kv_prefix_projection" not in key}
    with torch.no_grad():
        for layer, pair in zip(tuner._layers(), projection().unbind(0), strict=True):
            for part, values in zip(("kv_prefix_k", "kv_prefix_v"), pair, strict=True):
                key = f"{names[id(layer)]}.{part}"
                assert key in plain, key
                plain[key] = values
    return plain


register(NAME, KVPrefixConfig, KVPrefixModel)
