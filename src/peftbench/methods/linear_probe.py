"""The connector alone: nothing is added to the language model, and nothing in it is trained.

A reference point for what a method adds. Named for the linear probe of vision models; a connector of more than one
layer is trained whole. It needs ``connector: tuned``, and learns at the connector's learning rate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "Connector alone"
TRAINS = False
IN_PLACE = True
MERGEABLE = True
LOCATIONS: tuple[str, ...] = ("attn", "mlp", "both")
DEFAULT_LOCATION = "both"


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """No settings."""


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """The model as it is."""
    return model


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """Zero: the connector's parameters are counted as its own."""
    return 0


def trained_layers(dims: Dims, config: Config, location: str) -> dict[int, list[str]]:
    """None."""
    return {}
