"""Studies: the grid of a table, expanded to runs with every setting written out."""

import itertools
import json
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any, Literal, get_args

import msgspec

from peftbench.canonical import canonical_json, normalised
from peftbench.config import Settings, typed
from peftbench.config_types import StudyConfig, Training
from peftbench.errors import UserError, did_you_mean
from peftbench.spec import Connector, Epoch, Location, Merge, Optim, Seed, Spec, TrainSize
from peftbench.views import Summary

COORDINATES: dict[str, Any] = {
    "model": str,
    "dataset": str,
    "method": str,
    "connector": Connector,
    "location": Location,
    "train_size": TrainSize,
    "seed": Seed,
    "target": str,
    "vision": Connector,
    "epoch": Epoch,
    "exposure": bool,
    "merge": Merge,
}
"""The axes that every run has, with the type of their values."""
WORDS = {bool: "bool", Seed: "int"}
OPTIONAL = ("vision", "epoch", "exposure", "merge")
"""Those that few studies have: like settings of methods they are shown only where a study names them."""
DERIVED = ("setting", "measure")
"""What tables may be laid out by besides: all further axes of a run in words, and which of its numbers it is."""
SAME = "same"
"""In an exclusion: the target that is the data set itself."""
REQUIRED = ("model", "dataset", "method")
BASE = "base"
"""The method that changes nothing; ``include_base`` adds it, axes do not name it."""
_TRAINING = tuple(field.name for field in msgspec.structs.fields(Training))
_OPTIM = tuple(field.name for field in msgspec.structs.fields(Optim))


class Run(Spec, frozen=True, kw_only=True):
    """One fine-tuning run (or, with ``method="base"``, none) of a study, fully specified."""

    model: str
    dataset: str
    """What it is tuned on."""
    target: str
    """What it is tested on."""
    method: str
    connector: Literal["tuned", "frozen"]
    location: Literal["attn", "mlp", "both", "default"]
    train_size: int | Literal["full"]
    seed: int
    settings: str
    """The method's configuration as canonical JSON, defaults written out."""
    training: Training
    vision: Literal["tuned", "frozen"]
    epoch: Epoch
    """Whose weights answer."""
    keep_epochs: bool
    """Whether the run keeps the weights of all epochs: where a study asks for any but the last. All of them, so that
    studies that ask for different ones share their runs."""
    trials: list[float]
    """Learning rates that are tried, the best of which answers; none: the method's own."""
    validation: float
    """Share of the training examples that trials are compared on."""
    exposure: bool
    """Whether the base model was shown the seen data sets first."""
    merge: Merge
    """Whether the method is merged into the weights before it answers."""
    axes: dict[str, Any]
    """Values of the study's further axes."""


