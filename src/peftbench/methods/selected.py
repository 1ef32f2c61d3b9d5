"""Plain fine-tuning of selected modules: the last decoder blocks, and the connector where it is tuned.

What the papers around SPIDER (arXiv 2411.10928) call full fine-tuning, in their code the trainer ``Normal``: the last
two blocks with their norms and the projector, learning rate 2e-4 (the projector's 2e-5), 5 epochs, global batch 16.
Those numbers are from the scripts of the same group's later code (WenkeHuang/NRCA); SPIDER's own were not released.
"""

from __future__ import annotations

from peftbench.methods._selection import (
    DEFAULT_LOCATION,
    LOCATIONS,
    Selection,
    apply,
    trainable_count,
    trained_layers,
)

__all__ = ["DEFAULT_LOCATION", "LOCATIONS", "apply", "trainable_count", "trained_layers"]

TITLE = "Selected modules"
TRAINS = True
IN_PLACE = True
MERGEABLE = True


class Config(Selection, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings of the selection; no others."""
