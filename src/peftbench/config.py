"""Reading the configuration: typed, every mistake named in one line by file, key and nearest valid name."""

import copy
import functools
import re
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from peftbench.config_types import DatasetConfig, MainConfig, ModelConfig, StudyConfig
from peftbench.errors import UserError, did_you_mean

T = TypeVar("T", bound=msgspec.Struct)
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _StrictLoader(_Loader):
    """YAML with two repairs: a repeated key is an error, and 2e-4 is a number (YAML 1.1 wants 2.0e-4)."""


def _mapping(loader: Any, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, str | int):
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} twice", key_node.start_mark)
            seen.add(key)
    loader.flatten_mapping(node)
    return _Loader.construct_mapping(loader, node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: Path) -> Any:
    """Content of a YAML file; ``UserError`` with file and line where it cannot be read."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}{where}: not valid YAML: {problem}") from None


def typed(data: Any, kind: type[T], file: str, prefix: str = "") -> T:
    """Plain data as a struct; ``UserError`` of one line with file and key where it does not fit."""
    _check_keys(data, kind, file, prefix)
    try:
        return msgspec.convert(data, kind, strict=False)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$")
        key = ".".join(part for part in (prefix, where.rstrip("`").lstrip(".")) if part)
        raise UserError(f"{file}: {key or 'top level'}: {message[0].lower()}{message[1:]}") from None


def _check_keys(data: Any, kind: type[msgspec.Struct], file: str, prefix: str) -> None:
    where = f"{file}: {prefix}: " if prefix else f"{file}: "
    if not isinstance(data, dict):
        raise UserError(f"{where}expected keys with values, got {type(data).__name__}")
    hints = _hints(kind)
    for key in data:
        if key not in hints:
            raise UserError(f"{where}unknown key {key!r}{did_you_mean(key, hints)}")
    for name in _required(kind):
        if name not in data:
            raise UserError(f"{where}key {name!r} is missing")
    for key, value in data.items():
        inner = _struct_of(hints[key])
        if inner is not None and value is not None:
            _check_keys(value, inner, file, f"{prefix}.{key}" if prefix else str(key))


@functools.cache
def _hints(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


@functools.cache
def _required(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    return tuple(field.name for field in msgspec.structs.fields(kind) if field.required)


def _struct_of(hint: Any) -> type[msgspec.Struct] | None:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    found = [o for o in options if isinstance(o, type) and issubclass(o, msgspec.Struct)]
    return found[0] if found else None


class Settings:
    """All configuration of one workflow: the merged ``config.yaml``, and the files it refers to."""

    def __init__(self, config: dict[str, Any], root: Path) -> None:
        """``config`` is ``config/config.yaml`` with overlays merged, ``root`` the folder of ``config/``."""
        self.root = root
        self.main = typed(config, MainConfig, "config/config.yaml (with overlays)")
        self._unique(self.main.lineup.models, "lineup.models")
        self._unique(self.main.lineup.datasets, "lineup.datasets")
        self._unique(self.main.studies, "studies")
        self._unique(self.main.seeds, "seeds")
        for name in self.main.lineup.models:
            self._known("model", name, "config/config.yaml: lineup.models")
        for name in self.main.lineup.datasets:
            self._known("dataset", name, "config/config.yaml: lineup.datasets")
        for name in self.main.studies:
            self._known("study", name, "config/config.yaml: studies")
        for name in self.main.methods:
            self.check_method(name, "config/config.yaml: methods")
        for name in self.main.reduce:
            self._known("study", name, "config/config.yaml: reduce")
        known = [*self.names("model"), *self.names("dataset")]
        for name, other in self.main.stand_ins.items():
            for used in (name, other):
                if used not in known:
                    raise UserError(
                        f"config/config.yaml: stand_ins: no model or data set {used!r}{did_you_mean(used, known)}"
                    )

    @classmethod
    def from_files(cls, root: Path, overlays: Iterable[Path] = ()) -> "Settings":
        """The settings as ``snakemake --configfile overlays`` would see them."""
        merged = read_yaml(root / "config/config.yaml") or {}
        for overlay in overlays:
            merge(merged, read_yaml(overlay) or {})
        return cls(merged, root)

    def names(self, kind: str) -> list[str]:
        """Names of all models, datasets or studies that have a file."""
        return sorted(path.stem for path in (self.root / "config" / _FOLDERS[kind]).glob("*.yaml"))

    def model(self, name: str, where: str) -> ModelConfig:
        """A model's file; ``where`` says who asks."""
        loaded = self._file("model", name, ModelConfig, where)
        for method in loaded.methods:
            self.check_method(method, f"config/models/{name}.yaml: methods")
        return loaded

    def base_of(self, name: str, where: str = "a study") -> str:
        """The model whose folder on disk a model is: its own, or that of the one it extends."""
        self._known("model", name, where)
        self._check_circle("model", name)
        while True:
            content = self._content("model", name, where)
            if "source" in content or not content.get("extends"):
                return name
            name = content["extends"]

    def dataset(self, name: str, where: str) -> DatasetConfig:
        """A data set's file; ``where`` says who asks."""
        loaded = self._file("dataset", name, DatasetConfig, where)
        self._module("metric", loaded.metric.name, f"config/datasets/{name}.yaml: metric.name")
        wanted = {"test"} if loaded.evaluation_only else {"train", "test"}
        if missing := wanted - loaded.splits.keys():
            raise UserError(f"config/datasets/{name}.yaml: splits: key {min(missing)!r} is missing")
        if loaded.evaluation_only and "train" in loaded.splits:
            raise UserError(f"config/datasets/{name}.yaml: evaluation_only, and yet it has a split 'train'")
        return loaded

    def study(self, name: str, where: str = "the command line") -> StudyConfig:
        """A study's file; ``where`` says who asks."""
        return self._file("study", name, StudyConfig, where)

    def stand_in(self, name: str) -> str:
        """What is used in the place of a model or data set; itself where nothing is."""
        return self.main.stand_ins.get(name, name)

    def check_method(self, name: str, where: str) -> None:
        """``UserError`` unless ``peftbench.methods`` has that method."""
        self._module("method", name, where)

    @functools.cached_property
    def _loaded(self) -> dict[tuple[str, str], Any]:
        return {}

    @functools.cached_property
    def _contents(self) -> dict[tuple[str, str], dict[str, Any]]:
        return {}

    def _file(self, kind: str, name: str, type_: type[T], where: str) -> T:
        if (kind, name) not in self._loaded:
            content = self._whole(kind, name, where)
            self._loaded[kind, name] = typed(content, type_, f"config/{_FOLDERS[kind]}/{name}.yaml")
        return self._loaded[kind, name]

    def _content(self, kind: str, name: str, where: str) -> dict[str, Any]:
        """A file as it is written."""
        if (kind, name) not in self._contents:
            self._known(kind, name, where)
            relative = f"config/{_FOLDERS[kind]}/{name}.yaml"
            content = read_yaml(self.root / relative)
            if not isinstance(content, dict):
                raise UserError(f"{relative}: expected keys with values, got {type(content).__name__}")
            self._contents[kind, name] = content
        return self._contents[kind, name]

    def _whole(self, kind: str, name: str, where: str) -> dict[str, Any]:
        """A file merged over the one that it extends; a source is never merged but taken whole."""
        whole = content = self._content(kind, name, where)
        above = content.get("extends") if kind in ("model", "study") else None
        if above:
            self._check_circle(kind, name)
            file = f"config/{_FOLDERS[kind]}/{name}.yaml"
            whole = copy.deepcopy(self._whole(kind, above, f"{file}: extends"))
            if "source" in content:
                del whole["source"]
            merge(whole, content)
        if kind == "study" and name in self.main.reduce:
            whole = copy.deepcopy(whole)
            merge(whole, self.main.reduce[name])
        return whole

    def _check_circle(self, kind: str, name: str) -> None:
        seen, above = [name], self._content(kind, name, name).get("extends")
        while above:
            where = f"config/{_FOLDERS[kind]}/{seen[-1]}.yaml: extends"
            if above in seen:
                raise UserError(f"{where}: {' extends '.join([*seen, above])}: break the circle")
            seen.append(above)
            above = self._content(kind, above, where).get("extends")

    def _known(self, kind: str, name: str, where: str) -> None:
        names = self.names(kind)
        if name not in names:
            raise UserError(f"{where}: unknown {_WORDS[kind]} {name!r}{did_you_mean(name, names)}")

    def _module(self, kind: str, name: str, where: str) -> None:
        if not is_module(kind, name):
            raise UserError(f"{where}: unknown {kind} {name!r}{did_you_mean(name, module_names(kind))}")

    def _unique(self, values: list[Any], key: str) -> None:
        for value in values:
            if values.count(value) > 1:
                raise UserError(f"config/config.yaml: {key}: {value!r} stands there twice")


