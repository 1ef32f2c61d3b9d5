"""The vision tower of Qwen-VL-Chat, a ViT without class token, and its connector, a cross-attention resampler.

Both position tables belong to a grid of their own and are resized (bicubic, in fp32) to the image's grid.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from peftbench.models.qwen_vl.attention import eager_attention_forward
from peftbench.models.qwen_vl.configuration import POOL_HEAD_SIZE, QwenVLConfig

LAYER_NORM_EPS = 1e-6
POSITION_GRID = 16
"""Side of the grid of the tower's learnt positions (a 224-pixel image), whatever the image size is."""


def resize_grid(table: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Positions of a square grid, (side * side, channels) row by row, as (height * width, channels)."""
    side = math.isqrt(table.shape[0])
    if (height, width) == (side, side):
        return table
    grid = table.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(height * width, -1).to(table.dtype)


def sin_cos_positions(channels: int, side: int) -> torch.Tensor:
    """The fixed 2-D table of the resampler, (side * side, channels), fp32.

    The first half of the channels encodes the column, the second the row; each is [sin | cos] at frequencies
    ``10000 ** (-j / (channels / 4))``.
    """
    quarter = channels // 4
    omega = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)
    index = torch.arange(side, dtype=torch.float64, device="cpu")
    rows, columns = torch.meshgrid(index, index, indexing="ij")
    angles = [axis.flatten()[:, None] * omega for axis in (columns, rows)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1).float()


class QwenVLVisionAttention(nn.Module):
    """Self-attention; rows of ``in_proj`` are ordered head by head, each with its query, key and value."""

    is_causal = False
    num_key_value_groups = 1

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        self.config = config
        self.heads = config.vision.heads
        self.head_dim = config.vision.width // self.heads
        self.in_proj = nn.Linear(config.vision.width, 3 * config.vision.width)
        self.out_proj = nn.Linear(config.vision.width, config.vision.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(images, patches, width) to the same."""
        fused = self.in_proj(x).unflatten(-1, (self.heads, 3 * self.head_dim)).transpose(1, 2)
        query, key, value = fused.split(self.head_dim, dim=-1)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        out, _ = attention(
            self, query, key, value, None, dropout=0.0, scaling=self.head_dim**-0.5, is_causal=False
        )
        return self.out_proj(out.flatten(2))


class QwenVLVisionMLP(nn.Module):
    """Two linear layers with the exact GELU between."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.vision.width, config.vision.mlp_width)
        self.act = ACT2FN["gelu"]
        self.c_proj = nn.Linear(config.vision.mlp_width, config.vision.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(images, patches, width) to the same."""
        return self.c_proj(self.act(self.c_fc(x)))


class QwenVLVisionBlock(GradientCheckpointingLayer):
    """One layer of the tower, normalised before each half."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.vision.width, eps=LAYER_NORM_EPS)
        self.attn = QwenVLVisionAttention(config)
        self.ln_2 = nn.LayerNorm(config.vision.width, eps=LAYER_NORM_EPS)
        self.mlp = QwenVLVisionMLP(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(images, patches, width) to the same."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class QwenVLVisionLayers(nn.Module):
    """The tower's layers; a module of its own only for the names of the checkpoint."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(QwenVLVisionBlock(config) for _ in range(config.vision.layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(images, patches, width) to the same."""
        for block in self.resblocks:
            x = block(x)
        return x


class QwenVLResamplerAttention(nn.Module):
    """Cross-attention; rows of ``in_proj_weight`` are all queries, then all keys, then all values."""

    is_causal = False
    num_key_value_groups = 1

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        self.config = config
        width = config.vision.output_dim
        self.heads, self.head_dim = width // POOL_HEAD_SIZE, POOL_HEAD_SIZE
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """(images, queries, width); ``key`` and ``value`` are (images, patches, width)."""
        parts = zip(
            (query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True
        )
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
            for x, weight, bias in parts
        )
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        out, _ = attention(self, q, k, v, None, dropout=0.0, scaling=self.head_dim**-0.5, is_causal=False)
        return self.out_proj(out.flatten(2))


class QwenVLResampler(nn.Module):
    """Turns the patches of an image into a fixed number of tokens by one cross-attention from learnt queries."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        vision = config.vision
        # A constant that the checkpoint stores as a weight; never trained.
        self.pos_embed = nn.Parameter(torch.empty(vision.n_queries, vision.output_dim), requires_grad=False)
        self.query = nn.Parameter(torch.empty(vision.n_queries, vision.output_dim))
        self.kv_proj = nn.Linear(vision.width, vision.output_dim, bias=False)
        self.attn = QwenVLResamplerAttention(config)
        self.ln_q = nn.LayerNorm(vision.output_dim, eps=LAYER_NORM_EPS)
        self.ln_kv = nn.LayerNorm(vision.output_dim, eps=LAYER_NORM_EPS)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """(images, height * width patches, tower width) to (images, queries, output width)."""
        value = self.ln_kv(self.kv_proj(x))
        query = self.ln_q(self.query) + self.pos_embed
        key = value + resize_grid(self.pos_embed, height, width)
        return self.attn(query.expand(x.shape[0], -1, -1), key, value)


class QwenVLVision(nn.Module):
    """Pixels to image tokens: patches, tower, resampler, projection."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        vision = config.vision
        self.patch_size = vision.patch_size
        self.conv1 = nn.Conv2d(3, vision.width, vision.patch_size, stride=vision.patch_size, bias=False)
        self.positional_embedding = nn.Parameter(torch.empty(POSITION_GRID**2, vision.width))
        self.ln_pre = nn.LayerNorm(vision.width, eps=LAYER_NORM_EPS)
        self.transformer = QwenVLVisionLayers(config)
        self.attn_pool = QwenVLResampler(config)
        self.ln_post = nn.LayerNorm(vision.output_dim, eps=LAYER_NORM_EPS)
        self.proj = nn.Parameter(torch.empty(vision.output_dim, vision.output_dim))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(images, 3, height, width) to (images, queries, output width)."""
        patches = self.conv1(pixel_values.to(self.conv1.weight.dtype))
        height, width = patches.shape[-2:]
        x = patches.flatten(2).transpose(1, 2)
        x = x + resize_grid(self.positional_embedding, height, width)
        x = self.transformer(self.ln_pre(x))
        x = self.ln_post(self.attn_pool(x, height, width))
        return x @ self.proj

    def extra_repr(self) -> str:
        """Shown with the module's parts."""
        return f"patch_size={self.patch_size}"


def init_vision_weights(module: Any, init: Any) -> None:
    """Fill the parameters that are no part of a linear layer, a norm or an embedding.

    ``init`` is ``transformers.initialization``, whose functions leave loaded weights alone.
    """
    if isinstance(module, QwenVLResampler):
        queries, width = module.pos_embed.shape
        init.copy_(module.pos_embed, sin_cos_positions(width, math.isqrt(queries)))
        init.trunc_normal_(module.query, std=0.02)
    elif isinstance(module, QwenVLResamplerAttention):
        init.xavier_uniform_(module.in_proj_weight)
        init.zeros_(module.in_proj_bias)
    elif isinstance(module, QwenVLVision):
        for parameter in (module.positional_embedding, module.proj):
            init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
