"""Weights on disk: reading the files of a hub folder tensor by tensor, and writing safetensors shard by shard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError
from peftbench.store import link_or_copy

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 4 * 2**30
"""Largest shard that is written, and so about the most memory that converting takes."""
_FORMS = (
    ("model.safetensors.index.json", "*.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model*.bin"),
)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, in order: safetensors if there are any, else PyTorch's.

    Raises ``UserError`` where there are none, or fewer than the index lists.
    """
    for index_name, pattern in _FORMS:
        index = folder / index_name
        if index.is_file():
            names = _indexed(index)
        else:
            names = sorted(path.name for path in folder.glob(pattern))
        if not names:
            continue
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UserError(
                f"base model: {index} lists {missing[0]}, which is not there: see 'files' of its origin"
            )
        return [folder / name for name in names]
    raise UserError(f"base model: {folder} holds no weights (*.safetensors or pytorch_model*.bin)")


def _indexed(index: Path) -> list[str]:
    """The files that an index lists; ``UserError`` where it is none, or names a file elsewhere."""
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"base model: {index}: not an index of weights ({error}): fetch it again") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"base model: {index} lists {name!r}, which is no file beside it: do not use it")
    return names


def read_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of all weights, file by file and mapped rather than read where the format allows it.

    No code of a pickle is run. Raises ``UserError`` for damaged files.
    """
    import pickle

    import torch
    from safetensors import SafetensorError, safe_open

    for path in weight_files(folder):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 - no mapping
                        yield name, file.get_tensor(name)
            else:
                yield from torch.load(path, map_location="cpu", weights_only=True, mmap=True).items()
        except (SafetensorError, OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            line = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: cannot be read as weights ({line}): fetch it again") from None


def link_weights(folder: Path, out_dir: Path) -> dict[str, int]:
    """Give ``out_dir`` the weights of ``folder``, as hard links where the disk allows it; sizes by name.

    Weights in PyTorch's pickles are written anew as safetensors.
    """
    files = weight_files(folder)
    if files[0].suffix != ".safetensors":
        with ShardWriter(out_dir) as writer:
            for name, tensor in read_weights(folder):
                writer.add(name, tensor)
        return writer.sizes
    index = folder / _FORMS[0][0]
    for path in [*files, index] if index.is_file() else files:
        link_or_copy(path, out_dir / path.name)
    return {path.name: path.stat().st_size for path in files}


class ShardWriter:
    """Writes tensors as they come into files of at most about ``SHARD_BYTES``; used as a context manager."""

    def __init__(self, folder: Path, limit: int = SHARD_BYTES) -> None:
        self.folder, self.limit = folder, limit
        self.pending: dict[str, torch.Tensor] = {}
        self.bytes = 0
        self.shards: list[list[str]] = []
        self.total = 0
        self.sizes: dict[str, int] = {}

    def __enter__(self) -> ShardWriter:
        return self

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take one tensor; ``UserError`` if its name came before."""
        if name in self.pending or any(name in shard for shard in self.shards):
            raise UserError(f"base model: two weights are called {name}")
        size = tensor.numel() * tensor.element_size()
        if self.pending and self.bytes + size > self.limit:
            self._flush()
        self.pending[name] = tensor.detach().contiguous().clone() if _shares(tensor) else tensor.contiguous()
        self.bytes += size
        self.total += size

    def _flush(self) -> None:
        from safetensors.torch import save_file

        save_file(self.pending, self.folder / f"shard-{len(self.shards)}.part", metadata={"format": "pt"})
        self.shards.append(list(self.pending))
        self.pending, self.bytes = {}, 0

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is not None:
            return
        self._flush()
        count = len(self.shards)
        names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        if count == 1:
            names = ["model.safetensors"]
        for i, name in enumerate(names):
            (self.folder / f"shard-{i}.part").rename(self.folder / name)
            self.sizes[name] = (self.folder / name).stat().st_size
        if count > 1:
            places = {key: names[i] for i, shard in enumerate(self.shards) for key in shard}
            index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(places.items()))}
            (self.folder / _FORMS[0][0]).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shares(tensor: torch.Tensor) -> bool:
    """Whether the tensor is a part of a larger storage, which safetensors refuses to guess about."""
    return tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
