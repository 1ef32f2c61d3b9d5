"""Processors of the hub's models, for still images and without torchvision.

``AutoProcessor`` wants torchvision wherever a processor also reads videos, and takes another resize, with other
pixels, wherever torchvision happens to be installed. Here a processor is always made of its tokenizer and the PIL
form of its image processor; the rest of it is left out. So pixels are the same on every machine.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

from peftbench.errors import UserError

PARTS = ("image_processor", "tokenizer")
"""What a processor keeps."""
_NAMING_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
"""Where hub folders name their processor's class, in the order in which transformers looks."""


def load_processor(directory: Path, settings: dict[str, Any] | None = None) -> Any:
    """The processor of a hub folder.

    ``settings`` change its image processor: ``type`` is the name of its class, all else are attributes of that
    class. Raises ``UserError`` for a setting that the class does not have, and ``OSError`` or ``ValueError`` where
    transformers cannot make sense of the folder.
    """
    from transformers import AutoImageProcessor, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    image_processor = AutoImageProcessor.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False, backend="pil"
    )
    if settings:
        image_processor = change_image_processor(image_processor, settings)
    kind = images_only(_processor_class(directory))
    return kind.build(directory, image_processor, tokenizer)


def _processor_class(directory: Path) -> type:
    """The class that the folder names, else that of its architecture."""
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name

    for name in _NAMING_FILES:
        path = directory / name
        named = json.loads(path.read_bytes()).get("processor_class") if path.is_file() else None
        found = processor_class_from_name(named) if named else None
        if found is not None:
            return found
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    if type(config) not in PROCESSOR_MAPPING:
        raise UserError(f"base model: {directory}: transformers knows no processor for {config.model_type}")
    return PROCESSOR_MAPPING[type(config)]


def change_image_processor(image_processor: Any, settings: dict[str, Any]) -> Any:
    """The image processor with other settings, of another class where ``type`` says so."""
    from transformers.models.auto.image_processing_auto import _load_backend_class

    from peftbench.errors import did_you_mean

    settings = dict(settings)
    kind: Any = type(image_processor)
    if "type" in settings:
        name = str(settings.pop("type"))
        kind = _load_backend_class(name.removesuffix("Pil"), "pil")
        if kind is None:
            raise UserError(f"source: image_processor: type: transformers has no image processor {name!r}")
    known = {*kind.valid_kwargs.__annotations__, *kind.model_input_names, "size", "crop_size"}
    known |= {name for name in vars(kind()) if not name.startswith("_")}
    for name in settings:
        if name not in known:
            raise UserError(
                f"source: image_processor: {kind.__name__} has no setting {name!r}{did_you_mean(name, known)}"
            )
    values = image_processor.to_dict()
    for own in ("image_processor_type", "processor_class"):
        values.pop(own, None)
    return kind(**(values | settings))


@cache
def images_only(full: Any) -> Any:
    """The processor class ``full`` reduced to its tokenizer and image processor; same name, same methods."""

    class ImagesOnly(full):
        """See ``images_only``."""

        @classmethod
        def get_attributes(cls) -> list[str]:
            """The parts that it is made of and saves."""
            return [name for name in full.get_attributes() if name in PARTS]

        @classmethod
        def build(cls, directory: Path, image_processor: Any, tokenizer: Any) -> Any:
            """A processor of the given parts; its own settings come from the folder."""
            settings, _ = cls.get_processor_dict(directory, local_files_only=True)
            for name in full.get_attributes():
                settings.pop(name, None)
            parts = {"image_processor": image_processor, "tokenizer": tokenizer}
            module = sys.modules[full.__module__]
            if getattr(module, "num2words", True) is None:
                # SmolVLM insists on this package when it is made; it only spells out the lengths of videos.
                module.num2words = str  # type: ignore[attr-defined]
            return cls.from_args_and_dict([parts.get(name) for name in full.get_attributes()], settings)

        def __reduce__(self) -> tuple[Any, ...]:
            # The class is made here, so pickle (data loader processes) cannot find it by its name.
            return _restore, (full, self.__dict__)

    ImagesOnly.__name__, ImagesOnly.__qualname__ = full.__name__, full.__qualname__
    return ImagesOnly


def _restore(full: Any, state: dict[str, Any]) -> Any:
    kind = images_only(full)
    processor = kind.__new__(kind)
    processor.__dict__.update(state)
    return processor
