"""A method and a connector put onto a base model; their weights saved and loaded.

What is trainable is decided here, checked parameter by parameter before the first step, and recorded per
component. The connector is trained in place rather than as peft's ``modules_to_save``: no second copy in
memory, merging works for every method, and its weights are a plain file (``connector.safetensors``) under the
base model's own names.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from peftbench.errors import UserError
from peftbench.models.arch import component_counts, measure_dims, partition
from peftbench.spec import PredictSpec
from peftbench.training.delta import DELTA_FILE, base_hash, check_base, write_delta

if TYPE_CHECKING:
    import torch

    from peftbench.models.load import Base
    from peftbench.spec import ModelNames, TrainSpec

ADAPTER_DIR = "adapter"
ADAPTER_FILE = "adapter_model.safetensors"
CONNECTOR_FILE = "connector.safetensors"
VISION_FILE = "vision.safetensors"
PEFT_ROOT = "base_model.model."
"""What peft puts before the path of every parameter of the base model."""


class Tuned:
    """A base model with a method applied.

    ``model`` is a ``PeftModel``, or the bare base model for methods that add nothing. ``method_parameters``,
    ``connector_parameters`` and ``vision_parameters`` are the trainable ones by name in ``model``. ``totals`` and
    ``trainable`` count parameters per component of the base model; what the method added is the component "method".
    Of a method that trains weights of the base model itself (``in_place``), ``base_sha256`` is the hash of what it
    replaces.
    """

    def __init__(self, model: Any, method: Any, settings: Any) -> None:
        self.model = model
        self.method = method
        self.settings = settings
        self.method_parameters: dict[str, torch.nn.Parameter] = {}
        self.connector_parameters: dict[str, torch.nn.Parameter] = {}
        self.vision_parameters: dict[str, torch.nn.Parameter] = {}
        self.in_place = bool(getattr(method, "IN_PLACE", False))
        self.base_sha256 = ""
        self.totals: dict[str, int] = {}
        self.trainable: dict[str, int] = {}

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """All that is trained, by name in ``model``."""
        return {**self.method_parameters, **self.connector_parameters, **self.vision_parameters}


def load_method(name: str) -> Any:
    """The module of a method; ``UserError`` where there is none."""
    try:
        return importlib.import_module(f"peftbench.methods.{name}")
    except ModuleNotFoundError as error:
        if error.name == f"peftbench.methods.{name}":
            raise UserError(f"there is no method {name!r}: src/peftbench/methods has no {name}.py") from None
        raise


def attach(base: Base, spec: TrainSpec | PredictSpec) -> Tuned:
    """Apply the spec's method and connector to ``base`` (in place) and check what is trainable.

    The initial values of the method come from torch's global generator. Raises ``UserError`` for settings
    that the method does not know and for names of the model file that do not fit; ``AssertionError`` where
    more or less is trainable than the method's formula says.
    """
    method = load_method(spec.method)
    try:
        settings = msgspec.convert(spec.settings, method.Config)
    except msgspec.ValidationError as error:
        raise UserError(f"method {spec.method}: {error}") from None
    components = partition(base.model, spec.model)
    dims = measure_dims(base.model, spec.model)
    totals = component_counts(components, base.model)
    constant = constant_paths(components, spec.model)
    sizes = {path: parameter.numel() for path, parameter in base.model.named_parameters()}
    wanted = {"method": method.trainable_count(dims, settings, spec.location)}
    for part, setting in (("connector", spec.connector), ("vision", spec.vision)):
        paths = {path for path, component in components.items() if component == part} - constant
        wanted[part] = sum(sizes[path] for path in paths) if setting == "tuned" else 0

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name on its way out
        # Where trained weights will be loaded, a method need not compute its initial ones, if it can do without.
        given = isinstance(spec, PredictSpec) and "fresh" in inspect.signature(method.apply).parameters
        arguments = {"fresh": False} if given else {}
        model = method.apply(base.model, spec.model, settings, spec.location, **arguments)
    base.lead = model.base_model.lead_ids() if hasattr(method, "LEADS") else []
    tuned = Tuned(model, method, settings)
    wrapped = tuned.model is not base.model
    own = ("language", "embeddings", "method") if tuned.in_place else ("method",)
    replaced = {}
    parts = {
        "connector": (spec.connector == "tuned", tuned.connector_parameters),
        "vision": (spec.vision == "tuned", tuned.vision_parameters),
    }
    trainable = dict.fromkeys([*totals, "method"], 0)
    for name, parameter in tuned.model.named_parameters():
        path = name.removeprefix(PEFT_ROOT) if wrapped else name
        # peft moves a wrapped layer's own weights one level down.
        original = path.replace(".base_layer.", ".")
        component = components.get(original, "method")
        chosen, group = parts.get(component, (False, tuned.method_parameters))
        if component in parts:
            parameter.requires_grad_(chosen and original not in constant)
        if parameter.requires_grad:
            trainable[component] += parameter.numel()
            if original in components and not parameter.is_meta:
                replaced[original] = parameter
            if parameter.is_floating_point() and str(parameter.dtype) != "torch.float32":
                # A learning rate of 2e-5 would vanish in the rounding of bf16 weights.
                parameter.data = parameter.data.float()
            group[name] = parameter
    if tuned.in_place and replaced:
        tuned.base_sha256 = base_hash(replaced)
    counted = {"method": sum(trainable[component] for component in own)}
    counted |= {component: count for component, count in trainable.items() if component not in own}
    for component, count in counted.items():
        assert count == wanted.get(component, 0), (
            f"{component} has {count} trainable parameters, expected {wanted.get(component, 0)} "
            f"(method {spec.method}, location {spec.location}, connector {spec.connector}, vision {spec.vision})"
        )
    tuned.totals, tuned.trainable = totals, trainable
    return tuned


def constant_paths(components: dict[str, str], names: ModelNames) -> set[str]:
    """Paths of the parameters that are never trained; ``UserError`` where the model has no such part."""
    found = set()
    for prefix in names.constant:
        paths = {path for path in components if path == prefix or path.startswith(prefix + ".")}
        if not paths:
            raise UserError(f"model file: constant: {prefix} is no part of the model")
        found |= paths
    return found


def save(tuned: Tuned, directory: Path, base_name: str, final: bool = True) -> None:
    """Write ``adapter/`` in peft's layout; ``connector.safetensors`` and ``vision.safetensors`` where they were tuned.

    Of a method that trains the base model's own weights, ``delta.safetensors`` with those instead of an adapter.

    ``base_name`` is recorded as the base model's name; a path would make equal results differ between machines. A
    save that is not ``final`` leaves the model as it is, to be trained further.
    """
    from safetensors.torch import save_file

    finish = getattr(tuned.method, "finish", None)
    if finish and final:
        finish(tuned.model)
    if tuned.method_parameters and tuned.in_place:
        directory.mkdir(parents=True, exist_ok=True)
        weights = _plain(tuned.method_parameters)
        write_delta(directory / DELTA_FILE, weights, tuned.base_sha256, base_name)
    elif tuned.method_parameters:
        folder = directory / ADAPTER_DIR
        folder.mkdir(parents=True)
        config = copy.deepcopy(tuned.model.peft_config["default"])
        weights = _weights(tuned, config, finished=bool(finish and final))
        save_file(_plain(weights), folder / ADAPTER_FILE, metadata={"format": "pt"})
        config.base_model_name_or_path, config.inference_mode = base_name, True
        config.save_pretrained(str(folder))
    for parameters, name in (
        (tuned.connector_parameters, CONNECTOR_FILE),
        (tuned.vision_parameters, VISION_FILE),
    ):
        if parameters:
            directory.mkdir(parents=True, exist_ok=True)
            plain = {key.removeprefix(PEFT_ROOT): p for key, p in parameters.items()}
            save_file(_plain(plain), directory / name, metadata={"format": "pt"})


def _weights(tuned: Tuned, config: Any, finished: bool) -> dict[str, torch.Tensor]:
    """What is saved of a method, and its configuration (changed in place): peft's, or as the method has it."""
    from peft import get_peft_model_state_dict

    if hasattr(tuned.method, "snapshot") and not finished:
        weights: dict[str, torch.Tensor] = tuned.method.snapshot(tuned.model, config)
        return weights
    return get_peft_model_state_dict(tuned.model, save_embedding_layers=False)


