"""BitFit (Ben Zaken et al. 2021, arXiv 2106.10199): only the biases of the language model's decoder layers are trained.

Most of today's language models have none, or few. Where a linear layer of attention or MLP lacks one, a zero bias is
added by default, so that step 0 is the base model: what LLaMA-Adapter V2 (arXiv 2304.15010) calls bias tuning, without
its scales. ``missing: leave`` trains those there are. The learning rate is the upper end of the paper's search
(1e-4 to 1e-3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from peftbench.errors import UserError
from peftbench.models.arch import block_part, decoder_layers, places

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "BitFit"
TRAINS = True
IN_PLACE = True
MERGEABLE = True
LOCATIONS: tuple[str, ...] = ("attn", "mlp", "both")
DEFAULT_LOCATION = "both"


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 1e-3
    missing: Literal["add", "leave"] = "add"
    """Linear layers without a bias: get a zero one, or stay as they are."""


def _wanted(attention: list[str], mlp: list[str], location: str) -> tuple[set[str], list[str]]:
    """Parts of a decoder layer whose biases are trained, and the linear layers that are to have one."""
    chosen = places(location, DEFAULT_LOCATION, LOCATIONS, "bitfit")
    leaves = [
        leaf for leaves, there in zip((attention, mlp), chosen, strict=True) if there for leaf in leaves
    ]
    parts = {part for part, there in zip(("attention", "mlp"), chosen, strict=True) if there}
    return parts | ({"norm"} if all(chosen) else set()), leaves


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """The model itself, with its biases trainable; ``UserError`` where it has none and none are added."""
    import torch

    parts, leaves = _wanted(names.attention, names.mlp, location)
    chosen = 0
    for layer in decoder_layers(model, names).values():
        for leaf in leaves if config.missing == "add" else ():
            linear: Any = layer.get_submodule(leaf)
            if linear.bias is None:
                zeros = torch.zeros(linear.out_features, dtype=torch.float32, device=linear.weight.device)
                linear.bias = torch.nn.Parameter(zeros)
        for path, parameter in layer.named_parameters():
            learns = path.endswith(".bias") and (
                block_part(path, names.attention, names.mlp, names.attention_module) in parts
            )
            parameter.requires_grad_(learns)
            chosen += learns
    if not chosen:
        raise UserError("method bitfit: the decoder layers have no biases to train: set missing: add")
    return model


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """Widths of the outputs of the linear layers, and the biases of norms where there are any."""
    parts, leaves = _wanted(dims.attention, dims.mlp, location)
    total = 0
    for block in dims.blocks:
        total += sum(
            size
            for path, size in block.items()
            if path.endswith(".bias")
            and block_part(path, dims.attention, dims.mlp, dims.attention_module) in parts
        )
        if config.missing == "add":
            total += sum(dims.linear[leaf][1] for leaf in leaves if f"{leaf}.bias" not in block)
    return total


def trained_layers(dims: Dims, config: Config, location: str) -> dict[int, list[str]]:
    """No matrix is trained, but the backward pass goes through all decoder layers."""
    return {number: [] for number in range(dims.layers)}
