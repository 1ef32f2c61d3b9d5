"""Reading configuration files as types: every mistake is one line with file, key and the nearest valid name."""

import functools
import math
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from peftbench.errors import UserError, did_you_mean

T = TypeVar("T", bound=msgspec.Struct)
MOST_VALUES = 1_000_000
"""Values in one file, aliases written out: more are a mistake, or somebody's joke."""
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")


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
        content = yaml.load(read_text(path), Loader=_StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}{where}: not valid YAML: {problem}") from None
    except ValueError as error:  # a number of thousands of digits, the 45th of May
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid YAML: nested too deeply") from None
    if _too_many(content):
        raise UserError(f"{path}: more than {MOST_VALUES:,} values: aliases (*name) that hold each other?")
    return content


def read_mapping(path: Path) -> dict[str, Any]:
    """Content of a YAML file that holds keys with values, or nothing; ``UserError`` for anything else."""
    content = read_yaml(path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys with values, got {type(content).__name__}")
    return content


def read_text(path: Path) -> str:
    """A text file; ``UserError`` where it is not there, cannot be read, or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text: save it as UTF-8") from None


def _too_many(content: Any) -> bool:
    waiting, seen = [content], 0
    while waiting:
        value = waiting.pop()
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        seen += len(inner)
        if seen > MOST_VALUES:
            return True
        waiting.extend(inner)
    return False


def typed(data: Any, kind: type[T], file: str, prefix: str = "") -> T:
    """Plain data as a struct; ``UserError`` of one line with file and key where it does not fit.

    Numbers have to be finite: nothing here means anything with NaN or infinity.
    """
    _check_keys(data, kind, file, prefix)
    try:
        found = msgspec.convert(data, kind, strict=False)
    except msgspec.ValidationError as error:
        raise UserError(f"{file}: {_in_words(str(error), data, kind, prefix)}") from None
    for key, number in _numbers(msgspec.to_builtins(found, str_keys=True), prefix):
        if not math.isfinite(number):
            raise UserError(f"{file}: {key}: {number} is no number to compute with: give a finite one")
    return found


def check_part(what: str, name: str, folder: Path, pattern: str, where: str) -> None:
    """``UserError`` unless ``folder`` has a file of that name, with the suffix of ``pattern`` (``*.py``)."""
    if name not in (names := part_names(folder, pattern)):
        raise UserError(f"{where}: unknown {what} {name!r}{did_you_mean(name, names)}")


@functools.cache
def part_names(folder: Path, pattern: str) -> tuple[str, ...]:
    """Names of the parts in a folder: its files without suffix, those that begin with ``_`` left out."""
    return tuple(sorted(path.stem for path in folder.glob(pattern) if not path.name.startswith("_")))


def _numbers(value: Any, key: str) -> Iterator[tuple[str, float]]:
    """All floats in plain data, with their keys."""
    if isinstance(value, float):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _numbers(inner, f"{key}[{number}]")


def _in_words(error: str, data: Any, kind: Any, prefix: str) -> str:
    """msgspec's message with the whole key before it, and behind it what it leaves out.

    That is the number that was given, or the nearest of the words that are possible. Texts are not repeated: one may
    be a secret in the wrong place.
    """
    message, _, place = error.partition(" - at `")
    of_key, _, where = place.rpartition("$")
    key, value = prefix, data
    for name, number in _STEP.findall(where.rstrip("`")):
        if number == "...":  # some key of a mapping: which one is not told
            kind = _value_kind(kind)
            name = next((str(k) for k, v in value.items() if not _fits(v, kind)), "")
            value = value.get(name)
        elif name:
            value, kind = value[name], _below(kind, name)
        else:
            value, kind, key = value[int(number)], _item(kind), f"{key}[{number}]"
        key = f"{key}.{name}" if key and name else name or key
    message = f"{message[0].lower()}{message[1:]}"
    if "matching regex" in message:
        what = "a name of each key" if of_key else "a name"
        message = f"expected {what}, of letters, digits, dots, underscores and hyphens"
    allowed = _words(kind)
    if allowed and isinstance(value, str):
        message += did_you_mean(value, allowed)
    elif isinstance(value, int | float) and "got" not in message:
        message += f", got {value!r}"
    return f"{key or 'top level'}: {message}"


def _fits(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError:
        return False
    return True


def _value_kind(kind: Any) -> Any:
    mappings = [k for k in (kind, *typing.get_args(kind)) if typing.get_origin(k) is dict]
    return typing.get_args(mappings[0])[1] if mappings else Any


def _below(kind: Any, name: str) -> Any:
    inner = _struct_of(kind)
    return _hints(inner).get(name) if inner else None


def _item(kind: Any) -> Any:
    parts = (kind, *typing.get_args(kind)) if kind is not None else ()
    lists = [k for k in parts if typing.get_origin(k) is list]
    return typing.get_args(lists[0])[0] if lists else None


def _words(kind: Any) -> list[str]:
    """The texts that a type allows, where it allows only some."""
    parts = (kind, *typing.get_args(kind)) if kind is not None else ()
    return [
        word
        for part in parts
        if typing.get_origin(part) is typing.Literal
        for word in typing.get_args(part)
        if isinstance(word, str) and word
    ]


def _check_keys(data: Any, kind: type[msgspec.Struct], file: str, prefix: str, whole: bool = True) -> None:
    where = f"{file}: {prefix}: " if prefix else f"{file}: "
    if not isinstance(data, dict):
        raise UserError(f"{where}expected keys with values, got {type(data).__name__}")
    hints = _hints(kind)
    for key in data:
        if key not in hints:
            raise UserError(f"{where}unknown key {key!r}{did_you_mean(key, hints)}")
    for name in _required(kind) if whole else ():
        if name not in data:
            raise UserError(f"{where}key {name!r} is missing")
    for key, value in data.items():
        inner = _struct_of(hints[key])
        if inner is not None and value is not None:
            _check_keys(value, inner, file, f"{prefix}.{key}" if prefix else str(key), whole)


def check_keys(data: Any, kind: type[msgspec.Struct], file: str, prefix: str) -> None:
    """``UserError`` where data that changes a struct, key by key, names a key that it does not have."""
    _check_keys(data, kind, file, prefix, whole=False)


@functools.cache
def _hints(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


@functools.cache
def _required(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    return tuple(field.name for field in msgspec.structs.fields(kind) if field.required)


def _struct_of(hint: Any) -> type[msgspec.Struct] | None:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    found = [o for o in options if isinstance(o, type) and issubclass(o, msgspec.Struct)]
    return found[0] if found else None


def merge(into: dict[str, Any], overlay: dict[str, Any]) -> None:
    """Update nested mappings as Snakemake merges configuration files: mappings merge, all else replaces."""
    for key, value in overlay.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value