def _plain(weights: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(weights.items())}


def restore(tuned: Tuned, run_dir: Path) -> None:
    """Put the weights of a run into a model that ``attach`` made with the same settings.

    Raises ``UserError`` where a file is missing or holds other tensors than this method and model have, or was made
    for another base model.
    """
    import torch
    from peft import set_peft_model_state_dict

    stored: list[tuple[dict[str, Any], str]] = [
        (tuned.connector_parameters, CONNECTOR_FILE),
        (tuned.vision_parameters, VISION_FILE),
    ]
    if tuned.in_place:
        stored.insert(0, (tuned.method_parameters, DELTA_FILE))
    elif tuned.method.TRAINS:
        path = run_dir / ADAPTER_DIR / ADAPTER_FILE
        finish = getattr(tuned.method, "finish", None)
        if finish:
            finish(tuned.model)  # saved weights are in the finished form
        weights = _read(path)
        config = copy.deepcopy(tuned.model.peft_config["default"])
        _check_same(path, weights, _weights(tuned, config, finished=bool(finish)))
        getattr(tuned.method, "load", set_peft_model_state_dict)(tuned.model, weights)
    for parameters, file in stored:
        if not parameters:
            continue
        path = run_dir / file
        weights = _read(path)
        if file == DELTA_FILE:
            check_base(path, tuned.base_sha256)
        own = {name.removeprefix(PEFT_ROOT): p for name, p in parameters.items()}
        _check_same(path, weights, own)
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(weights[name])


def merge(tuned: Tuned, name: str) -> None:
    """Put what the method added into the base model's weights; ``UserError`` where that cannot be done exactly.

    A method that trains those weights themselves has nothing to be merged.
    """
    if not tuned.method.MERGEABLE:
        raise UserError(f"method {name} cannot be merged into the weights: set merge: auto or never")
    if not tuned.in_place:
        tuned.model.merge_and_unload()


def _read(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: not found: train this run first") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}): delete the run's folder and train again") from None


def _check_same(path: Path, stored: dict[str, torch.Tensor], own: dict[str, Any]) -> None:
    if stored.keys() != own.keys():
        odd = sorted(stored.keys() ^ own.keys())
        raise UserError(f"{path}: its tensors are not those of this model and method (first: {odd[0]})")
    for name, tensor in stored.items():
        if tensor.shape != own[name].shape:
            raise UserError(
                f"{path}: {name} is {tuple(tensor.shape)}, the model has {tuple(own[name].shape)}"
            )
