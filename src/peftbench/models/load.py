"""Loading a base model from a folder in the layout of the Hugging Face hub."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError
from peftbench.models.processors import load_processor

if TYPE_CHECKING:
    import torch

    from peftbench.spec import ModelNames

LONGEST = 240
"""Characters of a library's message that are worth repeating."""
TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")
"""Names under which models take the types of tokens."""


class Base:
    """A loaded base model with its processor."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.image_token: str = processor.image_token
        self.image_token_id: int = int(self.tokenizer.convert_tokens_to_ids(processor.image_token))
        if self.tokenizer.eos_token is None:
            raise UserError(
                "base model: the tokenizer has no end token: set eos_token in tokenizer_config.json"
            )
        pad = self.tokenizer.pad_token_id
        # Padding is masked by position, never by id, so the end token may stand in for a missing padding
        # token.
        self.pad_token_id: int = int(self.tokenizer.eos_token_id if pad is None else pad)
        self.accepted: frozenset[str] = frozenset(inspect.signature(model.forward).parameters)
        """Names of the inputs that the model takes."""
        self.lead: list[int] = []
        """Ids that stand before every example: places of a learnt prompt, for methods that have one."""

    def end_tokens(self) -> set[int]:
        """Ids that end an answer: the tokenizer's end token and what the model's configuration lists."""
        own = self.model.generation_config.eos_token_id
        listed = [] if own is None else own if isinstance(own, list) else [own]
        return {int(self.tokenizer.eos_token_id), *map(int, listed)}

    def token_types(self, ids: list[int], prompt_length: int) -> dict[str, list[int]]:
        """Types of the tokens of one example, by the name under which the model takes them; or nothing.

        Processors that mark images give 1 to image tokens and 0 to all else (Gemma3 lets an image see all of
        itself, Qwen-VLs place its patches in two dimensions). Otherwise the types are those of a text pair:
        0 in the prompt, 1 in the answer (PaliGemma's prompt sees all of itself). Without them, such models would
        silently be causal.
        """
        name = next((name for name in TOKEN_TYPES if name in self.accepted), None)
        if name is None:
            return {}
        if getattr(self.processor, "return_mm_token_type_ids", False):
            return {name: [int(kind) for kind in self.processor.create_mm_token_type_ids([ids])[0]]}
        return {name: [0] * prompt_length + [1] * (len(ids) - prompt_length)}


def pick_device(wanted: str) -> torch.device:
    """The device of an execution setting: ``auto`` is the GPU if there is one."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device cuda was asked for, but this machine has no usable GPU: use device: auto or cpu"
        )
    use_cuda = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_cuda else "cpu")


def register_code(names: ModelNames | None) -> None:
    """Make the Auto classes know the architecture of a model file, where transformers lacks it."""
    if names is not None and names.code:
        importlib.import_module(f"peftbench.models.{names.code}")


def load_base(directory: Path, precision: str, device: torch.device, names: ModelNames | None = None) -> Base:
    """The model (all parameters frozen, evaluation mode) and its processor.

    ``precision`` is "fp32" or "bf16", the type of the frozen weights; ``names`` is the model file's. Weights come
    from safetensors, and no code of the folder is run. Raises ``UserError`` where the folder is not a model or
    weights are missing.
    """
    import torch
    import transformers
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText

    if not (directory / "config.json").is_file():
        raise UserError(f"base model: {directory} holds no config.json: build or fetch the model first")
    register_code(names)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            directory,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
        processor = load_processor(directory)
    except UserError:
        raise
    except (OSError, ValueError, SafetensorError, RuntimeError, AttributeError, TypeError, KeyError) as error:
        line = " ".join(str(error).split())[:LONGEST]
        raise UserError(
            f"base model: cannot load {directory}: {line}: delete the folder and run again"
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    # Missing weights would silently stay random.
    for problem in ("missing_keys", "mismatched_keys"):
        if info.get(problem):
            raise UserError(
                f"base model: {directory} has {problem.replace('_', ' ')}: {sorted(info[problem])[:3]}: not the "
                "weights of its configuration: delete the folder and run again"
            )
    model.requires_grad_(False)
    return Base(model.eval().to(device), processor)
