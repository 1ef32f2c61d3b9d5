"""The configuration of one workflow: the merged ``config.yaml``, the files that it refers to, and what they name."""

import ast
import copy
import functools
import re
import string
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from peftbench.addresses import refuse_secrets
from peftbench.config_types import DatasetConfig, Identity, MainConfig, Metric, ModelConfig, StudyConfig
from peftbench.errors import UserError, did_you_mean
from peftbench.fingerprint import is_installed
from peftbench.reading import check_keys, check_part, merge, part_names, read_mapping, read_yaml, typed

__all__ = ["Settings", "merge", "read_yaml", "typed"]

T = TypeVar("T", bound=msgspec.Struct)
PACKAGE = Path(__file__).parent
STUDY_NAME = re.compile(r"[a-z][a-z0-9_]*")
PLACES = ("question", "choices", "lettered")
"""What a template of a prompt can ask for."""


class Settings:
    """All configuration of one workflow: the merged ``config.yaml``, and the files it refers to."""

    def __init__(self, config: dict[str, Any], root: Path) -> None:
        """``config`` is ``config/config.yaml`` with overlays merged, ``root`` the folder of ``config/``."""
        self.root = root
        self.main = typed(config, MainConfig, "config/config.yaml (with overlays)")
        for package in self.main.identity.packages:
            if package not in Identity().packages and not is_installed(package):
                known = Identity().packages
                raise UserError(
                    f"config/config.yaml: identity.packages: no package {package!r} is installed"
                    f"{did_you_mean(package, known)}"
                )
        for prefix, mirror in self.main.execution.mirrors.items():
            for address in (prefix, mirror):
                refuse_secrets(address, "config/config.yaml: execution.mirrors")
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
        for name, changes in self.main.reduce.items():
            self._known("study", name, "config/config.yaml: reduce")
            check_keys(changes, StudyConfig, "config/config.yaml", f"reduce.{name}")
        self._check_stand_ins()

    @classmethod
    def from_files(cls, root: Path, overlays: Iterable[Path] = ()) -> "Settings":
        """The settings as ``snakemake --configfile overlays`` would see them."""
        merged = read_mapping(root / "config/config.yaml")
        for overlay in overlays:
            merge(merged, read_mapping(overlay))
        return cls(merged, root)

    def names(self, kind: str) -> list[str]:
        """Names of all models, datasets or studies that have a file."""
        return sorted(path.stem for path in (self.root / "config" / _FOLDERS[kind]).glob("*.yaml"))

    def model(self, name: str, where: str) -> ModelConfig:
        """A model's file; ``where`` says who asks."""
        return self._file("model", name, ModelConfig, where, self._check_model)

    def _check_model(self, loaded: ModelConfig, file: str) -> None:
        for method in loaded.methods:
            self.check_method(method, f"{file}: methods")
        names = loaded.names
        check_part(
            "template", names.template, PACKAGE / "models/templates", "*.jinja", f"{file}: names.template"
        )
        if names.code:
            check_part("model code", names.code, PACKAGE / "models", "*", f"{file}: names.code")
        if loaded.architecture:
            folder = self.root / "config/architectures"
            check_part("architecture", loaded.architecture, folder, "*.json", f"{file}: architecture")
        try:
            re.compile(names.layers)
        except re.error as error:
            raise UserError(f"{file}: names.layers: no regular expression: {error}") from None

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
        return self._file("dataset", name, DatasetConfig, where, self._check_dataset)

    def _check_dataset(self, loaded: DatasetConfig, file: str) -> None:
        self._check_metric(loaded.metric, f"{file}: metric")
        for number, template in enumerate(loaded.prompt.templates):
            _check_template(template, f"{file}: prompt.templates[{number}]")
        wanted = {"test"} if loaded.evaluation_only else {"train", "test"}
        if missing := wanted - loaded.splits.keys():
            raise UserError(f"{file}: splits: key {min(missing)!r} is missing")
        if loaded.evaluation_only and "train" in loaded.splits:
            raise UserError(f"{file}: evaluation_only, and yet it has a split 'train'")

    def study(self, name: str, where: str = "the command line") -> StudyConfig:
        """A study's file; ``where`` says who asks."""
        return self._file("study", name, StudyConfig, where, self._check_study)

    def _check_study(self, loaded: StudyConfig, file: str) -> None:
        if not STUDY_NAME.fullmatch(Path(file).stem):
            raise UserError(
                f"{file}: a study's name is a target, of lower-case letters, digits and underscores: rename the file"
            )
        if loaded.metric is not None:
            self._check_metric(loaded.metric, f"{file}: metric")
        kinds = ("table", *part_names(PACKAGE / "analysis/descriptions", "*.py"))
        if loaded.kind not in kinds:
            raise UserError(f"{file}: kind: unknown kind {loaded.kind!r}{did_you_mean(loaded.kind, kinds)}")
        check_part("figure", loaded.figure, PACKAGE / "analysis/figures", "*.py", f"{file}: figure")

    def stand_in(self, name: str) -> str:
        """What is used in the place of a model or data set; itself where nothing is."""
        return self.main.stand_ins.get(name, name)

    def check_method(self, name: str, where: str) -> None:
        """``UserError`` unless ``peftbench.methods`` has that method."""
        self._module("method", name, where)

    def _check_stand_ins(self) -> None:
        """What stands in for a model is a model; the replaced one need not have a file any more, but a name."""
        kinds = {name: kind for kind in ("model", "dataset") for name in self.names(kind)}
        for name, other in self.main.stand_ins.items():
            for used in (name, other):
                if used not in kinds:
                    raise UserError(
                        f"config/config.yaml: stand_ins: no model or data set {used!r}{did_you_mean(used, kinds)}"
                    )
            if kinds[name] != kinds[other]:
                raise UserError(
                    f"config/config.yaml: stand_ins: {name} is a {_WORDS[kinds[name]]}, {other} a "
                    f"{_WORDS[kinds[other]]}: one cannot stand in for the other"
                )

    def _check_metric(self, metric: Metric, where: str) -> None:
        self._module("metric", metric.name, f"{where}.name")
        if metric.settings:
            known = metric_settings(metric.name)
            for key in metric.settings:
                if key not in known:
                    raise UserError(f"{where}.settings: unknown key {key!r}{did_you_mean(key, known)}")

    @functools.cached_property
    def _loaded(self) -> dict[tuple[str, str], Any]:
        return {}

    @functools.cached_property
    def _contents(self) -> dict[tuple[str, str], dict[str, Any]]:
        return {}

    def _file(self, kind: str, name: str, type_: type[T], where: str, check: Callable[[T, str], None]) -> T:
        if (kind, name) not in self._loaded:
            file = f"config/{_FOLDERS[kind]}/{name}.yaml"
            loaded = typed(self._whole(kind, name, where), type_, file)
            check(loaded, file)
            self._loaded[kind, name] = loaded
        found: T = self._loaded[kind, name]
        return found

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
def metric_settings(metric: str) -> tuple[str, ...]:
    """Names of a metric's settings, its own and those that all have; read, not imported."""
    tree = ast.parse(_text(PACKAGE / f"metrics/{metric}.py")), ast.parse(_text(PACKAGE / "metrics/base.py"))
    classes = [node for part in tree for node in part.body if isinstance(node, ast.ClassDef)]
    return tuple(
        field.target.id
        for node in classes
        if node.name in ("Settings", "MetricSettings")
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )


