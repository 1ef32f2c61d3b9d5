"""Tiny random checkpoints in the layouts of the real repositories, one for every file of ``config/models``.

``write_repo(name, root)`` writes what the model file's ``from:`` names into ``<root>/models/<owner>/<repo>``, as the
loopback hub serves it: key names, configuration files, class names and special tokens are those of the hub, sizes are
not. Weights are random but large enough that everything shows in the logits.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import yaml

import zoo_families as families
from peftbench.spec import ModelNames
from zoo_parts import edit

CONFIG = Path(__file__).parent.parent / "config" / "models"
Writer = Callable[[dict[str, Path]], None]


# --- model files


@functools.cache
def model_file(name: str) -> dict[str, Any]:
    """A file of ``config/models``, merged over the one that it extends."""
    content: dict[str, Any] = yaml.safe_load((CONFIG / f"{name}.yaml").read_text(encoding="utf-8"))
    if "extends" in content:
        above = dict(model_file(content["extends"]))
        for key, value in content.items():
            merge = isinstance(value, dict) and isinstance(above.get(key), dict) and key != "source"
            above[key] = {**above[key], **value} if merge else value
        return above
    return content


def model_names(name: str) -> ModelNames:
    """The ``names:`` block of a model file."""
    return msgspec.convert(model_file(name)["names"], ModelNames)


def source(name: str) -> dict[str, Any]:
    """The ``source:`` block as a source module sees it."""
    block = dict(model_file(name)["source"])
    block["from"] = sorted(block["from"])
    # Limits of the picture's size are for real ones: the tiny repositories have their own.
    block["image_processor"] = {k: v for k, v in block.get("image_processor", {}).items() if k != "size"}
    if not block["image_processor"]:
        del block["image_processor"]
    return block


def repositories(name: str) -> dict[str, str]:
    """Origin -> repository on the hub."""
    return {origin: entry["hub"] for origin, entry in model_file(name)["source"]["from"].items()}


def write_repo(name: str, root: Path) -> None:
    """Write the repositories of one model file below ``root``; those that are there already are kept."""
    folders = {origin: root / "models" / repo for origin, repo in repositories(name).items()}
    if all((folder / "written").is_file() for folder in folders.values()):
        return
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    WRITERS[name](folders)


def retrieved(name: str, root: Path) -> dict[str, Path]:
    """Origin -> folder below ``root`` with the repository's files and a record, as a retrieval leaves it."""
    write_repo(name, root)
    folders = {}
    for origin, repo in repositories(name).items():
        folder = root / "retrieved" / repo.replace("/", "--")
        if not folder.is_dir():
            shutil.copytree(root / "models" / repo, folder, copy_function=os.link)
            edit(folder / "record.json", stage="retrieve", spec={"hub": repo})
        folders[origin] = folder
    return folders


WRITERS: dict[str, Writer] = {
    "llava-1.5-7b": families.llava,
    "llava-1.5-13b": functools.partial(families.llava, hidden=40),
    "llava-next-7b": families.llava_next,
    "sharegpt4v-7b": families.sharegpt4v,
    "qwen2.5-vl-3b": functools.partial(families.qwen2_vl_family, three=False),
    "qwen3-vl-2b": functools.partial(families.qwen2_vl_family, three=True),
    "llava-onevision-0.5b": families.onevision,
    "internvl3-1b": families.internvl,
    "smolvlm2-500m": families.smolvlm,
    "gemma3-4b": families.gemma3,
    "paligemma2-3b": families.paligemma2,
    "qwen-vl-chat": families.qwen_vl,
    "qwen-vl-chat-as_coded": families.qwen_vl,
}
