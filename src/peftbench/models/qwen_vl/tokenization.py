"""The fast tokenizer of Qwen-VL-Chat, made from the checkpoint's ``qwen.tiktoken``.

That file lists byte sequences with their ranks, one per line in base 64. A rank is the id and the priority of
a merge at once; special tokens follow the last rank in a fixed order.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from peftbench.errors import UserError

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE_START, IMAGE_END, IMAGE_PAD = "<img>", "</img>", "<imgpad>"
SPECIAL_TOKENS = (
    END_OF_TEXT,
    TURN_START,
    TURN_END,
    *(f"<|extra_{i}|>" for i in range(205)),
    *("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"),
    *(IMAGE_START, IMAGE_END, IMAGE_PAD),
)
"""In the order of their ids, which begin after the last rank."""
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How text is cut into pieces that never merge with each other: digits stand alone."""


def read_ranks(path: Path) -> dict[bytes, int]:
    """Byte sequences and their ranks.

    Raises ``UserError`` where the file is missing or damaged, or where ranks do not run from 0 without gaps and
    include every single byte.
    """
    ranks: dict[bytes, int] = {}
    try:
        for line in path.read_bytes().splitlines():
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except OSError as error:
        raise UserError(f"base model: {path}: {error.strerror}: fetch it with the model") from None
    except (ValueError, binascii.Error) as error:
        raise UserError(
            f"base model: {path}: line {len(ranks) + 1} is not a token and a rank: {error}"
        ) from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise UserError(
            f"base model: {path}: the ranks are not 0 to {len(ranks) - 1}, each once: fetch it again"
        )
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise UserError(f"base model: {path}: single bytes are missing: fetch it again")
    return ranks


class _Converter(TikTokenConverter):
    """The converter of ``transformers``, reading the file itself rather than through ``tiktoken``."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        """Named by the base class."""
        return read_ranks(Path(tiktoken_url))


def build_tokenizer(path: Path) -> Any:
    """The tokenizer of a ``qwen.tiktoken``: NFC, turns end with ``<|im_end|>``, padding is ``<|endoftext|>``.

    Takes ten seconds for the published vocabulary of 151,643 ranks. Raises ``UserError`` as ``read_ranks`` does.
    """
    backend: Tokenizer = _Converter(
        vocab_file=str(path), pattern=PATTERN, extra_special_tokens=list(SPECIAL_TOKENS)
    ).converted()
    backend.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
