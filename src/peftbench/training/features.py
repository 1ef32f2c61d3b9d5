"""Images as the model takes them: preprocessed pixels, or cached features of a frozen vision tower.

The tower is frozen in every run of this benchmark, so its output for an image never changes. With a cache
folder it is computed once per tower, preprocessing and list of images, kept as one safetensors file, and then
the tower inside the model is replaced by a module that hands the stored hidden states on; connector and
language model do not notice. Features are computed in chunks of a fixed size (the last one is filled up), so
that those of an image do not depend on which other images are asked for beyond rounding. Against a live
tower, which sees other batch shapes, results agree within rounding.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from peftbench.errors import UserError
from peftbench.store import atomic_write, locked

if TYPE_CHECKING:
    import torch

    from peftbench.models.load import Base
    from peftbench.spec import Execution, ModelNames

FORMAT = 1
"""Part of a cache file's name; raise it when what is stored changes its meaning."""
CHUNK = 32
"""Images per forward pass of the tower."""


class Images(Protocol):
    """Where a model's images come from."""

    def token_text(self, sha: str) -> str:
        """What the image placeholder becomes in the text."""

    def load(self, sha: str) -> dict[str, torch.Tensor]:
        """The image's tensors as keyword arguments of the model, images along the first dimension."""


class LiveImages:
    """Images preprocessed when they are needed; the vision tower runs with the model."""

    def __init__(self, base: Base, image_store: Path) -> None:
        self.processor = base.processor
        self.accepted = base.accepted
        self.image_store = image_store
        # How the processor calls its image processor: defaults of the family, such as cutting into tiles.
        self.settings = {**getattr(self.processor, "images_kwargs", {}), "return_tensors": "pt"}
        self._constant = self._constant_token_text()

    def _preprocess(self, image: Any) -> dict[str, Any]:
        """All that the image processor gives for one image; ``replace_image_token`` reads it."""
        return dict(self.processor.image_processor(images=[image], **self.settings))

    def _constant_token_text(self) -> str | None:
        """The expansion of the placeholder, if images of different shape share it (no dynamic resolution)."""
        from PIL import Image

        shapes = ((64, 64), (200, 100), (90, 300), (1600, 900))
        texts = {
            self.processor.replace_image_token(self._preprocess(Image.new("RGB", shape)), 0)
            for shape in shapes
        }
        return texts.pop() if len(texts) == 1 else None

    def token_text(self, sha: str) -> str:
        """See ``Images``."""
        if self._constant is not None:
            return self._constant
        return str(self.processor.replace_image_token(self._read(sha), 0))

    def load(self, sha: str) -> dict[str, Any]:
        """See ``Images``; ``UserError`` for a missing or corrupt file."""
        return {key: value for key, value in self._read(sha).items() if key in self.accepted}

    def _read(self, sha: str) -> dict[str, Any]:
        from peftbench.data.load import load_image

        return self._preprocess(load_image(self.image_store, sha))


class CachedImages:
    """Stored hidden states: ``features`` is (images, layers, tokens, width)."""

    def __init__(self, features: torch.Tensor, rows: dict[str, int], token_texts: list[str]) -> None:
        self.features = features
        self.rows = rows
        self.token_texts = token_texts

    def token_text(self, sha: str) -> str:
        """See ``Images``."""
        return self.token_texts[self.rows[sha]]

    def load(self, sha: str) -> dict[str, torch.Tensor]:
        """See ``Images``; the features stand where pixels would."""
        row = self.rows[sha]
        return {"pixel_values": self.features[row : row + 1]}


def cache_folder(execution: Execution) -> Path | None:
    """Where features are kept, or None."""
    return None if execution.cache_dir is None else Path(execution.cache_dir)


def open_images(
    base: Base, names: ModelNames, image_store: Path, shas: Sequence[str], cache_dir: Path | None
) -> tuple[Images, dict[str, Any]]:
    """The images of a job, and facts about the cache for the record.

    ``shas`` are the images that the job may ask for (better: those of the whole split, so that all draws of a
    data set share one file). With a cache, the tower of ``base`` is replaced, in place.
    """
    wanted = sorted({sha for sha in shas if sha})
    if cache_dir is None or not wanted:
        return LiveImages(base, image_store), {"cached": False}
    layers = _feature_layers(base, names)
    path = cache_dir / f"{_key(base, names, layers, wanted)}.safetensors"
    computed = False
    stored = _read(path)
    if stored is None:
        with locked(path.with_suffix(".lock"), lambda who: _say(f"features: waiting for {who}")):
            stored = _read(path)  # another process may have made it meanwhile
            if stored is None:
                _compute(base, names, layers, LiveImages(base, image_store), wanted, path)
                computed, stored = True, _read(path)
    assert stored is not None
    features, token_texts = stored
    replace_tower(base, names, layers)
    rows = {sha: row for row, sha in enumerate(wanted)}
    facts = {"cached": True, "computed": computed, "images": len(wanted), "bytes": path.stat().st_size}
    return CachedImages(features, rows, token_texts), facts


