"""Pinning: a configuration file's branches and tags become the commits that they stand for now."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import yaml

from peftbench.errors import UserError
from peftbench.store import atomic_bytes

FINGERPRINT_EXEMPT = "edits the configuration; what it writes there counts by itself"
Resolve = Callable[[str, Literal["model", "dataset"], str], str]
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO_TYPES: dict[str, Literal["model", "dataset"]] = {"models": "model", "datasets": "dataset"}


def pin_file(path: Path, resolve: Resolve | None = None) -> list[str]:
    """Replace each ``revision:`` of a hub repository in a model's or data set's file by the commit it stands for.

    All other bytes stay as they are. What is a commit already stays, so write the branch again to pin anew.
    Returns one line for each origin. ``resolve(repo, repo_type, revision)`` asks the hub unless given.
    ``UserError`` where the file cannot be read or the hub does not answer; the file is then unchanged.
    """
    repo_type = _REPO_TYPES.get(path.resolve().parent.name)
    if repo_type is None:
        raise UserError(f"{path}: neither in config/models nor in config/datasets: nothing to pin")
    try:
        text = path.read_bytes().decode()
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if resolve is None:
        from peftbench.retrieve.hub import resolve_revision

        resolve = resolve_revision
    lines, edits = [], {}
    for name, origin in _origins(root):
        entry = {key.value: value for key, value in origin.value if isinstance(key, yaml.ScalarNode)}
        hub, revision = entry.get("hub"), entry.get("revision")
        if not isinstance(hub, yaml.ScalarNode):
            continue
        before = revision.value if isinstance(revision, yaml.ScalarNode) else "main"
        if _COMMIT.fullmatch(before):
            lines.append(f"{path}: {name}: {hub.value} stays at {before}")
            continue
        commit = resolve(hub.value, repo_type, before)
        lines.append(f"{path}: {name}: {hub.value}: {before} -> {commit}")
        place, replacement = _edit(text, origin, hub, revision, commit)
        edits[place] = replacement
    for (start, end), replacement in sorted(edits.items(), reverse=True):
        text = text[:start] + replacement + text[end:]
    if edits:
        atomic_bytes(path, text.encode())
    return lines


def _origins(root: yaml.Node | None) -> Iterator[tuple[str, yaml.MappingNode]]:
    """The entries of ``source: {from: ...}``."""
    block = _child(_child(root, "source"), "from")
    if isinstance(block, yaml.MappingNode):
        for key, value in block.value:
            if isinstance(value, yaml.MappingNode):
                yield str(key.value), value


def _child(node: yaml.Node | None, name: str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == name:
                return value
    return None


def _edit(
    text: str, origin: yaml.MappingNode, hub: yaml.ScalarNode, revision: yaml.Node | None, commit: str
) -> tuple[tuple[int, int], str]:
    """Where to put the commit (first and last index of what it replaces), and the text to put there."""
    if revision is not None:
        place = revision.start_mark.index, revision.end_mark.index
        return place, commit if place[0] < place[1] else f" {commit}"  # "revision:" with nothing behind it
    end = hub.end_mark.index
    if origin.flow_style:
        return (end, end), f", revision: {commit}"
    line_end = text.find("\n", end)
    newline = "\r\n" if line_end > 0 and text[line_end - 1] == "\r" else "\n"
    indent = " " * origin.value[0][0].start_mark.column
    if line_end < 0:
        return (len(text), len(text)), f"{newline}{indent}revision: {commit}"
    return (line_end + 1, line_end + 1), f"{indent}revision: {commit}{newline}"
