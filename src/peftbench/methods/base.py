"""The untuned base model: nothing is added, so it is never trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TRAINS = False
MERGEABLE = False
LOCATIONS: tuple[str, ...] = ("attn", "mlp", "both")
DEFAULT_LOCATION = "both"


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """No settings."""


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """The model as it is."""
    return model


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """Zero."""
    return 0
