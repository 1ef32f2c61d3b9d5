"""A tiny random Qwen-VL-Chat as its repository on the hub looks: the same files, keys and tensor names.

Everything here follows the published layout and not the port in ``peftbench.models.qwen_vl``, so that the port
is measured against something.
"""

from __future__ import annotations

import atexit
import base64
import copy
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Literal

NEVER_RUN = 'raise RuntimeError("code of a model repository was run")\n'
MERGES = (
    *(
        "th",
        "he",
        "in",
        "er",
        "an",
        " t",
        " a",
        "the",
        " the",
        "at",
        "ou",
        "re",
        "is",
        " is",
        "on",
        " c",
        "ed",
    ),
    *("co", "lo", "ur", "red", " red", "gre", "blu", "\n\n", "  ", "'s", "ll"),
)
"""Each is two earlier tokens joined."""
CHINESE = "中国".encode()


def hub_config(**changes: Any) -> dict[str, Any]:
    """``config.json`` at size S; ``changes`` may hold a partial ``visual`` block."""
    base = len(byte_pairs())
    visual = {
        "heads": 4,
        "image_size": 112,
        "image_start_id": base + 214,
        "layers": 2,
        "mlp_ratio": 4.9231,
        "n_queries": 16,
        "output_dim": 128,
        "patch_size": 14,
        "width": 64,
    }
    visual |= changes.pop("visual", {})
    return {
        "_name_or_path": "./",
        "architectures": ["QWenLMHeadModel"],
        "attn_dropout_prob": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_qwen.QWenConfig",
            "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
        },
        "bf16": True,
        "emb_dropout_prob": 0.0,
        "fp16": False,
        "fp32": False,
        "hidden_size": 128,
        "initializer_range": 0.02,
        "intermediate_size": 688,
        "kv_channels": 32,
        "layer_norm_epsilon": 1e-06,
        "max_position_embeddings": 8192,
        "model_type": "qwen",
        "no_bias": True,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "onnx_safe": None,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": 2048,
        "tie_word_embeddings": False,
        "tokenizer_type": "QWenTokenizer",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.31.0",
        "use_cache": True,
        "use_dynamic_ntk": True,
        "use_flash_attn": False,
        "use_logn_attn": True,
        "visual": visual,
        "vocab_size": 512,
    } | changes


FULL_SIZE: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "kv_channels": 128,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 151936,
    "visual": {
        "heads": 16,
        "image_size": 448,
        "image_start_id": 151857,
        "layers": 48,
        "n_queries": 256,
        "output_dim": 4096,
        "width": 1664,
    },
}
"""What differs in the published model."""


def hub_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors, in the order of the published index."""
    hidden, mlp, vocab = config["hidden_size"], config["intermediate_size"] // 2, config["vocab_size"]
    visual = config["visual"]
    width, out, patch = visual["width"], visual["output_dim"], visual["patch_size"]
    wide, queries = int(width * visual["mlp_ratio"]), visual.get("n_queries", 256)
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (vocab, hidden)}
    for i in range(config["num_hidden_layers"]):
        at = f"transformer.h.{i}."
        shapes |= {
            f"{at}ln_1.weight": (hidden,),
            f"{at}attn.c_attn.weight": (3 * hidden, hidden),
            f"{at}attn.c_attn.bias": (3 * hidden,),
            f"{at}attn.c_proj.weight": (hidden, hidden),
            f"{at}ln_2.weight": (hidden,),
            f"{at}mlp.w1.weight": (mlp, hidden),
            f"{at}mlp.w2.weight": (mlp, hidden),
            f"{at}mlp.c_proj.weight": (hidden, mlp),
        }
    at = "transformer.visual."
    shapes |= {
        "transformer.ln_f.weight": (hidden,),
        f"{at}positional_embedding": (256, width),
        f"{at}proj": (out, out),
        f"{at}conv1.weight": (width, 3, patch, patch),
        f"{at}ln_pre.weight": (width,),
        f"{at}ln_pre.bias": (width,),
    }
    for i in range(visual["layers"]):
        block = f"{at}transformer.resblocks.{i}."
        linear = {"attn.in_proj": (3 * width, width), "attn.out_proj": (width, width)}
        linear |= {"mlp.c_fc": (wide, width), "mlp.c_proj": (width, wide)}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{block}{name}.weight": (width,), f"{block}{name}.bias": (width,)}
        for name, shape in linear.items():
            shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
    pool = f"{at}attn_pool."
    shapes |= {
        f"{pool}pos_embed": (queries, out),
        f"{pool}query": (queries, out),
        f"{pool}kv_proj.weight": (out, width),
        f"{pool}attn.in_proj_weight": (3 * out, out),
        f"{pool}attn.in_proj_bias": (3 * out,),
        f"{pool}attn.out_proj.weight": (out, out),
        f"{pool}attn.out_proj.bias": (out,),
    }
    for name in (f"{pool}ln_q", f"{pool}ln_kv", f"{at}ln_post"):
        shapes |= {f"{name}.weight": (out,), f"{name}.bias": (out,)}
    return shapes | {"lm_head.weight": (vocab, hidden)}


def hub_weights(config: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """Random bf16 tensors, large enough that every part of the model shows in its logits."""
    import numpy as np
    import torch

    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in hub_shapes(config).items():
        if name.endswith("pos_embed"):
            value = torch.from_numpy(_sines(int(shape[0] ** 0.5), shape[1]).astype(np.float32))
        else:
            value = torch.randn(shape, generator=generator)
            is_norm = len(shape) == 1 and name.endswith("weight")
            value = 1 + 0.1 * value if is_norm else value * (0.1 if len(shape) == 1 else 0.08)
        weights[name] = value.to(torch.bfloat16)
    return weights


def _sines(side: int, channels: int) -> Any:
    """Row r * side + c: [sin, cos] of the column c, then [sin, cos] of the row r."""
    import numpy as np

    omega = 10000.0 ** (-np.arange(channels // 4) / (channels / 4))
    rows = []
    for r in range(side):
        for c in range(side):
            rows.append(
                np.concatenate([np.sin(c * omega), np.cos(c * omega), np.sin(r * omega), np.cos(r * omega)])
            )
    return np.stack(rows)


def byte_pairs() -> list[bytes]:
    """The tokens of ``qwen.tiktoken`` by rank: single bytes, printable ones first, then merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    single = [bytes([b]) for b in (*printable, *(b for b in range(256) if b not in printable))]
    chinese = [CHINESE[:2], CHINESE[:3], CHINESE[3:5], CHINESE[3:], CHINESE]
    return [*single, *(merge.encode() for merge in _in_order(MERGES)), *chinese]


