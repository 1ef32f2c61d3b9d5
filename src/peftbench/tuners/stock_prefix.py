"""Trained prefixes in the form of peft's own PREFIX_TUNING, for programs that know nothing of this package.

peft puts the prefix into the key-value cache, so that its real tokens stand at the positions n, n + 1, ... behind the
n prefix tokens, while ours stand at 0, 1, ...: their queries meet the prefix keys under another rotation. Rotary
embeddings depend on differences alone, so one more rotation of every prefix key by n positions makes up for it: real
tokens meet each other as before, and the prefix as they did in training. Logits then agree within rounding.

That holds where peft's PREFIX_TUNING works at all: models with ordinary rotary positions in one dimension, whose mask
is causal. Not for models that want the types of tokens, which peft drops: Qwen2.5-VL and Qwen3-VL take their positions
from them, Gemma3 and PaliGemma the block in which an image sees all of itself.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftbench.errors import UserError
from peftbench.models.arch import head_shape
from peftbench.models.load import TOKEN_TYPES
from peftbench.tuners.kv_prefix import KVPrefixLayer, fold


def prompt_embeddings(model: nn.Module, adapter_name: str = "default") -> torch.Tensor:
    """The prefix as peft's tensor (n, layers * 2 * kv heads * head size), in float32.

    ``model`` carries a ``kv_prefix`` adapter; a projection is folded first. Raises ``UserError`` for models whose
    positions peft's PREFIX_TUNING does not treat in the same way.
    """
    fold(model, adapter_name)
    layers = [module for module in model.modules() if isinstance(module, KVPrefixLayer)]
    if not layers:
        raise UserError("export of a prefix: the model has none")
    rows = []
    for layer in layers:
        keys = layer.kv_prefix_k[adapter_name].detach().float().cpu()
        values = layer.kv_prefix_v[adapter_name].detach().float().cpu()
        keys = _rotated(keys, *_angles(model, layer.get_base_layer(), keys.shape[1]))
        rows += [keys, values]
    stacked = torch.stack(rows)  # (layers * 2, kv heads, n, head size)
    return stacked.permute(2, 0, 1, 3).reshape(stacked.shape[2], -1).contiguous()


def write_stock_prefix(model: nn.Module, folder: Path, base_name: str, adapter_name: str = "default") -> None:
    """Write the prefix of ``model`` to ``folder`` as peft's PREFIX_TUNING; ``base_name`` is recorded."""
    from peft import PrefixTuningConfig
    from safetensors.torch import save_file

    embeddings = prompt_embeddings(model, adapter_name)
    layers = [module for module in model.modules() if isinstance(module, KVPrefixLayer)]
    attention: Any = layers[0].get_base_layer()
    kv_heads, head_dim = head_shape(attention)
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=embeddings.shape[0],
        num_layers=len(layers),
        token_dim=kv_heads * head_dim,
        num_attention_heads=kv_heads,
        num_transformer_submodules=1,
        encoder_hidden_size=attention.config.hidden_size,
        prefix_projection=False,
        inference_mode=True,
        base_model_name_or_path=base_name,
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {"prompt_embeddings": embeddings}, folder / "adapter_model.safetensors", metadata={"format": "pt"}
    )
    config.save_pretrained(str(folder))


def _angles(model: nn.Module, attention: Any, position: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of the rotation at ``position``, each (head size,), as the model itself makes them."""
    whole: Any = model
    if hasattr(model, "get_base_model"):
        whole = model.get_base_model()  # type: ignore[operator]
    if set(TOKEN_TYPES) & set(inspect.signature(whole.forward).parameters):
        raise UserError(
            f"export of a prefix: {type(whole).__name__} wants the types of tokens, which peft's PREFIX_TUNING drops"
        )
    rotary = next(
        (m for name, m in model.named_modules() if name.endswith(".rotary_emb") and _plain(m)), None
    )
    if rotary is None:
        raise UserError(
            f"export of a prefix: {type(attention).__name__} has other positions than peft's PREFIX_TUNING handles"
        )
    device = next(rotary.buffers()).device
    places = torch.full((1, 1), position, device=device)
    cosine, sine = rotary(torch.zeros(1, 1, 1, dtype=torch.float32, device=device), places)
    # Long-context variants also scale; what is needed here is the rotation alone.
    scale = float(getattr(rotary, "attention_scaling", 1.0))
    return cosine[0, 0].float().cpu() / scale, sine[0, 0].float().cpu() / scale


def _plain(module: nn.Module) -> bool:
    """Whether a rotary embedding is that of a language model: called with a tensor and positions alone."""
    return list(inspect.signature(module.forward).parameters) == ["x", "position_ids"] and hasattr(
        module, "attention_scaling"
    )


def _rotated(keys: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Keys (kv heads, n, head size) under one more rotation, in the half-split form of Llama's family."""
    first, second = keys.chunk(2, dim=-1)
    return keys * cosine + torch.cat([-second, first], dim=-1) * sine