def _check_template(template: str, where: str) -> None:
    """A prompt asks for what there is and nothing else: no attributes, no formats."""
    try:
        places = [(name, form, bang) for _, name, form, bang in string.Formatter().parse(template)]
    except ValueError as error:
        raise UserError(f"{where}: {error}: write {{question}}, and braces that are text twice") from None
    for name, form, bang in places:
        if name is not None and (name not in PLACES or form or bang):
            raise UserError(f"{where}: cannot fill {{{name}}}{did_you_mean(name, PLACES)}")


@functools.cache
def needs_judge(metric: str) -> bool:
    """Whether a metric declares ``NEEDS_JUDGE``: it scores what a judge says of the answers."""
    path = Path(__file__).parent / "metrics" / f"{metric}.py"
    return re.search(r"^NEEDS_JUDGE\b", _text(path), re.MULTILINE) is not None


@functools.cache
def reads_losses(metric: str) -> bool:
    """Whether a metric declares ``NEEDS_LOSSES``: it scores what the model thinks of the reference answers."""
    path = Path(__file__).parent / "metrics" / f"{metric}.py"
    return re.search(r"^NEEDS_LOSSES\b", _text(path), re.MULTILINE) is not None


@functools.cache
def describes_data(kind: str) -> bool:
    """Whether a kind of describing table declares ``NEEDS = "data"``: it reads the prepared data sets."""
    path = Path(__file__).parent / "analysis/descriptions" / f"{kind}.py"
    return re.search(r'^NEEDS = "data"$', _text(path), re.MULTILINE) is not None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
