"""Sizes of a model from its ``config.json`` or its parameter counts: closed forms, without torch.

A transformer is read by the structure of its configuration, never by its name: a language part with layers, widths
and heads; a vision part with patches; a connector. What the forms give is compared with the operations that torch
counts on the real classes (``peftbench.efficiency``) in a test.
"""

import json
import math
from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from peftbench.errors import UserError
from peftbench.spec import ModelNames
from peftbench.study import method_module

ASSUMED_IMAGE_TOKENS = 576
"""Of an image, for models whose sizes are not known: those of LLaVA-1.5."""
ASSUMED_PARAMETERS = {
    "language": 6_500_000_000,
    "connector": 20_000_000,
    "vision": 300_000_000,
    "embeddings": 260_000_000,
}
"""Of models of which nothing is known."""


class Sizes(Struct, frozen=True, kw_only=True, dict=True):
    """What decides a model's costs."""

    source: str
    """Where they come from: ``architecture``, ``parameters`` (the rest by rule of thumb) or ``nothing``."""
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    attention: list[str]
    mlp: list[str]
    parameters: dict[str, int]
    """By component, as in a model's file."""
    image_tokens: int
    """That an image becomes in the language model."""
    vision_flops: float
    """Forward pass of the tower for one image."""
    connector_flops: float
    """Forward pass of the connector for one image."""
    connector_tuned: float
    """Forward and backward pass of a tuned connector, as a multiple of ``connector_flops``."""
    feature_bytes: float
    """Of the tower's kept output for one image, in fp32."""
    vision_activations: float
    """Values of one image that a tuned tower keeps for its backward pass."""

    @cached_property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Linear layers of a decoder layer: leaf -> (in, out)."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        found: dict[str, tuple[int, int]] = {}
        if len(self.attention) == 4:
            outs = ((self.hidden, wide), (self.hidden, narrow), (self.hidden, narrow), (wide, self.hidden))
            found |= dict(zip(self.attention, outs, strict=True))
        elif self.attention:  # query, key and value in one layer
            *fused, last = self.attention
            found |= {leaf: (self.hidden, (wide + 2 * narrow) // len(fused)) for leaf in fused}
            found[last] = (wide, self.hidden)
        for leaf in self.mlp[:-1]:
            found[leaf] = (self.hidden, self.intermediate)
        if self.mlp:
            found[self.mlp[-1]] = (self.intermediate, self.hidden)
        return found

    @cached_property
    def products(self) -> int:
        """Weights of all linear layers of all decoder layers: multiply-adds of one token."""
        return self.layers * sum(i * o for i, o in self.linear.values())

    @property
    def total(self) -> int:
        """Parameters of the model."""
        return sum(self.parameters.values())

    @cached_property
    def dims(self) -> Any:
        """The sizes as methods read them (``peftbench.models.arch.Dims``), without biases."""
        block = {f"{leaf}.weight": i * o for leaf, (i, o) in self.linear.items()}
        block |= {f"norm_{place}.weight": self.hidden for place in (1, 2)}
        return import_module("peftbench.models.arch").Dims(
            layers=self.layers,
            attention=self.attention,
            mlp=self.mlp,
            linear=self.linear,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            hidden=self.hidden,
            blocks=[block] * self.layers,
            outside=self.hidden,
            embeddings=self.parameters.get("embeddings", 0),
        )


def sizes_of(names: ModelNames, parameters: Mapping[str, int], architecture: Mapping[str, Any]) -> Sizes:
    """The sizes of a model: ``architecture`` is the content of its ``config.json``, empty where it is not known."""
    text = _text_part(architecture)
    if text:
        try:
            return _from_architecture(names, parameters, architecture, text)
        except (KeyError, TypeError, ZeroDivisionError):
            pass  # another structure: the parameter counts remain
    return _from_parameters(names, parameters)


def _text_part(architecture: Mapping[str, Any]) -> Mapping[str, Any]:
    for part in (architecture.get("text_config"), architecture.get("llm_config"), architecture):
        if isinstance(part, Mapping) and part.get("num_hidden_layers") and part.get("hidden_size"):
            return part
    return {}


def _from_architecture(
    names: ModelNames, parameters: Mapping[str, int], whole: Mapping[str, Any], text: Mapping[str, Any]
) -> Sizes:
    hidden, layers, heads = (
        int(text["hidden_size"]),
        int(text["num_hidden_layers"]),
        int(text["num_attention_heads"]),
    )
    kv_heads = int(text.get("num_key_value_heads") or heads)
    head_dim = int(text.get("head_dim") or text.get("kv_channels") or hidden // heads)
    vocabulary = int(text.get("vocab_size") or whole.get("vocab_size") or 32000)
    wide, narrow = heads * head_dim, kv_heads * head_dim
    attention = hidden * (2 * wide + 2 * narrow)
    # Some configurations give the width of gate and up together: the published count of parameters tells.
    given, published = int(text["intermediate_size"]), parameters.get("language", 0)

    def language(intermediate: int) -> int:
        return layers * (attention + len(names.mlp) * hidden * intermediate + 2 * hidden) + hidden

    intermediate = (
        min((given, given // 2), key=lambda i: abs(language(i) - published)) if published else given
    )
    tied = bool(text.get("tie_word_embeddings", whole.get("tie_word_embeddings", False)))
    vision = _vision(whole, hidden)
    counts = {
        "language": language(intermediate),
        "embeddings": vocabulary * hidden * (1 if tied else 2),
        "vision": vision["parameters"],
        "connector": vision["connector_parameters"],
    }
    return Sizes(
        source="architecture",
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=vocabulary,
        attention=list(names.attention),
        mlp=list(names.mlp),
        parameters=counts | dict(parameters),
        image_tokens=int(whole.get("image_seq_length") or vision["tokens"]),
        vision_flops=vision["flops"],
        connector_flops=vision["connector_flops"],
        connector_tuned=vision["connector_tuned"],
        feature_bytes=4.0 * vision["positions"] * vision["width"],
        vision_activations=vision["activations"],
    )


def _vision(whole: Mapping[str, Any], hidden: int) -> dict[str, Any]:
    """Tower and connector. A tower that has queries hands those on, by cross-attention; others all their patches."""
    part = whole.get("vision_config") or whole.get("visual") or {}
    width = int(part.get("hidden_size") or part["width"])
    layers = int(part.get("num_hidden_layers") or part.get("depth") or part["layers"])
    mlp = int(part.get("intermediate_size") or width * float(part["mlp_ratio"]))
    patch = int(part.get("patch_size") or 14)
    patches = (int(part["image_size"]) // patch) ** 2
    queries = int(part.get("n_queries") or 0)
    positions = patches if queries else patches + 1  # the class token
    products = 4 * width * width + 2 * width * mlp
    embed = 3 * patch * patch * width
    flops = 2.0 * patches * embed + layers * (2.0 * positions * products + 4.0 * positions**2 * width)
    found: dict[str, Any] = {"width": width, "positions": positions, "tokens": queries or patches}
    found["parameters"] = embed + (positions + 1) * width + layers * (products + 9 * width + mlp)
    found["activations"] = float(layers * positions * (8 * width + 2 * mlp))
    if queries:
        products = patches * width * hidden + (2 * queries + 2 * patches) * hidden * hidden
        found["connector_flops"] = 2.0 * products + 4.0 * queries * patches * hidden
        found["connector_parameters"] = (width + 4 * hidden + queries) * hidden
        flops += 2.0 * queries * hidden * hidden  # the projection behind it
        found["connector_tuned"] = 2.87
    else:
        found["connector_flops"] = 2.0 * patches * (width * hidden + hidden * hidden)
        found["connector_parameters"] = width * hidden + hidden * hidden + 2 * hidden
        # Weights of both layers learn; only the second one's input needs a gradient.
        found["connector_tuned"] = 2 + hidden / (width + hidden)
    found["flops"] = flops
    return found


def _from_parameters(names: ModelNames, parameters: Mapping[str, int]) -> Sizes:
    """Sizes of a model of which only counts are known, by the proportions of LLaMA's 7B."""
    counts = dict(parameters or ASSUMED_PARAMETERS)
    language = max(1, counts.get("language", 0))
    layers = max(2, round(32 * (language / 6.48e9) ** (1 / 3)))
    hidden = max(64, 64 * round(math.sqrt(language / layers / 12.06) / 64))
    intermediate = max(
        1, round((language / layers - 4 * hidden * hidden) / (max(1, len(names.mlp)) * hidden))
    )
    heads = max(1, hidden // 128)
    vision = counts.get("vision", 0)
    return Sizes(
        source="parameters" if parameters else "nothing",
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        vocabulary=max(1, counts.get("embeddings", 0) // (2 * hidden)),
        attention=list(names.attention),
        mlp=list(names.mlp),
        parameters=counts,
        image_tokens=ASSUMED_IMAGE_TOKENS,
        vision_flops=2.0 * vision * ASSUMED_IMAGE_TOKENS * 1.07,
        connector_flops=2.0 * counts.get("connector", 0) * ASSUMED_IMAGE_TOKENS,
        connector_tuned=3.0,
        feature_bytes=4.0 * ASSUMED_IMAGE_TOKENS * 1024,
        vision_activations=ASSUMED_IMAGE_TOKENS * 24 * 16 * 1024.0,
    )


def read_config_json(path: Path) -> dict[str, Any]:
    """The content of a ``config.json``; ``UserError`` where it is none."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys with values, got {type(content).__name__}")
    return content


class Method(Struct, frozen=True, kw_only=True):
    """What a method adds to a model."""

    added: int
    """Trainable parameters that it adds."""
    in_place: int = 0
    """Trainable parameters of the base model itself."""
    products: int = 0
    """Weights of linear layers among those."""
    reach: float = 1.0
    """Share of the decoder layers from the first that learns to the last."""
    copies: int = 0
    """Of what learns, kept in the base model's type during training."""
    further: float = 0.0
    """Bytes besides, per parameter that learns."""
    on_connector: bool = False
    """Whether a tuned connector has those copies too."""
    kept: float
    """Values that it keeps for the backward pass, per token and layer."""
    trains: bool
    mergeable: bool
    reaches_end: bool = False
    """Whether it adds matrices to the last linear layer of a block: else checkpointing need not run that one again."""


def method_on(sizes: Sizes, name: str, settings: Mapping[str, Any], location: str) -> Method:
    """What a method with these settings adds; ``UserError`` where they do not fit the model."""
    module = method_module(name)
    config = msgspec.convert(dict(settings), module.Config)
    added = int(module.trainable_count(sizes.dims, config, location))
    if getattr(module, "IN_PLACE", False):
        return _in_place(sizes, module, config, location, added)
    leaves = _touched(sizes, module, settings, location)
    inputs, own = float(sum(sizes.linear[leaf][0] for leaf in leaves)), added / max(1, sizes.layers)
    return Method(
        added=added,
        # A method that changes linear layers keeps their inputs; one with fewer parameters than that keeps fewer.
        kept=min(inputs, own),
        trains=bool(module.TRAINS),
        mergeable=bool(module.MERGEABLE),
        reaches_end=inputs < own and sizes.mlp[-1:] == leaves[-1:],
    )


def _in_place(sizes: Sizes, module: Any, config: Any, location: str, count: int) -> Method:
    """Of a method that trains weights of the base model itself, which it declares by ``trained_layers``."""
    layers: dict[int, list[str]] = module.trained_layers(sizes.dims, config, location)
    shapes = [sizes.linear[leaf] for leaves in layers.values() for leaf in leaves]
    copies, further, on_connector = (
        module.kept_memory(config) if hasattr(module, "kept_memory") else (0, 0.0, False)
    )
    return Method(
        added=0,
        in_place=count,
        products=sum(i * o for i, o in shapes),
        reach=1.0 - min(layers, default=sizes.layers) / sizes.layers,
        kept=sum(i for i, _ in shapes) / sizes.layers,
        trains=bool(module.TRAINS),
        mergeable=bool(module.MERGEABLE),
        reaches_end=True,
        copies=copies,
        further=further,
        on_connector=on_connector,
    )


def _touched(sizes: Sizes, module: Any, settings: Mapping[str, Any], location: str) -> list[str]:
    """The linear layers that a method changes, in the order of the forward pass."""
    words = getattr(module, "LEAF_SETTINGS", ())
    if not words:
        return []
    named = [leaf for word in words for leaf in settings.get(word) or []]
    if location != "default" or not named:
        chosen = module.DEFAULT_LOCATION if location == "default" else location
        blocks = {"attn": sizes.attention, "mlp": sizes.mlp, "both": sizes.attention + sizes.mlp}
        named = blocks[chosen]
    return [leaf for leaf in sizes.linear if leaf in named]
