"""Parts of a model by name: target patterns, the partition of its parameters, and its sizes.

Everything here works on the module paths of ``ModelNames``; nothing branches on a model's name. The module
itself imports nothing heavy, so that planning can count parameters without torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from peftbench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from peftbench.spec import ModelNames

COMPONENTS = ("language", "connector", "vision", "embeddings")
"""Every parameter of a base model belongs to exactly one of these."""


class Dims(msgspec.Struct, frozen=True):
    """Sizes that decide how many parameters a method adds.

    ``attention`` and ``mlp`` are the leaf paths of ``ModelNames``; ``linear`` maps them, and whatever other linear
    layers all decoder layers share, to ``(in_features, out_features)``. ``hidden`` is the width of the residual
    stream (the output of the last MLP layer).
    """

    layers: int
    attention: list[str]
    mlp: list[str]
    linear: dict[str, tuple[int, int]]
    kv_heads: int
    head_dim: int
    hidden: int
    attention_module: str = ""
    blocks: list[dict[str, int]] = []
    """Of each decoder layer in order: its parameters by their path in it, and how many numbers they hold."""
    outside: int = 0
    """Parameters of the language model outside its decoder layers (the last norm), without the embeddings."""
    embeddings: int = 0


def places(location: str, default: str, allowed: Sequence[str], method: str) -> tuple[bool, bool]:
    """Which parts of a decoder layer a method touches, as ``(attention, mlp)``.

    ``default`` is what the location "default" means for this method. Raises ``UserError`` where the method
    cannot be placed there.
    """
    chosen = default if location == "default" else location
    if chosen not in allowed:
        raise UserError(
            f"method {method} cannot be placed at location {chosen}: use {' or '.join(allowed)} (or default)"
        )
    return chosen in ("attn", "both"), chosen in ("mlp", "both")


def block_part(path: str, attention: Sequence[str], mlp: Sequence[str], attention_module: str) -> str:
    """Part of a decoder layer that a parameter (by its path in the layer) belongs to: attention, mlp or norm.

    Norms inside the attention module are attention's. "norm" is all that is neither: the norms of the layer.
    """
    if any(path.startswith(prefix + ".") for prefix in (*attention, attention_module) if prefix):
        return "attention"
    around = {leaf.rpartition(".")[0] for leaf in mlp}
    return "mlp" if any(path.startswith(prefix + ".") for prefix in (*mlp, *around) if prefix) else "norm"


def key_value_leaves(attention: list[str]) -> list[str]:
    """Leaf paths whose outputs are the keys and the values.

    ``ModelNames.attention`` lists query, key, value, output in the order of the forward pass. Where the three
    are fused into one layer there is no key or value output to scale; the output projection stands in for
    them, as the paper's code does for Qwen-VL.
    """
    return attention[1:3] if len(attention) == 4 else attention[-1:]


def target_regex(names: ModelNames, leaves: Iterable[str]) -> str:
    """Pattern of the full module paths of ``leaves`` in every decoder layer.

    peft matches a string target with ``re.fullmatch`` on the path inside the base model, so a module of the
    same leaf name elsewhere (the vision tower has a ``q_proj`` too) is never hit.
    """
    return rf"(?:{names.layers})\.(?:{'|'.join(re.escape(leaf) for leaf in leaves)})"


def decoder_layers(model: nn.Module, names: ModelNames) -> dict[str, nn.Module]:
    """The decoder layers by path, in order; ``UserError`` where the pattern matches none."""
    pattern = re.compile(names.layers)
    found = {path: module for path, module in model.named_modules() if pattern.fullmatch(path)}
    if not found:
        raise UserError(
            f"model file: layers: the pattern {names.layers!r} matches no module of {type(model).__name__}"
        )
    return found


def measure_dims(model: nn.Module, names: ModelNames) -> Dims:
    """Read the sizes off a base model (real, or on the meta device).

    Raises ``UserError`` where a leaf of the model file is missing or layers differ in shape.
    """
    from torch.nn import Linear

    layers = decoder_layers(model, names)
    named = [*names.attention, *names.mlp]
    per_layer = []
    for path, layer in layers.items():
        linear = {
            leaf: (module.in_features, module.out_features)
            for leaf, module in layer.named_modules()
            if isinstance(module, Linear)
        }
        for leaf in named:
            if leaf not in linear:
                raise UserError(
                    f"model file: {leaf} is not a module of {path} with a weight matrix"
                    f"{did_you_mean(leaf, linear)}"
                )
        per_layer.append((linear, head_shape(layer.get_submodule(names.attention_module))))
    first, heads = per_layer[0]
    shared = {
        leaf: size for leaf, size in first.items() if all(one.get(leaf) == size for one, _ in per_layer)
    }
    if any(leaf not in shared for leaf in named) or any(other != heads for _, other in per_layer):
        raise UserError(f"model file: layers: the layers matched by {names.layers!r} differ in shape")
    blocks = [{path: p.numel() for path, p in layer.named_parameters()} for layer in layers.values()]
    counts = component_counts(partition(model, names), model)
    return Dims(
        layers=len(layers),
        attention=list(names.attention),
        mlp=list(names.mlp),
        linear=shared,
        kv_heads=heads[0],
        head_dim=heads[1],
        hidden=shared[names.mlp[-1]][1],
        attention_module=names.attention_module,
        blocks=blocks,
        outside=counts["language"] - sum(sum(block.values()) for block in blocks),
        embeddings=counts["embeddings"],
    )


def check_leaves(dims: Dims, leaves: Iterable[str], setting: str) -> None:
    """``UserError`` with the nearest name for a leaf that the decoder layers do not have."""
    for leaf in leaves:
        if leaf not in dims.linear:
            raise UserError(
                f"{setting}: {leaf} is no linear layer of every decoder layer{did_you_mean(leaf, dims.linear)}"
            )


def head_shape(attention: Any) -> tuple[int, int]:
    """``(key-value heads, head size)`` of an attention module; with grouped queries there are fewer heads."""
    config = attention.config
    heads = int(config.num_attention_heads)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(attention, "head_dim", None) or config.hidden_size // heads
    return int(kv_heads), int(head_dim)


def partition(model: nn.Module, names: ModelNames) -> dict[str, str]:
    """Component of each parameter of a base model, by parameter path.

    The longest matching prefix wins, since a connector may live inside the vision tower (Qwen2-VL's merger).
    What no prefix claims is language if it lies in the module that holds the decoder layers. Raises
    ``UserError`` for a parameter that nobody or more than one component claims, and for a prefix that matches
    nothing.
    """
    claims = {
        prefix: component
        for component, prefixes in (
            ("connector", names.connector),
            ("vision", names.vision),
            ("embeddings", names.embeddings),
        )
        for prefix in prefixes
    }
    if len(claims) < len(names.connector) + len(names.vision) + len(names.embeddings):
        raise UserError("model file: the same prefix stands under two of connector, vision and embeddings")
    paths = list(decoder_layers(model, names))
    # "model.language_model.layers.0" lies two levels below the language model.
    root = paths[0].rsplit(".", 2)[0] if paths[0].count(".") > 1 else ""
    known = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    for prefix, component in claims.items():
        if prefix not in known:
            raise UserError(f"model file: {component}: {prefix} is no part of {type(model).__name__}")
    result: dict[str, str] = {}
    for path, _ in model.named_parameters():
        prefix = max((p for p in claims if path == p or path.startswith(p + ".")), key=len, default="")
        if prefix:
            result[path] = claims[prefix]
        elif not root or path.startswith(root + "."):
            result[path] = "language"
        else:
            raise UserError(
                f"model file: parameter {path} belongs to none of connector, vision, embeddings and {root}: "
                "name its module under one of them"
            )
    return result


def component_counts(components: dict[str, str], model: nn.Module) -> dict[str, int]:
    """Parameters per component of a base model."""
    counts = dict.fromkeys(COMPONENTS, 0)
    for path, parameter in model.named_parameters():
        counts[components[path]] += parameter.numel()
    return counts