class Expander:
    """Expands one study; what many runs share is resolved once."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.file = f"config/studies/{name}.yaml"
        self.settings = settings
        self.study: StudyConfig = settings.study(name)
        self._training: dict[str, Training] = {}
        self._methods: dict[str, str] = {}
        self.grids = [self._read_axes(self.study.axes | grid) for grid in self.study.grids or [{}]]
        self.axes = self._union()
        """Axis -> all its values, over all grids."""
        self._check_names()

    def runs(self) -> Iterator[Run]:
        """All runs of the grid in the order of the axes, the untuned base model after them; none where it describes."""
        if self.study.kind != "table":
            return
        for axes in self.grids:
            for values in itertools.product(*axes.values()):
                point = dict(zip(axes, values, strict=True))
                if not self._excluded(point):
                    yield self._run(point, axes)
        if self.study.include_base == "each":
            yield from self._base_of_each()
        elif self.study.include_base:
            tested = self.axes.get("target", self.axes["dataset"])
            exposed = self.axes.get("exposure", [False])
            for model, exposure, dataset in itertools.product(self.axes["model"], exposed, tested):
                point = {"model": model, "dataset": dataset, "method": BASE, "seed": self.axes["seed"][0]}
                yield self._run(point | ({"exposure": exposure} if exposed != [False] else {}), {})

    def _base_of_each(self) -> Iterator[Run]:
        """The untuned base on every data set that runs tuned on another are tested on, once for each of those."""
        seen: set[tuple[Any, ...]] = set()
        for axes in self.grids:
            tested = axes.get("target", [None])
            exposed = axes.get("exposure", [False])
            for values in itertools.product(axes["model"], exposed, axes["dataset"], tested):
                model, exposure, dataset, target = values
                if values in seen:
                    continue
                seen.add(values)
                point = {"model": model, "dataset": dataset, "target": target or dataset, "method": BASE}
                point |= {"seed": self.axes["seed"][0]}
                if not self._excluded(point):
                    yield self._run(point | ({"exposure": exposure} if exposed != [False] else {}), {})

    def summaries(self) -> list[tuple[str, Summary]]:
        """The further columns of the table, with the data sets' names here; ``UserError`` for what is not there."""
        known = {"own", *map(str, self.axes.get(self.study.columns, []))}
        found = {}
        for name, summary in self.study.summaries.items():
            if summary is None:
                continue
            where = f"{self.file}: summaries.{name}"
            if bool(summary.over) == bool(summary.cost):
                raise UserError(f"{where}: give either over or cost")
            if self.study.columns in ("dataset", "target"):
                over = list(dict.fromkeys(self.settings.stand_in(item) for item in summary.over))
            else:
                over = summary.over
            for item in over:
                if item not in known:
                    raise UserError(f"{where}: over: {item!r} is no column{did_you_mean(item, known)}")
            known.add(name)
            found[name] = msgspec.structs.replace(summary, over=over)
        for pair in self.study.pairs:
            for item in pair:
                if item not in found:
                    raise UserError(f"{self.file}: pairs: {item!r} is no summary{did_you_mean(item, found)}")
        return list(found.items())

    def _union(self) -> dict[str, list[Any]]:
        union: dict[str, list[Any]] = {}
        for axes in self.grids:
            for axis, values in axes.items():
                known = union.setdefault(axis, [])
                known.extend(value for value in values if value not in known)
        return union

    def _run(self, point: dict[str, Any], axes: dict[str, list[Any]]) -> Run:
        method = point["method"]
        further = {axis: value for axis, value in point.items() if axis not in COORDINATES}
        module = method_module(method)
        training = self._training_of(point["model"], further)
        settings = self._method_settings(module, method, point["model"], further)
        return Run(
            model=point["model"],
            dataset=point["dataset"],
            target=point.get("target", point["dataset"]),
            method=method,
            connector="frozen" if method == BASE else point.get("connector", "tuned"),
            location=self._location(module, method, point.get("location", "default"), settings),
            train_size=self._train_size(point),
            seed=point["seed"],
            settings=settings,
            training=training,
            vision="frozen" if method == BASE else point.get("vision", "frozen"),
            epoch="last" if method == BASE else self._epoch(point.get("epoch", "last"), training),
            keep_epochs=method != BASE and axes.get("epoch", ["last"]) != ["last"],
            exposure=point.get("exposure", False),
            merge=self._merge(module, method, point.get("merge")),
            trials=self._trials(module, settings),
            validation=self.study.tuning.validation if self.study.tuning and module.TRAINS else 0.0,
            axes=further | {axis: point[axis] for axis in OPTIONAL if axis in point},
        )

    def _trials(self, module: ModuleType, settings: str) -> list[float]:
        """Learning rates of the trials, rounded to six digits so that 0.1 * 3 and 0.3 are one run."""
        if self.study.tuning is None or not module.TRAINS:
            return []
        if "epoch" in self.axes:
            raise UserError(
                f"{self.file}: tuning: a study cannot have the axis epoch too: the last one is compared"
            )
        rate = json.loads(settings)["learning_rate"]
        rates = [float(f"{rate * factor:.6g}") for factor in self.study.tuning.factors]
        if len(set(rates)) < len(rates):
            raise UserError(f"{self.file}: tuning.factors: two trials have the same learning rate")
        return rates

    def _epoch(self, epoch: Any, training: Training) -> Any:
        """The epoch as the spec has it: the last one is "last", by whatever name."""
        if isinstance(epoch, str):
            if epoch != "last" and not training.eval_loss:
                raise UserError(
                    f"{self.file}: axes.epoch: {epoch!r} is found by the evaluation loss: set training.eval_loss: true"
                )
            return epoch
        if epoch > training.epochs:
            raise UserError(
                f"{self.file}: axes.epoch: there is no epoch {epoch} of {training.epochs}: raise training.epochs"
            )
        return "last" if epoch == training.epochs else epoch

    def _merge(self, module: ModuleType, method: str, merge: Any) -> Any:
        if merge == "always" and not module.MERGEABLE:
            raise UserError(
                f"{self.file}: axes.merge: {method} cannot be merged into the weights: leave it out by exclude or grids"
            )
        return merge or self.settings.main.evaluation.merge

    def _train_size(self, point: dict[str, Any]) -> Any:
        """Examples to train with, as the study has it; ``Plan.subset`` knows when that is all there are."""
        size = point.get("train_size", "full")
        there = self.settings.dataset(point["dataset"], self.file).splits.get("train", 0)
        if size != "full" and size > there and self.study.short == "refuse":
            raise UserError(
                f"{self.file}: axes.train_size: {point['dataset']} has {there} examples to train with, not {size}: "
                "take fewer, or set short: all to take all there are"
            )
        return size

    def _location(self, module: ModuleType, method: str, location: Any, settings: str) -> Any:
        if location == "default":
            given = json.loads(settings)
            # Layers that a setting names are no place with a name.
            named = any(given.get(key) is not None for key in getattr(module, "LEAF_SETTINGS", ()))
            return "default" if named else module.DEFAULT_LOCATION
        if location not in module.LOCATIONS:
            raise UserError(
                f"{self.file}: axes.location: {method} cannot stand at {location!r}, only at "
                f"{', '.join(module.LOCATIONS)}: leave the combination out by exclude"
            )
        return location

    def training_of(self, model: str) -> Training:
        """Settings of training of a model's runs, further axes left out."""
        return self._training_of(model, {})

    def method_settings(self, method: str, model: str) -> str:
        """A method's settings on a model as canonical JSON, further axes left out."""
        return self._method_settings(method_module(method), method, model, {})

    def variants(self) -> Iterator[tuple[str, str, str, str, dict[str, Any]]]:
        """Of a study that describes: model, method, place, settings (canonical JSON) and the axes that name some."""
        for axes in self.grids:
            shown = {axis: values for axis, values in axes.items() if axis not in ("dataset", "seed")}
            for values in itertools.product(*shown.values()):
                point = dict(zip(shown, values, strict=True))
                given = {axis: value for axis, value in point.items() if axis not in COORDINATES}
                model, method = point["model"], point["method"]
                module = method_module(method)
                settings = self._method_settings(module, method, model, given)
                location = self._location(module, method, point.get("location", "default"), settings)
                yield model, method, location, settings, given

    def _method_settings(self, module: ModuleType, method: str, model: str, further: dict[str, Any]) -> str:
        own = {}
        for axis, value in further.items():
            owner, _, key = axis.rpartition(".")
            if owner == method or (not owner and axis not in _TRAINING):
                own[key] = value
        cached = canonical_json([method, model, own])
        if cached not in self._methods:
            merged: dict[str, Any] = {}
            of_model = self.settings.model(model, self.file).methods
            levels = [
                (f"config/models/{model}.yaml", f"methods.{method}", of_model.get(method, {})),
                ("config/config.yaml", f"methods.{method}", self.settings.main.methods.get(method, {})),
                (self.file, f"methods.{method}", self.study.methods.get(method, {})),
                (self.file, "axes", own),
            ]
            for file, prefix, level in levels:
                merged |= level
                config = typed(merged, module.Config, file, prefix)
            self._methods[cached] = canonical_json(config)
        return self._methods[cached]

    def _training_of(self, model: str, further: dict[str, Any]) -> Training:
        own = {axis: value for axis, value in further.items() if axis in _TRAINING}
        cached = canonical_json([model, own])
        if cached not in self._training:
            merged = msgspec.to_builtins(self.settings.main.training)
            levels = [
                (f"config/models/{model}.yaml", "training", self.settings.model(model, self.file).training),
                (self.file, "training", self.study.training),
                (self.file, "axes", own),
            ]
            for file, prefix, level in levels:
                merged |= level
                training = typed(merged, Training, file, prefix)
            self._training[cached] = normalised(training)
        return self._training[cached]

    def _read_axes(self, given: dict[str, Any]) -> dict[str, list[Any]]:
        for axis in REQUIRED if self.study.kind == "table" else ():
            if axis not in given:
                raise UserError(f"{self.file}: axes: key {axis!r} is missing")
        lineup = self.settings.main.lineup
        axes: dict[str, list[Any]] = {}
        for axis, value in given.items():
            where = f"{self.file}: axes.{axis}"
            if value == "lineup" and axis in ("model", "dataset", "target"):
                value = lineup.models if axis == "model" else lineup.datasets
            elif axis in ("dataset", "target") and value in ("seen", "unseen"):
                wanted = value == "seen"
                value = [d for d in lineup.datasets if self.settings.dataset(d, where).seen == wanted]
            values = list(value) if isinstance(value, list) else [value]
            if not values:
                raise UserError(f"{where}: no value")
            if axis in ("model", "dataset", "target"):
                names = [self.settings.stand_in(name) if isinstance(name, str) else name for name in values]
                # one model may stand in for two
                values = names if names == values else list(dict.fromkeys(names))
            if axis in COORDINATES:
                values = [self._coordinate(axis, item, where) for item in values]
            for item in values:
                if values.count(item) > 1:
                    raise UserError(f"{where}: {item!r} stands there twice")
            axes[axis] = values
        axes.setdefault("seed", list(self.settings.main.seeds))
        return axes

    def _coordinate(self, axis: str, value: Any, where: str) -> Any:
        try:
            return msgspec.convert(value, COORDINATES[axis])
        except msgspec.ValidationError:
            kind = COORDINATES[axis]
            allowed = [v for part in (kind, *get_args(kind)) for v in get_args(part) if isinstance(v, str)]
            expected = did_you_mean(value, allowed) if allowed else f"; expected {WORDS.get(kind, 'str')}"
            raise UserError(f"{where}: {value!r} is not possible{expected}") from None

    def _check_names(self) -> None:
        for model in self.axes.get("model", []):
            self.settings.model(model, f"{self.file}: axes.model")
        for dataset in self.axes.get("dataset", []):
            loaded = self.settings.dataset(dataset, f"{self.file}: axes.dataset")
            if loaded.evaluation_only and self.study.kind == "table":
                raise UserError(
                    f"{self.file}: axes.dataset: {dataset} is for evaluation only: it has no training split"
                )
        for target in self.axes.get("target", []):
            self.settings.dataset(target, f"{self.file}: axes.target")
        for method in [*self.axes.get("method", []), *self.study.methods]:
            self.settings.check_method(method, f"{self.file}: axes.method")
            if method == BASE:
                raise UserError(
                    f"{self.file}: axes.method: {BASE!r} is no method to tune with: set include_base: true"
                )
        for axes in self.grids:
            for axis in axes.keys() - COORDINATES.keys():
                self._check_setting(axis, axes.get("method", []))
        for key in [self.study.columns, *self.study.rows]:
            valid = {*self.axes, *COORDINATES, *DERIVED}
            if key not in valid:
                raise UserError(
                    f"{self.file}: columns and rows: unknown axis {key!r}{did_you_mean(key, valid)}"
                )
        for row in self.study.rows:
            if [*self.study.rows, self.study.columns].count(row) > 1:
                raise UserError(f"{self.file}: columns and rows: {row!r} stands there twice")
        for position, entry in enumerate(self.study.exclude):
            for method in _listed(entry.get("method", [])):
                self.settings.check_method(method, f"{self.file}: exclude[{position}].method")
            for axis in entry:
                if axis not in self.axes:
                    raise UserError(
                        f"{self.file}: exclude[{position}]: {axis!r} is no axis of this study"
                        f"{did_you_mean(axis, self.axes)}"
                    )

    def _check_setting(self, axis: str, methods: list[Any]) -> None:
        """A further axis is a key of ``training``, or a setting of the methods that it is for."""
        where = f"{self.file}: axes.{axis}"
        owner, _, key = axis.rpartition(".")
        if not owner and axis in _TRAINING:
            return
        if owner and owner not in methods:
            raise UserError(f"{where}: {owner!r} is no method of this study{did_you_mean(owner, methods)}")
        for method in [owner] if owner else methods:
            fields = method_module(method).Config.__struct_fields__
            if key not in fields:
                valid = [*COORDINATES, *_TRAINING, *fields]
                hint = did_you_mean(key, valid)
                raise UserError(
                    f"{where}: neither an axis, nor a training setting, nor a setting of {method}{hint}"
                )

    def _excluded(self, point: dict[str, Any]) -> bool:
        return any(
            all(self._matches(point, axis, value) for axis, value in entry.items())
            for entry in self.study.exclude
        )

    def _matches(self, point: dict[str, Any], axis: str, wanted: Any) -> bool:
        if axis == "target" and wanted == SAME:
            return bool(point["target"] == point["dataset"])
        values = _listed(wanted)
        if axis in ("model", "dataset", "target"):
            values = [self.settings.stand_in(value) for value in values]
        return point.get(axis) in values


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def method_module(method: str) -> ModuleType:
    """The module of a method; it imports nothing heavy at its top level."""
    try:
        return import_module(f"peftbench.methods.{method}")
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: syntax error: {error.msg}") from None


def optim_of(run: Run, learning_rate: float) -> Optim:
    """The optimiser of a run.

    The connector's learning rate, which is the vision tower's too, counts only where one of them is tuned.
    """
    training = {name: getattr(run.training, name) for name in _OPTIM if name in _TRAINING}
    if run.connector == run.vision == "frozen":
        training["connector_learning_rate"] = 0.0
    return Optim(learning_rate=learning_rate, **training)
