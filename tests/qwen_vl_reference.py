"""Qwen-VL-Chat written out from its description: one row, one image, one head at a time, in float64."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def reference_vision(weights, config, image):
    """Image tokens (queries, width) of one image (3, h, w), in float64, head by head."""
    w = {k.removeprefix("transformer.visual."): v.double() for k, v in weights.items() if "visual" in k}
    visual = config["visual"]
    patch, width, heads = visual["patch_size"], visual["width"], visual["heads"]
    rows, columns = image.shape[1] // patch, image.shape[2] // patch
    x = torch.stack(
        [
            (
                w["conv1.weight"]
                * image[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].double()
            ).sum((1, 2, 3))
            for r in range(rows)
            for c in range(columns)
        ]
    )
    x = _norm(x + bicubic(w["positional_embedding"], rows, columns), w, "ln_pre")
    size = width // heads
    for i in range(visual["layers"]):
        at = f"transformer.resblocks.{i}."
        fused = _norm(x, w, at + "ln_1") @ w[at + "attn.in_proj.weight"].T + w[at + "attn.in_proj.bias"]
        outs = []
        for head in range(heads):  # 3 * size outputs of a head lie together
            q, k, v = fused[:, head * 3 * size : (head + 1) * 3 * size].split(size, dim=1)
            outs.append(((q @ k.T) / math.sqrt(size)).softmax(-1) @ v)
        x = x + torch.cat(outs, 1) @ w[at + "attn.out_proj.weight"].T + w[at + "attn.out_proj.bias"]
        y = _norm(x, w, at + "ln_2") @ w[at + "mlp.c_fc.weight"].T + w[at + "mlp.c_fc.bias"]
        y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
        x = x + y @ w[at + "mlp.c_proj.weight"].T + w[at + "mlp.c_proj.bias"]
    value = _norm(x @ w["attn_pool.kv_proj.weight"].T, w, "attn_pool.ln_kv")
    table = w["attn_pool.pos_embed"]
    pool = (
        torch.nn.MultiheadAttention(visual["output_dim"], visual["output_dim"] // 128)
        .double()
        .requires_grad_(False)
    )
    names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    pool.load_state_dict({name: w[f"attn_pool.attn.{name}"] for name in names})
    query = _norm(w["attn_pool.query"], w, "attn_pool.ln_q") + table
    out, _ = pool(query[:, None], (value + bicubic(table, rows, columns))[:, None], value[:, None])
    return _norm(out[:, 0], w, "ln_post") @ w["proj"]


def _norm(x, w, name):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)


def bicubic(table, rows, columns):
    """Resize a square table of positions by cubic convolution (a = -0.75), pixel centres aligned."""
    side = int(table.shape[0] ** 0.5)

    def kernel(d, a=-0.75):
        d = abs(d)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0

    def matrix(new):
        m = torch.zeros(new, side, dtype=torch.float64)
        for i in range(new):
            centre = (i + 0.5) * side / new - 0.5
            for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
                m[i, min(max(j, 0), side - 1)] += kernel(centre - j)
        return m

    grid = table.double().reshape(side, side, -1)
    return torch.einsum("ri,cj,ijd->rcd", matrix(rows), matrix(columns), grid).reshape(rows * columns, -1)


def reference_logits(weights, config, embeds, prefill=None, training=False):
    """Logits (tokens, vocabulary) of one row of embeddings; NTK's alpha is that of the first ``prefill`` tokens."""
    w = {k.removeprefix("transformer."): v.double() for k, v in weights.items() if "visual" not in k}
    heads, size, limit = config["num_attention_heads"], config["kv_channels"], config["seq_length"]
    n = len(embeds)
    alpha = max(2 ** math.ceil(math.log2((prefill or n) / limit) + 1) - 1, 1)
    base = config["rotary_emb_base"] * (1 if training else alpha) ** (size / (size - 2))
    angle = torch.arange(n, dtype=torch.float64)[:, None] * base ** (
        -torch.arange(0, size, 2).double() / size
    )
    logn = [1.0 if training or p + 1 <= limit else math.log(p + 1, limit) for p in range(n)]

    def rms(x, name):
        return (
            x / (x.pow(2).mean(-1, keepdim=True) + config["layer_norm_epsilon"]).sqrt() * w[f"{name}.weight"]
        )

    def turn(x):
        a, b = x[:, : size // 2], x[:, size // 2 :]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], 1)

    x = embeds.double()
    hidden = x.shape[1]
    causal = torch.ones(n, n).tril().bool()
    for i in range(config["num_hidden_layers"]):
        at = f"h.{i}."
        qkv = rms(x, at + "ln_1") @ w[at + "attn.c_attn.weight"].T + w[at + "attn.c_attn.bias"]
        outs = []
        for head in range(heads):
            q, k, v = (qkv[:, part * hidden + head * size :][:, :size] for part in range(3))
            q = turn(q) * torch.tensor(logn, dtype=torch.float64)[:, None]
            scores = (q @ turn(k).T / math.sqrt(size)).masked_fill(~causal, -math.inf)
            outs.append(scores.softmax(-1) @ v)
        x = x + torch.cat(outs, 1) @ w[at + "attn.c_proj.weight"].T
        y = rms(x, at + "ln_2")
        gate = y @ w[at + "mlp.w2.weight"].T
        x = x + (y @ w[at + "mlp.w1.weight"].T * gate * gate.sigmoid()) @ w[at + "mlp.c_proj.weight"].T
    return rms(x, "ln_f") @ w["lm_head.weight"].T
