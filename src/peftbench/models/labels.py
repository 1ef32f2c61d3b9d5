"""Label policies beyond the plain one (the answer and its end token).

``chat_marks`` is that of Qwen-VL's official fine-tuning, which the paper's code keeps: besides the answer,
``<|im_start|>``, ``<|im_end|>`` and the line end after it are learnt in *every* turn, also those of the system
and the user; names of roles, what system and user say, and the image are not.
"""

from __future__ import annotations

from typing import Any

from peftbench.errors import UserError

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"


def chat_marks_tail(tokenizer: Any) -> list[int]:
    """Ids of the line end that this policy wants after the answer's ``<|im_end|>``."""
    tail: list[int] = tokenizer("\n", add_special_tokens=False)["input_ids"]
    return tail


def chat_marks_mask(ids: list[int], prompt_length: int, tokenizer: Any) -> list[bool]:
    """Which of ``ids`` carry loss, the first ``prompt_length`` of them being the prompt.

    From the prompt on: all (the answer, its end token and, if it is there, the line end after it). In the prompt:
    the marks of turns, and line ends right after ``<|im_end|>``. Never the first id, which nothing predicts.
    Raises ``UserError`` for a tokenizer without the marks.
    """
    start, end = _special(tokenizer, TURN_START), _special(tokenizer, TURN_END)
    newline = chat_marks_tail(tokenizer)
    if len(newline) != 1:
        raise UserError(
            "labels: chat_marks: in this tokenizer a line end is not one token: use labels: answer"
        )
    mask = [
        token in (start, end) or (token == newline[0] and i > 0 and ids[i - 1] == end)
        for i, token in enumerate(ids[:prompt_length])
    ]
    mask += [True] * (len(ids) - len(mask))
    if mask:
        mask[0] = False
    return mask


def _special(tokenizer: Any, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    if found is None or found == tokenizer.unk_token_id:
        raise UserError(f"labels: chat_marks: the tokenizer has no {token}: use labels: answer")
    return int(found)
