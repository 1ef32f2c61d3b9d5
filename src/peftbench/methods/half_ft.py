"""HFT, half fine-tuning (Hui et al. 2024, arXiv 2404.18466): half of the selected tensors are trained, half are frozen.

The category-level choice of that paper, as its summaries describe it (the full text was not at hand): in each decoder
layer two of the four attention matrices, half of the norms, and of three MLP matrices two in one half of the layers and
one in the other. Unconfirmed and therefore settings: ``level`` (``layer`` chooses whole decoder layers), and that the
choice is made once per run, by ``selection_seed``, which is apart from the run's seed so that a trained run can be
loaded from its settings alone. The paper chooses among all layers; here among ``blocks``, as for the other methods of
this family. A tuned connector is trained whole.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from peftbench.errors import UserError
from peftbench.methods._selection import DEFAULT_LOCATION, LOCATIONS, Selection, last_blocks, parts
from peftbench.methods._selection import trained_layers as layers_before
from peftbench.models.arch import block_part, decoder_layers

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

__all__ = ["DEFAULT_LOCATION", "LOCATIONS"]

TITLE = "Half fine-tuning"
TRAINS = True
IN_PLACE = True
MERGEABLE = True


class Config(Selection, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings beside those of the selection."""

    level: Literal["category", "layer"] = "category"
    """Half of each kind of matrix in each decoder layer, or half of the decoder layers whole."""
    selection_seed: int = 0
    """Of the choice."""


def halves(
    blocks: Sequence[Sequence[str]],
    attention: Sequence[str],
    mlp: Sequence[str],
    attention_module: str,
    config: Config,
    location: str,
) -> list[set[str]]:
    """Of each of some decoder layers, given by its parameters' paths: the paths that are trained."""
    wanted = parts(config, location)
    draw = random.Random(f"{config.selection_seed}|{config.level}")
    if config.level == "layer":
        chosen = set(draw.sample(range(len(blocks)), len(blocks) // 2))
        return [
            {p for p in paths if block_part(p, attention, mlp, attention_module) in wanted}
            if number in chosen
            else set()
            for number, paths in enumerate(blocks)
        ]
    found: list[set[str]] = [set() for _ in blocks]
    for part in wanted:
        # A layer's weight and bias go together. Norms inside the attention module are a kind of their own.
        for linear in (True, False):
            more = set(draw.sample(range(len(blocks)), len(blocks) // 2))
            for number, paths in enumerate(blocks):
                modules = dict.fromkeys(
                    path.rpartition(".")[0]
                    for path in paths
                    if block_part(path, attention, mlp, attention_module) == part
                    and (path.rpartition(".")[0] in {*attention, *mlp}) == linear
                )
                count = (len(modules) + (number in more)) // 2
                kept = set(draw.sample(list(modules), count))
                found[number] |= {path for path in paths if path.rpartition(".")[0] in kept}
    return found


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """The model itself, with the chosen half trainable; ``UserError`` where that is nothing."""
    layers = list(decoder_layers(model, names).values())
    selected = [layers[number] for number in last_blocks(len(layers), config)]
    paths = [[path for path, _ in layer.named_parameters()] for layer in selected]
    chosen = halves(paths, names.attention, names.mlp, names.attention_module, config, location)
    for layer, kept in zip(selected, chosen, strict=True):
        for path, parameter in layer.named_parameters():
            parameter.requires_grad_(path in kept)
    if not any(chosen):
        raise UserError(
            f"method half_ft: half of {config.blocks} decoder layers is none: set a larger blocks, or level: category"
        )
    return model


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """Parameters of the chosen half."""
    blocks = [dims.blocks[number] for number in last_blocks(dims.layers, config)]
    chosen = halves(
        [list(block) for block in blocks], dims.attention, dims.mlp, dims.attention_module, config, location
    )
    return sum(block[path] for block, kept in zip(blocks, chosen, strict=True) for path in kept)


def trained_layers(dims: Dims, config: Config, location: str) -> dict[int, list[str]]:
    """Decoder layer -> its linear layers that are trained, for estimates of time and memory."""
    numbers = layers_before(dims, config, location)
    paths = [list(dims.blocks[number]) for number in numbers]
    chosen = halves(paths, dims.attention, dims.mlp, dims.attention_module, config, location)
    return {
        number: [leaf for leaf in leaves if f"{leaf}.weight" in kept]
        for (number, leaves), kept in zip(numbers.items(), chosen, strict=True)
    }