def _in_order(merges: tuple[str, ...]) -> list[str]:
    """``merges`` with the ones between that they are made of."""
    found: list[str] = []
    for merge in merges:
        for end in range(2, len(merge) + 1):
            part = merge[:end]
            if part not in found:
                found.append(part)
    return found


def write_hub_folder(
    folder: Path, layout: Literal["bin", "safetensors"] = "bin", seed: int = 0, **changes: Any
) -> Path:
    """Write the repository; ``changes`` are keys of ``config.json``."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = hub_config(**changes)
    _json(folder / "config.json", config)
    eod = len(byte_pairs())
    settings = {"chat_format": "chatml", "do_sample": True, "eos_token_id": eod, "max_new_tokens": 512}
    settings |= {"max_window_size": 6144, "pad_token_id": eod, "top_k": 0, "top_p": 0.3}
    _json(folder / "generation_config.json", settings | {"transformers_version": "4.31.0"})
    _json(
        folder / "tokenizer_config.json",
        {
            "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
            "model_max_length": 8192,
            "tokenizer_class": "QWenTokenizer",
        },
    )
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(byte_pairs())]
    (folder / "qwen.tiktoken").write_text("".join(lines), encoding="ascii")
    names = ("configuration_qwen", "modeling_qwen", "tokenization_qwen", "visual", "qwen_generation_utils")
    for name in names:
        (folder / f"{name}.py").write_text(NEVER_RUN, encoding="utf-8")

    weights = hub_weights(config, seed)
    shards: list[dict[str, Any]] = [{}, {}]
    for name, tensor in weights.items():
        shards["visual" in name or name == "lm_head.weight"][name] = tensor
    stem, suffix = ("pytorch_model", "bin") if layout == "bin" else ("model", "safetensors")
    files = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.{suffix}" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        if layout == "bin":
            torch.save(shard, folder / file)
        else:
            save_file(shard, folder / file, metadata={"format": "pt"})
    total = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    _json(folder / f"{stem}.{suffix}.index.json", index)
    return folder


def _json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def spec(**changes: Any) -> Any:
    """What a job that builds it is told."""
    from peftbench.spec import BaseSpec

    return BaseSpec(model="tiny-qwen-vl", source={"kind": "qwen_vl", "from": ["model"]}, **changes)


def model_file(name: str = "qwen-vl-chat") -> Any:
    """A model's file as the workflow reads it."""
    from peftbench.config import Settings

    return Settings.from_files(Path(__file__).parent.parent).model(name, "this test")


@cache
def folders() -> Path:
    """Folder with the repository in both layouts (``bin``, ``safetensors``) and what is built from each."""
    from peftbench.models.sources.qwen_vl import build

    top = Path(tempfile.mkdtemp(prefix="qwen-vl-"))
    atexit.register(shutil.rmtree, top, ignore_errors=True)
    write_hub_folder(top / "bin", "bin")
    write_hub_folder(top / "safetensors", "safetensors")
    for layout in ("bin", "safetensors"):
        build(spec(), top / f"built-{layout}", {"model": top / layout})
    return top


def load_tiny_qwen() -> Any:
    """A fresh copy in memory of the model built from the repository."""
    import torch

    torch.set_num_threads(1)  # more threads make models of this size many times slower
    return copy.deepcopy(_loaded())


@cache
def _loaded() -> Any:
    import torch

    from peftbench.models.load import load_base

    return load_base(folders() / "built-bin", "fp32", torch.device("cpu"), model_file().names)
