"""Trainable parameters, counted on the real architecture with the method really attached to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import msgspec

from peftbench.efficiency.architecture import instantiate
from peftbench.models.arch import Dims, measure_dims
from peftbench.spec import Connector, Decoding, Location, ModelNames, Name, PositiveInt, PredictSpec, Prompt
from peftbench.training.adapt import Tuned, attach

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from peftbench.models.load import Base


class EfficiencyModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model whose sizes are known; its weights need not be there."""

    name: Name
    title: str
    stands_for: str = ""
    """What published tables call it; empty: its name."""
    names: ModelNames
    """Where its parts are, and the module that registers its architecture, if any."""
    architecture: dict[str, Any]
    """The content of its ``config.json``."""
    vocabulary: PositiveInt | None = None
    """Rows of the embeddings that published counts refer to, where the checkpoint on the hub has others."""
    pixels: list[PositiveInt] | None = None
    """Shape of ``pixel_values`` for one image, where the configuration does not say it."""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """A method as it is put on a model."""

    method: Name
    settings: dict[str, Any] = {}
    connector: Connector = "frozen"
    location: Location = "default"


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of a model with a method on it. ``total`` includes the vision tower and the method's own."""

    added: int
    """Trainable parameters that the method added."""
    in_place: int = 0
    """Trainable parameters of the language model itself."""
    connector: int
    """Trainable parameters of the connector."""
    total: int
    embedding: int
    """Of the input embedding alone."""
    layers: int
    width: int

    @property
    def trainable(self) -> int:
        """Those of the method, of the language model and of the connector."""
        return self.added + self.in_place + self.connector

    @property
    def percent(self) -> float:
        """Trainable parameters in percent of all."""
        return 100 * self.trainable / self.total


def attach_on_meta(model: PreTrainedModel, names: ModelNames, setting: Setting) -> tuple[Tuned, Dims]:
    """Put a method on a model without weights, in place, by the code that real runs use.

    That code compares what is trainable, parameter by parameter, with the method's own formula, and raises
    ``AssertionError`` where they differ. ``UserError`` for settings that the method or the model does not
    know. The sizes returned are those before.
    """
    import torch

    spec = PredictSpec(
        model=names,
        # Nothing is generated here: these are required, not used.
        prompt=Prompt(templates=["{question}"]),
        decoding=Decoding(max_new_tokens=1, batch_size=1),
        method=setting.method,
        settings=setting.settings,
        connector=setting.connector,
        location=setting.location,
        precision="fp32",
    )
    dims = measure_dims(model, names)
    with torch.device("meta"):
        return attach(cast("Base", SimpleNamespace(model=model)), spec), dims


def counts_of(tuned: Tuned, dims: Dims, embedding: int) -> Counts:
    """The counts of a model with a method on it, and its sizes."""
    added = tuned.trainable["method"]
    return Counts(
        added=added,
        in_place=tuned.trainable["language"] + tuned.trainable["embeddings"],
        connector=tuned.trainable["connector"],
        total=sum(tuned.totals.values()) + added,
        embedding=embedding,
        layers=dims.layers,
        width=dims.hidden,
    )


def count_parameters(model: EfficiencyModel, setting: Setting, vocabulary: int | None = None) -> Counts:
    """Build the architecture, put the method on it and count; ``vocabulary`` as for ``instantiate``.

    Raises ``UserError`` where architecture, names and settings do not fit each other.
    """
    bare = instantiate(model.architecture, model.names.code, vocabulary)
    embedding = bare.get_input_embeddings().weight.numel()
    return counts_of(*attach_on_meta(bare, model.names, setting), embedding)
