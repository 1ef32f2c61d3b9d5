"""LN-tuning (Zhao et al. 2023, arXiv 2312.11420): the weights of the norms inside the decoder layers, and nothing else.

The paper tunes multimodal models by the norms in the attention blocks of the language model (with or without the
connector); the last norm before the head stays frozen. peft trains a copy of each norm, which merging puts in its
place. The learning rate is that of peft's comparison of methods. There is one place: norms are part of neither
attention nor MLP.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from peftbench.methods import _peft
from peftbench.models.arch import decoder_layers, places, target_regex

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "LN-tuning"
TRAINS = MERGEABLE = True
LOCATIONS: tuple[str, ...] = ("both",)
DEFAULT_LOCATION = "both"


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 1e-4


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """Wrap the base model; only the norms of the decoder layers are trainable afterwards."""
    from peft import LNTuningConfig

    places(location, DEFAULT_LOCATION, LOCATIONS, "ln_tuning")
    norms = {
        path.rpartition(".")[0]
        for layer in decoder_layers(model, names).values()
        for path, _ in layer.named_parameters()
        if _is_norm(path, [name for name, module in layer.named_modules() if hasattr(module, "in_features")])
    }
    pattern = target_regex(names, sorted(norms))
    return _peft.wrap(model, LNTuningConfig(target_modules=pattern, task_type="CAUSAL_LM"))


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """The parameters of the norms of all decoder layers: what is in them besides linear layers."""
    places(location, DEFAULT_LOCATION, LOCATIONS, "ln_tuning")
    return sum(count for block in dims.blocks for path, count in block.items() if _is_norm(path, dims.linear))


def _is_norm(path: str, linear: Iterable[str]) -> bool:
    """Whether a parameter of a decoder layer, by its path, belongs to none of its linear layers."""
    return path.rpartition(".")[0] not in linear
