"""Weights of the base model that a run changed, as one file that belongs to that base model alone.

The file (safetensors) holds the new values in fp32, the type that they are trained in, under the base model's own
names. Differences to the base would not do: ``base + (new - base)`` is rounded twice and in general not ``new``, while
new values come back to the bit. What ties the file to its base is the sha256 of the base tensors that the run replaced,
the tuned connector's and tower's too; loading compares it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError

if TYPE_CHECKING:
    import torch

DELTA_FILE = "delta.safetensors"
FORM = "new values, fp32"
KEY = "delta"
"""Of the file's metadata."""


def base_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over the names, shapes and values (as fp32) of tensors, in the order of their names."""
    import torch

    total = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().float().cpu().contiguous()
        total.update(f"{name} {tuple(values.shape)}\n".encode())
        total.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def write_delta(path: Path, weights: dict[str, torch.Tensor], base: str, base_name: str) -> None:
    """Write new values; ``base`` is the hash of what they replace, ``base_name`` says it to people."""
    from safetensors.torch import save_file

    said = {"form": FORM, "base_sha256": base, "base": base_name}
    # One entry: safetensors writes several in an order that differs from run to run, and equal files shall be equal.
    save_file(weights, path, metadata={KEY: json.dumps(said, sort_keys=True)})


def check_base(path: Path, base: str) -> None:
    """``UserError`` where the file belongs to other base tensors than those with this hash."""
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        text = (file.metadata() or {}).get(KEY, "{}")
    metadata: dict[str, Any] = json.loads(text)
    if metadata.get("form") != FORM or "base_sha256" not in metadata:
        raise UserError(
            f"{path}: not the weights of a method that trains the base model: train this run again"
        )
    if metadata["base_sha256"] != base:
        raise UserError(
            f"{path}: made for another base model ({metadata.get('base', '')}, sha256 of the replaced tensors "
            f"{metadata['base_sha256'][:12]}; here it is {base[:12]}): load it onto the model it was trained from"
        )