_FOLDERS = {"model": "models", "dataset": "datasets", "study": "studies"}
_WORDS = {"model": "model", "dataset": "data set", "study": "study"}
_DECLARES = {"method": "Config", "metric": "score"}


def module_names(kind: str) -> tuple[str, ...]:
    """Names of all methods or metrics: those modules of their package that define ``Config`` or ``score``.

    They are read, not imported: metrics may need heavy packages.
    """
    folder = Path(__file__).parent / f"{kind}s"
    return tuple(path.stem for path in sorted(folder.glob("*.py")) if is_module(kind, path.stem))


@functools.cache
def is_module(kind: str, name: str) -> bool:
    """Whether there is such a method or metric: a file with the definition that makes it one.

    Read as text, which is all that every plan can afford; a syntax error is named when its code is fingerprinted.
    """
    path = Path(__file__).parent / f"{kind}s" / f"{name}.py"
    if name.startswith("_") or not path.is_file():
        return False
    return re.search(rf"^(?:class|def) {_DECLARES[kind]}\b", _text(path), re.MULTILINE) is not None


@functools.cache
def needs_judge(metric: str) -> bool:
    """Whether a metric declares ``NEEDS_JUDGE``: it scores what a judge says of the answers."""
    path = Path(__file__).parent / "metrics" / f"{metric}.py"
    return re.search(r"^NEEDS_JUDGE\b", _text(path), re.MULTILINE) is not None


@functools.cache
def describes_data(kind: str) -> bool:
    """Whether a kind of describing table declares ``NEEDS = "data"``: it reads the prepared data sets."""
    path = Path(__file__).parent / "analysis/descriptions" / f"{kind}.py"
    return re.search(r'^NEEDS = "data"$', _text(path), re.MULTILINE) is not None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def merge(into: dict[str, Any], overlay: dict[str, Any]) -> None:
    """Update nested mappings as Snakemake merges configuration files: mappings merge, all else replaces."""
    for key, value in overlay.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value
