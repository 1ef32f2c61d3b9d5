"""Examples to token ids, once; and batches of them, by slicing.

Each example is rendered, tokenised and expanded (one image placeholder becomes as many ids as the image has
tokens) before the first step, so that a step only pads and stacks. Labels are the answer and its end token, or
what the model file's label policy says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from peftbench.errors import RunFailed
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
    """One example as token ids (int32); ``image`` is "" for none.

    ``loss`` marks the positions that are learnt; None: all from ``prompt_length`` on. ``per_token`` holds further
    inputs of the model with one value per token, by name.
    """

    id: str
    ids: np.ndarray
    prompt_length: int
    image: str
    prompt: str
    loss: np.ndarray | None = None
    per_token: dict[str, np.ndarray] = {}

    @property
    def supervised(self) -> int:
        """Number of tokens that carry loss."""
        return len(self.ids) - self.prompt_length if self.loss is None else int(self.loss.sum())


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

    Nothing is ever cut: a cut image or answer would train something else. Raises ``RunFailed`` for examples
    beyond ``max_length``, empty targets, and tokenizers that join the end of the prompt with the start of the
    answer.
    """
    if not examples:
        return []
    expand = _Expansion(base, images)
    tokens = (base.image_token, base.tokenizer.eos_token, base.tokenizer.bos_token or "")
    prompts, starts, fulls = [], [], []
    for example in examples:
        text = user_text(prompt, example)
        target = example.target if answers else None
        if target is not None and not target.strip():
            raise RunFailed(f"example {example.id}: the training target is empty: fix or drop the row")
        prompts.append(render_chat(names.template, text, bool(example.image), None, *tokens))
        starts.append(expand.text(prompts[-1], example.image))
        if answers:
            full = render_chat(names.template, text, bool(example.image), target, *tokens)
            fulls.append(expand.text(full, example.image))
    start_ids = base.tokenizer(starts)["input_ids"]
    full_ids = base.tokenizer(fulls)["input_ids"] if answers else start_ids
    ends = base.end_tokens()
    result = []
    for example, text, start, full in zip(examples, prompts, start_ids, full_ids, strict=True):
        if full[: len(start)] != start:
            raise RunFailed(
                f"example {example.id}: the tokenizer does not split between prompt and answer "
                f"(template {names.template}): the generation prompt must end at a token's end"
            )
        if answers and not ends.intersection(full[len(start) :]):
            raise RunFailed(
                f"template {names.template}: an answer must end with an end token of the model, such as "
                f"{base.tokenizer.eos_token}"
            )
        ids = expand.ids(full, example.image)
        length = len(start) + len(ids) - len(full)
        loss = None
        if answers and names.labels == "chat_marks":
            from peftbench.models.labels import chat_marks_mask, chat_marks_tail

            ids = ids + chat_marks_tail(base.tokenizer)
            mask = chat_marks_mask(ids, length, base.tokenizer)
            loss = np.array([False] * len(base.lead) + list(mask), dtype=bool)
        ids, length = base.lead + ids, len(base.lead) + length
        types = base.token_types(ids, length)
        result.append(
            Encoded(
                example.id,
                np.array(ids, dtype=np.int32),
                length,
                example.image,
                text,
                loss,
                {name: np.array(values, dtype=np.int32) for name, values in types.items()},
            )
        )
    if max_length is not None:
        long = [e for e in result if len(e.ids) > max_length]
        if long:
            raise RunFailed(
                f"{len(long)} of {len(result)} examples are longer than max_length {max_length} tokens "
                f"(first: {long[0].id} with {len(long[0].ids)}): raise max_length or drop them"
            )
    return result


class _Expansion:
    """Puts as many tokens as an image has in the place of its placeholder.

    Where the expansion begins and ends with tokens that the tokenizer cuts out of the text anyway, its ids are
    spliced in, which spares hundreds of tokens per example. Otherwise its ends may join with their neighbours
    (Gemma3 puts line ends around the image), and it is spelt out in the text.
    """

    def __init__(self, base: Base, images: Images) -> None:
        self.tokenizer, self.images = base.tokenizer, images
        self.token, self.token_id = base.image_token, base.image_token_id
        self.known: dict[str, list[int] | None] = {}

    def _of(self, image: str) -> tuple[str, list[int] | None]:
        text = self.images.token_text(image)
        if text not in self.known:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            apart = self.tokenizer.added_tokens_decoder
            self.known[text] = ids if ids[0] in apart and ids[-1] in apart else None
        return text, self.known[text]

    def text(self, text: str, image: str) -> str:
        """The text before it is tokenised."""
        if not image:
            return text
        expansion, ids = self._of(image)
        return text if ids is not None else text.replace(self.token, expansion, 1)

    def ids(self, ids: list[int], image: str) -> list[int]:
        """The ids of what ``text`` gave."""
        expansion = self._of(image)[1] if image else None
        if expansion is None:
            return ids
        at = ids.index(self.token_id)
        return ids[:at] + expansion + ids[at + 1 :]


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

    Generation pads on the left, training on the right; other inputs per token are padded with 0. What the images
    give is joined along its first dimension (images, tiles or patches, as the model has it), in the order of the
    rows; where it differs in others (numbers of tiles), zeros are appended, as the processors of ``transformers``
    do.
    """
    import torch

    width = max(len(encoded.ids) for encoded, _ in items)
    ids = np.full((len(items), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(items), width), dtype=np.int64)
    further = {name: np.zeros((len(items), width), dtype=np.int64) for name in items[0][0].per_token}
    labels = np.full((len(items), width), IGNORED, dtype=np.int64)
    for row, (encoded, _) in enumerate(items):
        start = width - len(encoded.ids) if left else 0
        end = start + len(encoded.ids)
        ids[row, start:end] = encoded.ids
        mask[row, start:end] = 1
        for name, values in encoded.per_token.items():
            further[name][row, start:end] = values
        if encoded.loss is None:
            labels[row, start + encoded.prompt_length : end] = encoded.ids[encoded.prompt_length :]
        else:
            labels[row, start:end] = np.where(encoded.loss, encoded.ids, IGNORED)
    batch = {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(labels),
    }
    for name, array in further.items():
        batch[name] = torch.from_numpy(array)
    tensors = [tensors for _, tensors in items if tensors]
    for key in tensors[0] if tensors else ():
        batch[key] = torch.cat(_same_shape([one[key] for one in tensors]))
    return batch


def _same_shape(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """All but the first dimension as large as the largest, with zeros at the ends."""
    sizes = [max(lengths) for lengths in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    result = []
    for tensor in tensors:
        if list(tensor.shape[1:]) == sizes:
            result.append(tensor)
        else:
            grown = tensor.new_zeros((tensor.shape[0], *sizes))
            grown[tuple(slice(length) for length in tensor.shape)] = tensor
            result.append(grown)
    return result
