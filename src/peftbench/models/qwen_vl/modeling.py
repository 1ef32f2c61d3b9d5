"""Qwen-VL-Chat: a decoder in the manner of Llama with fused attention weights, and a vision part.

Up to ``seq_length`` tokens the decoder is exactly Qwen2 with rotary base 10000. Beyond, and only in
evaluation, two things change (in training neither does):

- dynamic NTK: the rotary base is ``base * alpha ** (d / (d - 2))``, ``d`` the head size, with
  ``alpha = max(2 ** ceil(log2(n / seq_length) + 1) - 1, 1)``. ``n`` is the length of the sequence at its
  first forward pass; the cache remembers ``alpha`` for the tokens that are decoded after it.
- log-n attention: the query at position ``p`` (from 0) is scaled by ``log(p + 1) / log(seq_length)``
  where ``p + 1 > seq_length``.

Lengths and positions are those of each row's own tokens. The original counts padding too, so that a row's
answer would depend, beyond ``seq_length``, on the rows it is batched with; for a row alone both are the same.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel, slice_logits_to_keep
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

# The prefix tuner looks for the eager function in the module that defines an attention class.
from peftbench.models.qwen_vl.attention import eager_attention_forward
from peftbench.models.qwen_vl.configuration import QwenVLConfig
from peftbench.models.qwen_vl.vision import QwenVLVision, QwenVLVisionBlock, init_vision_weights

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, (batch, 1, tokens, head size), fp32."""
ALPHA = "qwen_ntk_alpha"
"""Attribute of a cache that holds the alpha of its sequences."""


class QwenVLRMSNorm(nn.Module):
    """Root-mean-square norm, computed in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape whose last dimension is the width."""
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return y.to(x.dtype) * self.weight


def ntk_alpha(lengths: torch.Tensor, seq_length: int) -> torch.Tensor:
    """Alpha of sequences of these lengths, fp32, the same shape."""
    exponent = torch.ceil(torch.log2(lengths.float() / seq_length) + 1)
    return (torch.exp2(exponent) - 1).clamp(min=1.0)


def rotation(positions: torch.Tensor, alpha: torch.Tensor | None, base: float, head_dim: int) -> Rotation:
    """The rotary tables of ``positions`` (batch, tokens); ``alpha`` is (batch,), None for 1."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    bases = torch.full((1, 1), float(base), device=positions.device)
    if alpha is not None:
        bases = bases * alpha.to(positions.device)[:, None] ** (head_dim / (head_dim - 2))
    angles = positions.float()[:, :, None] * (1.0 / bases**exponents)[:, None, :]
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, rotary: Rotation) -> torch.Tensor:
    """Rotate the two halves of each head of ``x`` (batch, heads, tokens, head size) in fp32."""
    cos, sin = rotary
    y = x.float()
    first, second = y.chunk(2, dim=-1)
    return (y * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


class QwenVLAttention(nn.Module):
    """Causal self-attention; rows of ``c_attn`` are all queries, then all keys, then all values."""

    is_causal = True
    num_key_value_groups = 1

    def __init__(self, config: QwenVLConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.kv_channels
        self.c_attn = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_embeddings: Rotation,
        query_scale: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch, tokens, width) to the same, and the weights where the kernel gives them."""
        shape = (self.config.num_attention_heads, self.head_dim)
        query, key, value = (
            part.unflatten(-1, shape).transpose(1, 2) for part in self.c_attn(hidden_states).chunk(3, dim=-1)
        )
        query, key = rotate(query, position_embeddings), rotate(key, position_embeddings)
        if query_scale is not None:
            query = query * query_scale.to(query.dtype)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        out, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attn_dropout_prob if self.training else 0.0,
            scaling=self.head_dim**-0.5,
            **kwargs,
        )
        return self.c_proj(out.flatten(2)), weights


class QwenVLMLP(nn.Module):
    """``c_proj(w1(x) * silu(w2(x)))``: ``w2`` is the gate."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        width = config.intermediate_size // 2
        self.w1 = nn.Linear(config.hidden_size, width, bias=False)
        self.w2 = nn.Linear(config.hidden_size, width, bias=False)
        self.c_proj = nn.Linear(width, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, width) to the same."""
        gate = nn.functional.silu(self.w2(x))
        return self.c_proj(self.w1(x) * gate)


class QwenVLBlock(GradientCheckpointingLayer):
    """One decoder layer, normalised before each half."""

    def __init__(self, config: QwenVLConfig, layer_idx: int) -> None:
        super().__init__()
        self.ln_1 = QwenVLRMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = QwenVLAttention(config, layer_idx)
        self.ln_2 = QwenVLRMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = QwenVLMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_embeddings: Rotation,
        query_scale: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """(batch, tokens, width) to the same."""
        attended, _ = self.attn(
            self.ln_1(hidden_states),
            attention_mask=attention_mask,
            position_embeddings=position_embeddings,
            query_scale=query_scale,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.ln_2(hidden_states))