def replace_tower(base: Base, names: ModelNames, layers: list[int]) -> None:
    """Put a module in the tower's place that returns its input as hidden states."""
    import torch
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    class StoredTower(torch.nn.Module):
        """Takes (images, layers, tokens, width) for pixels; gives what LLaVA reads of a tower's output."""

        def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
            states = {layer: pixel_values[:, i] for i, layer in enumerate(layers)}
            return BaseModelOutputWithPooling(last_hidden_state=pixel_values[:, -1], hidden_states=states)

    parent, _, leaf = names.vision[0].rpartition(".")
    setattr(base.model.get_submodule(parent), leaf, StoredTower())


def _feature_layers(base: Base, names: ModelNames) -> list[int]:
    """Which hidden states the model reads; ``UserError`` where that is not known."""
    layer = getattr(base.model.config, "vision_feature_layer", None)
    if layer is None or len(names.vision) != 1:
        raise UserError("model file: cache_vision: only for models with one tower and a vision_feature_layer")
    return [layer] if isinstance(layer, int) else list(layer)


def _key(base: Base, names: ModelNames, layers: list[int], shas: list[str]) -> str:
    """sha256 over all that decides the features: tower weights, preprocessing, layers, images, numerics."""
    import torch

    tower = base.model.get_submodule(names.vision[0])
    digest = hashlib.sha256()
    facts = {
        "format": FORMAT,
        "chunk": CHUNK,
        "torch": torch.__version__,
        "device": str(next(tower.parameters()).device.type),
        "layers": layers,
        "tower": tower.config.to_dict(),
        "preprocessing": base.processor.image_processor.to_dict(),
    }
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    digest.update("\n".join(shas).encode())
    return digest.hexdigest()[:32]


def _read(path: Path) -> tuple[torch.Tensor, list[str]] | None:
    """The stored features, mapped rather than read, or None where there is no good file."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        features = load_file(path)["features"]
        texts = json.loads(metadata["token_texts"])
        return features, [texts["distinct"][i] for i in texts["index"]]
    except (SafetensorError, KeyError, TypeError, ValueError):
        _say(f"features: {path} is damaged: computing it again")
        path.unlink(missing_ok=True)
        return None


def _compute(
    base: Base, names: ModelNames, layers: list[int], live: LiveImages, shas: list[str], path: Path
) -> None:
    """Run the tower over all images and write the file chunk by chunk, never holding all of it."""
    import torch

    tower = base.model.get_submodule(names.vision[0])
    weight = next(tower.parameters())
    loaded = [live.load(sha)["pixel_values"] for sha in shas[:CHUNK]]
    if any(pixels.dim() != 4 or len(pixels) != 1 for pixels in loaded):
        raise UserError(
            "model file: cache_vision: only for models that take an image as one picture, not in tiles"
        )

    def chunk_features(start: int) -> torch.Tensor:
        pixels = loaded if start == 0 else [live.load(s)["pixel_values"] for s in shas[start : start + CHUNK]]
        count = len(pixels)
        pixels = pixels + pixels[:1] * (CHUNK - count)
        with torch.no_grad():
            states = tower(
                torch.cat(pixels).to(weight.device, weight.dtype), output_hidden_states=True, return_dict=True
            ).hidden_states
        return torch.stack([states[layer] for layer in layers], dim=1)[:count].cpu().contiguous()

    first = chunk_features(0)
    shape = [len(shas), *first.shape[1:]]
    texts = [live.token_text(sha) for sha in shas]
    distinct = sorted(set(texts))
    metadata = {
        "token_texts": json.dumps({"distinct": distinct, "index": [distinct.index(text) for text in texts]})
    }

    def write(temporary: Path) -> None:
        _write_tensor(
            temporary,
            shape,
            first.dtype,
            metadata,
            lambda start: first if start == 0 else chunk_features(start),
        )

    _say(f"features: {len(shas)} images through the vision tower, kept in {path}")
    atomic_write(path, write)


def _write_tensor(
    path: Path,
    shape: list[int],
    dtype: torch.dtype,
    metadata: dict[str, str],
    chunk: Callable[[int], torch.Tensor],
) -> None:
    """A safetensors file with the one tensor ``features``, written in chunks of ``CHUNK`` rows.

    The format: eight bytes of little-endian header length, the header as JSON, the raw values.
    """
    import torch

    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
    size = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    header = json.dumps(
        {
            "__metadata__": metadata,
            "features": {"dtype": names[dtype], "shape": shape, "data_offsets": [0, size]},
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for start in range(0, shape[0], CHUNK):
            file.write(chunk(start).view(torch.uint8).numpy().data)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
