"""Train connector and language model of the tiny LLaVA on what a base model has seen before PEFT starts.

Captions of single things, questions of the three *seen* data sets, multiple choice and text: the mix of LLaVA-1.5's
own diet in small (its seen sets: paper, section 4.1 and appendix A.2). The tower is frozen and its features are
computed once.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

from peftbench.data.draw import draw
from peftbench.data.example import Example
from peftbench.models.tiny.recipe import ExposureRecipe
from peftbench.models.tiny.vision import normalise, warm_cosine

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

# How each part of the mix is asked; the seen data sets' files ask in the same words.
PROMPTS = {
    "alignment": "{question}",
    "vqav2": "{question}",
    "okvqa": "{question}",
    "ocrvqa": "{question}",
    "aokvqa": "{question} {lettered} Answer with the letter.",
    "text": "{question}",
}
TURN = "USER: {image}{prompt} ASSISTANT:"


def _draw_chunk(task: tuple[list[tuple[str, int]], int]) -> list[tuple[Example, bytes]]:
    wanted, seed = task
    return [draw(generator, "exposure", index, seed) for generator, index in wanted]


def draw_mix(wanted: list[tuple[str, int]], seed: int, workers: int) -> list[tuple[Example, bytes]]:
    """Draw examples of the mix, given as (generator, index), in their order whatever the number of workers."""
    tasks = [(wanted[start : start + 500], seed) for start in range(0, len(wanted), 500)]
    if workers == 0:
        chunks = list(map(_draw_chunk, tasks))
    else:
        with ProcessPoolExecutor(workers) as pool:
            chunks = list(pool.map(_draw_chunk, tasks))
    return [row for chunk in chunks for row in chunk]


def plan_steps(recipe: ExposureRecipe, steps: int) -> list[Tensor]:
    """Return which examples of the mix (numbered through, generators in alphabetical order) each step takes."""
    import torch

    random = torch.Generator().manual_seed(recipe.seed)
    total = sum(recipe.mix.values())
    order, planned = torch.empty(0, dtype=torch.long), []
    for _ in range(steps):
        if len(order) < recipe.batch:
            order = torch.randperm(total, generator=random)
        planned.append(order[: recipe.batch])
        order = order[recipe.batch :]
    return planned


def turn(example: Example, generator: str) -> tuple[str, str]:
    """Return the prompt text and the answer text of one example (image placeholder not yet expanded)."""
    lettered = " ".join(f"{'ABCDEFGH'[i]}. {c}" for i, c in enumerate(example.choices))
    prompt = PROMPTS[generator].format(
        question=example.question, lettered=lettered, choices=", ".join(example.choices)
    )
    return TURN.format(image="<image>\n" if example.image else "", prompt=prompt), f" {example.target}"


def features_of(model: LlavaForConditionalGeneration, pngs: list[bytes], device: str) -> Tensor:
    """Return the frozen tower's patch features of each picture, (n, tokens, vision width), half precision.

    The pictures have the tower's size already, so of the processor's work only the normalisation is left; done
    here for a batch at a time (a test compares it with the processor).
    """
    import torch

    tower = model.model.vision_tower.to(device).eval()
    parts = []
    for start in range(0, len(pngs), 512):
        pixels = normalised(pngs[start : start + 512]).to(device)
        with torch.no_grad():
            hidden = tower(pixels, output_hidden_states=True).hidden_states[
                model.config.vision_feature_layer
            ][:, 1:]
        parts.append(hidden.half())
    return torch.cat(parts)


def normalised(pngs: list[bytes]) -> Tensor:
    """Return pictures as CLIP-normalised pixels, (n, 3, height, width)."""
    import io

    import numpy as np
    import torch
    from PIL import Image

    stack = np.stack([np.asarray(Image.open(io.BytesIO(p)).convert("RGB")) for p in pngs])
    return normalise(torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255)


def tokenise(
    rows: list[tuple[Example, bytes]], tokenizer: PreTrainedTokenizerFast, image_tokens: int
) -> tuple[Tensor, Tensor]:
    """Return token ids and labels, both (n, longest), right-padded; labels are -100 but on answer and end token."""
    import torch

    ids: list[list[int]] = []
    masks: list[list[int]] = []
    for example, _ in rows:
        prompt, answer = turn(example, example.id.split("-")[0])
        prompt = prompt.replace("<image>", "<image>" * image_tokens)
        head = tokenizer.encode(prompt, add_special_tokens=False)
        tail = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
        ids.append(head + tail)
        masks.append([-100] * len(head) + tail)
    longest = max(map(len, ids))
    pad = tokenizer.pad_token_id
    return (
        torch.tensor([row + [pad] * (longest - len(row)) for row in ids]),
        torch.tensor([row + [-100] * (longest - len(row)) for row in masks]),
    )


def expose(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    recipe: ExposureRecipe,
    device: str,
    workers: int = 0,
    limit: int | None = None,
) -> dict[str, Any]:
    """Train ``model``'s connector and language model in place; return the loss log and what was seen."""
    import torch
    from torch import nn

    planned = plan_steps(recipe, min(recipe.steps, limit or recipe.steps))
    numbered = [(generator, i) for generator, n in sorted(recipe.mix.items()) for i in range(n)]
    used = torch.cat(planned).unique()
    rows = draw_mix([numbered[i] for i in used.tolist()], recipe.seed, workers)
    row_of = torch.full((len(numbered),), -1)
    row_of[used] = torch.arange(len(used))

    tokenizer = processor.tokenizer
    image_id = model.config.image_token_id
    ids, labels = tokenise(rows, tokenizer, model.config.image_seq_length)
    with_image = [i for i, (_, png) in enumerate(rows) if png]
    picture_of = torch.full((len(rows),), -1)
    picture_of[with_image] = torch.arange(len(with_image))
    features = features_of(model, [rows[i][1] for i in with_image], device)
    lengths = (ids != tokenizer.pad_token_id).sum(1)
    ids, labels, picture_of = ids.to(device), labels.to(device), picture_of.to(device)

    connector, language, head = model.model.multi_modal_projector, model.model.language_model, model.lm_head
    trained = nn.ModuleList([connector, language, head]).to(device).train()
    decay = [p for p in trained.parameters() if p.ndim > 1]
    plain = [p for p in trained.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
    )
    schedule = warm_cosine(optimizer, recipe.steps)
    log = []
    started = time.monotonic()
    for step, taken in enumerate(planned):
        take = row_of[taken]
        longest = int(lengths[take].max())
        take = take.to(device)
        x, y = ids[take, :longest], labels[take, :longest]
        embedded = language.embed_tokens(x)
        seen = picture_of[take]
        projected = connector(features[seen[seen >= 0]].float())
        embedded = embedded.masked_scatter((x == image_id).unsqueeze(-1), projected)
        hidden = language(
            inputs_embeds=embedded, attention_mask=(x != tokenizer.pad_token_id).long()
        ).last_hidden_state
        supervised = y[:, 1:] != -100
        logits = head(hidden[:, :-1][supervised])
        loss = nn.functional.cross_entropy(logits, y[:, 1:][supervised])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step < 5 or step % 100 == 0 or step == recipe.steps - 1:
            log.append({"step": step, "loss": loss.item()})
            if step % 100 == 0:
                spent = time.monotonic() - started
                print(f"exposure {step}/{recipe.steps} loss {loss.item():.3f} {spent:.0f} s", flush=True)
    model.to("cpu").eval()
    return {"log": log, "examples": len(rows), "longest": int(ids.shape[1])}


def corpus(recipe: ExposureRecipe, per_generator: int = 1500) -> list[str]:
    """Return the text that the tokenizer is trained on: the mix's own prompts and answers, and all words."""
    from peftbench.data.embedded.text import vocabulary

    wanted = [(g, i) for g, n in sorted(recipe.mix.items()) for i in range(min(per_generator, n))]
    lines = []
    for example, _ in _draw_chunk((wanted, recipe.seed)):
        prompt, answer = turn(example, example.id.split("-")[0])
        lines.append(prompt.replace("<image>", "") + answer)
    words = vocabulary()
    # Every word several times, with the space that precedes a word in a sentence: each becomes one token.
    return lines + [" " + " ".join(words)] * 40