class QwenVLPreTrainedModel(PreTrainedModel):
    """What both model classes tell ``transformers``."""

    config_class = QwenVLConfig
    base_model_prefix = "transformer"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = [QwenVLBlock.__name__, QwenVLVisionBlock.__name__]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs: ClassVar[dict[str, Any]] = {
        "hidden_states": QwenVLBlock,
        "attentions": QwenVLAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_vision_weights(module, init)


class QwenVLModel(QwenVLPreTrainedModel):
    """Embeddings, decoder layers and the vision part."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.drop = nn.Dropout(config.emb_dropout_prob)
        self.h = nn.ModuleList(QwenVLBlock(config, i) for i in range(config.num_hidden_layers))
        self.ln_f = QwenVLRMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.visual = QwenVLVision(config)
        self.image_token_id = config.vision.image_token_id
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings."""
        return self.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embeddings."""
        self.wte = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states (batch, tokens, width) of ``input_ids`` or ``inputs_embeds`` (batch, tokens[, width]).

        ``pixel_values`` (images, 3, height, width) are the images of the rows, in order; ``input_ids`` hold
        a placeholder for each of their tokens. Raises ``ValueError`` where the two do not match.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        embeds = self.drop(self.wte(input_ids) if inputs_embeds is None else inputs_embeds)
        if pixel_values is not None:
            embeds = self._put_images(embeds, input_ids, pixel_values)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        if position_ids is None:
            position_ids = _positions(attention_mask, past, embeds)
        alpha = self._alpha(position_ids, past, embeds.shape[1], past_key_values)
        rotary = rotation(position_ids, alpha, self.config.rotary_emb_base, self.config.kv_channels)
        scale = self._query_scale(position_ids, past + embeds.shape[1])
        hidden = embeds
        for block in self.h:
            hidden = block(
                hidden,
                attention_mask=mask,
                position_embeddings=rotary,
                query_scale=scale,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.ln_f(hidden), past_key_values=past_key_values if use_cache else None
        )

    def _put_images(
        self, embeds: torch.Tensor, input_ids: torch.Tensor | None, pixel_values: torch.Tensor
    ) -> torch.Tensor:
        """``embeds`` with the placeholders' rows replaced by image tokens."""
        if input_ids is None:
            raise ValueError("pixel_values need input_ids: placeholders are found by their id")
        features = self.visual(pixel_values).to(embeds.device, embeds.dtype)
        places = input_ids == self.image_token_id
        found, wanted = int(places.sum()), features.shape[0] * features.shape[1]
        if found != wanted:
            raise ValueError(
                f"{len(features)} images have {wanted} tokens, but input_ids hold {found} placeholders "
                f"(id {self.image_token_id})"
            )
        return embeds.masked_scatter(places[:, :, None].to(embeds.device), features)

    def _alpha(
        self, positions: torch.Tensor, past: int, new: int, cache: Cache | None
    ) -> torch.Tensor | None:
        """Alpha of each row, (batch,); None where it is 1 for all."""
        if self.training or not self.config.use_dynamic_ntk:
            return None
        if cache is not None and past and hasattr(cache, ALPHA):
            return getattr(cache, ALPHA)
        alpha = None
        if past + new > self.config.seq_length:
            alpha = ntk_alpha(positions.amax(dim=1) + 1, self.config.seq_length)
        if cache is not None:
            setattr(cache, ALPHA, alpha)
        return alpha

    def _query_scale(self, positions: torch.Tensor, total: int) -> torch.Tensor | None:
        """Factor of each query, (batch, 1, tokens, 1); None where it is 1 for all."""
        if self.training or not self.config.use_logn_attn or total <= self.config.seq_length:
            return None
        factor = torch.log(positions.float() + 1) / math.log(self.config.seq_length)
        return factor.clamp(min=1.0)[:, None, :, None]


def _positions(attention_mask: torch.Tensor | None, past: int, embeds: torch.Tensor) -> torch.Tensor:
    """Positions of the new tokens among each row's own tokens, (batch or 1, tokens)."""
    new = embeds.shape[1]
    if attention_mask is None or attention_mask.dim() != 2:
        return torch.arange(past, past + new, device=embeds.device)[None]
    # Padding before the first token gets position 0, padding after the last one its position.
    positions = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
    return positions[:, -new:].to(embeds.device)


class QwenVLForConditionalGeneration(QwenVLPreTrainedModel, GenerationMixin):
    """The model with its output head, which is not tied to the embeddings."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__(config)
        self.transformer = QwenVLModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings."""
        return self.transformer.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embeddings."""
        self.transformer.wte = value

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the head."""
        self.lm_head = value

    def get_decoder(self) -> nn.Module:
        """The model without its head."""
        return self.transformer

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Image tokens (images, queries, width) of pixels (images, 3, height, width)."""
        return self.transformer.visual(pixel_values)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (batch, kept tokens, vocabulary), and the loss where ``labels`` (-100: ignored) are given.

        ``logits_to_keep``: the last so many positions, or the indices of those wanted; 0 for all.
        """
        outputs = self.transformer(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
