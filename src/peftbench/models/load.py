"""Loading a base model from a folder in the layout of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError

if TYPE_CHECKING:
    import torch


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


def pick_device(wanted: str) -> torch.device:
    """The device of an execution setting: ``auto`` is the GPU if there is one."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device cuda was asked for, but this machine has no usable GPU: use device: auto or cpu"
        )
    use_cuda = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_cuda else "cpu")


def load_base(directory: Path, precision: str, device: torch.device) -> Base:
    """The model (all parameters frozen, evaluation mode) and its processor.

    ``precision`` is "fp32" or "bf16", the type of the frozen weights. Weights come from safetensors, and no
    code of the folder is run. Raises ``UserError`` where the folder is not a model or weights are missing.
    """
    import torch
    import transformers
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if not (directory / "config.json").is_file():
        raise UserError(f"base model: {directory} holds no config.json: build or fetch the model first")
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
            output_loading_info=True,
        )
        processor = AutoProcessor.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"base model: cannot load {directory}: {line}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    # Missing weights would silently stay random.
    for problem in ("missing_keys", "mismatched_keys"):
        if info.get(problem):
            raise UserError(
                f"base model: {directory} has {problem.replace('_', ' ')}: {sorted(info[problem])[:3]}"
            )
    model.requires_grad_(False)
    return Base(model.eval().to(device), processor)
