"""Examples to token ids, once; and batches of them, by slicing.

Each example is rendered, tokenised and expanded (one image placeholder becomes as many ids as the image has
tokens) before the first step, so that a step only pads and stacks. Labels are the answer and its end token,
nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from peftbench.errors import UserError
from peftbench.models.template import render_chat, user_text

if TYPE_CHECKING:
    import torch

    from peftbench.data.example import Example
    from peftbench.models.load import Base
    from peftbench.spec import ModelNames, Prompt
    from peftbench.training.features import Images

IGNORED = -100
"""Label of a position that carries no loss."""


class Encoded(msgspec.Struct, frozen=True):
    """One example as token ids (int32), supervised from ``prompt_length`` on; ``image`` is "" for none."""

    id: str
    ids: np.ndarray
    prompt_length: int
    image: str
    prompt: str

    @property
    def supervised(self) -> int:
        """Number of tokens that carry loss."""
        return len(self.ids) - self.prompt_length


Item = tuple[Encoded, "dict[str, torch.Tensor]"]
"""An example and what its image is to the model (empty for text alone)."""


def encode(
    base: Base,
    images: Images,
    names: ModelNames,
    prompt: Prompt,
    examples: Sequence[Example],
    max_length: int | None,
    answers: bool,
) -> list[Encoded]:
    """Token ids of all examples, with their answers (training) or up to the generation prompt.

    Nothing is ever cut: a cut image or answer would train something else. Raises ``UserError`` for examples
    beyond ``max_length``, empty targets, and tokenizers that join the end of the prompt with the start of the
    answer.
    """
    if not examples:
        return []
    eos = base.tokenizer.eos_token
    prompts, texts = [], []
    for example in examples:
        text = user_text(prompt, example)
        has_image = bool(example.image)
        prompts.append(render_chat(names.template, text, has_image, None, base.image_token, eos))
        if answers:
            if not example.target.strip():
                raise UserError(f"example {example.id}: the training target is empty: fix or drop the row")
            texts.append(render_chat(names.template, text, has_image, example.target, base.image_token, eos))
    prompt_ids = base.tokenizer(prompts)["input_ids"]
    full_ids = base.tokenizer(texts)["input_ids"] if answers else prompt_ids
    expansions: dict[str, list[int]] = {}
    result = []
    for example, text, start, full in zip(examples, prompts, prompt_ids, full_ids, strict=True):
        if full[: len(start)] != start:
            raise UserError(
                f"example {example.id}: the tokenizer does not split between prompt and answer "
                f"(template {names.template}): the generation prompt must end at a token's end"
            )
        if answers and (len(full) == len(start) or full[-1] != base.tokenizer.eos_token_id):
            raise UserError(f"template {names.template}: an answer must end with the end token {eos}")
        if example.image:
            token_text = images.token_text(example.image)
            if token_text not in expansions:
                expansions[token_text] = base.tokenizer(token_text, add_special_tokens=False)["input_ids"]
            at = start.index(base.image_token_id)
            expansion = expansions[token_text]
            full = full[:at] + expansion + full[at + 1 :]
            length = len(start) + len(expansion) - 1
        else:
            length = len(start)
        result.append(Encoded(example.id, np.array(full, dtype=np.int32), length, example.image, text))
    if max_length is not None:
        long = [e for e in result if len(e.ids) > max_length]
        if long:
            raise UserError(
                f"{len(long)} of {len(result)} examples are longer than max_length {max_length} tokens "
                f"(first: {long[0].id} with {len(long[0].ids)}): raise max_length or drop them"
            )
    return result


def derived_seed(seed: int, *purpose: Any) -> int:
    """An independent 63-bit seed for each purpose, so that order and dropout do not share a stream."""
    text = "|".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """A uniformly random order of ``count`` examples; the same whatever the number of processes.

    Examples are not grouped by length (the paper trains with ``group_by_modality_length False``).
    """
    import torch

    generator = torch.Generator().manual_seed(derived_seed(seed, "order", epoch))
    return torch.randperm(count, generator=generator).tolist()


def global_batches(lengths: Sequence[int], size: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """The global batches of one epoch as indices; the last one is smaller where ``size`` does not divide.

    Within a batch, examples are sorted from long to short: its gradient is a sum, so only padding changes.
    """
    order = epoch_order(len(lengths), seed, epoch)
    for start in range(0, len(order), size):
        yield sorted(order[start : start + size], key=lambda i: (-lengths[i], i))


def collate(items: Sequence[Item], pad_id: int, left: bool) -> dict[str, torch.Tensor]:
    """Pad to the longest of ``items``: (batch, length) ids, attention mask and labels, and the images.

    Generation pads on the left, training on the right. What the images give is joined along its first
    dimension, in the order of the rows, as ``transformers`` expects.
    """
    import torch

    width = max(len(encoded.ids) for encoded, _ in items)
    ids = np.full((len(items), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(items), width), dtype=np.int64)
    labels = np.full((len(items), width), IGNORED, dtype=np.int64)
    for row, (encoded, _) in enumerate(items):
        start = width - len(encoded.ids) if left else 0
        end = start + len(encoded.ids)
        ids[row, start:end] = encoded.ids
        mask[row, start:end] = 1
        labels[row, start + encoded.prompt_length : end] = encoded.ids[encoded.prompt_length :]
    batch = {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(labels),
    }
    tensors = [tensors for _, tensors in items if tensors]
    for key in tensors[0] if tensors else ():
        batch[key] = torch.cat([one[key] for one in tensors])
    return batch
