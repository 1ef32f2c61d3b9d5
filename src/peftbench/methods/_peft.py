"""What the method files share that put one of peft's tuners on linear layers of the decoder."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from peftbench.errors import UserError
from peftbench.models.arch import check_leaves, places, target_regex

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

LOCATIONS: tuple[str, ...] = ("attn", "mlp", "both")
LEAF_SETTINGS = ("targets",)
"""Settings that name the layers which location "default" means; where one is given, it stays "default"."""
Rank = Annotated[int, Meta(ge=1)]
Scale = Annotated[float, Meta(gt=0)]
Dropout = Annotated[float, Meta(ge=0, lt=1)]


class LinearConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings that all of them have; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 1e-4
    targets: Annotated[list[str], Meta(min_length=1)] | None = None
    """Linear layers inside a decoder layer that location "default" means instead."""


class LinearLayers:
    """Where a method stands: on linear layers of every decoder layer, in attention, in the MLP, or in both."""

    def __init__(self, method: str, default: str = "both") -> None:
        self.method, self.default = method, default

    def _leaves(self, attention: list[str], mlp: list[str], config: LinearConfig, location: str) -> list[str]:
        if location == "default" and config.targets is not None:
            return config.targets
        wanted = places(location, self.default, LOCATIONS, self.method)
        return (attention if wanted[0] else []) + (mlp if wanted[1] else [])

    def pattern(self, names: ModelNames, config: LinearConfig, location: str) -> str:
        """Pattern of the full paths of the targets, as peft's ``target_modules``."""
        return target_regex(names, self._leaves(names.attention, names.mlp, config, location))

    def sizes(self, dims: Dims, config: LinearConfig, location: str) -> list[tuple[int, int]]:
        """``(in, out)`` of each target in one decoder layer; ``UserError`` for a layer that is not there."""
        leaves = self._leaves(dims.attention, dims.mlp, config, location)
        check_leaves(dims, leaves, f"method {self.method}: targets")
        return [dims.linear[leaf] for leaf in leaves]


def wrap(model: Any, settings: Any) -> Any:
    """``model`` with a tuner on it, in place; what peft says about defaults that we chose is not passed on."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(model, settings)


def check_blocks(widths: list[int], block: int, method: str) -> None:
    """``UserError`` where blocks of this size do not divide a width; peft would take another size, or fail."""
    for width in widths:
        if width % block:
            raise UserError(
                f"method {method}: block {block} does not divide the input of a layer ({width}): take a divisor of it"
            )


def check_rank(sizes: list[tuple[int, int]], rank: int, method: str) -> None:
    """``UserError`` for a rank above that of a weight matrix, whose decomposition has no so many parts."""
    least = min(min(size) for size in sizes)
    if rank > least:
        raise UserError(f"method {method}: rank {rank} is above that of a layer ({least}): lower it")
