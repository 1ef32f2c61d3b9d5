"""What the methods share that learn a prompt: where it stands."""

from __future__ import annotations

import re
from typing import Any

from peftbench.methods import _peft

LOCATIONS: tuple[str, ...] = ("both",)
"""A prompt stands before the first layer: neither in attention nor in the MLP."""


def apply(model: Any, **settings: Any) -> Any:
    """Wrap the embedding of the base model's tokens; only the prompt is trainable afterwards."""
    from peftbench.tuners.soft_prompt import SoftPromptConfig

    embedding = model.get_input_embeddings()
    path = next(name for name, module in model.named_modules() if module is embedding)
    return _peft.wrap(
        model, SoftPromptConfig(target_modules=re.escape(path), task_type="CAUSAL_LM", **settings)
    )
