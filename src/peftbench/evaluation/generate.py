"""Greedy answers of a tuned or untuned model to a test split.

Prompts are padded on the left and sorted by length; the batch size belongs to the spec. Methods that merge
exactly are merged first in fp32 (in bf16 merging would round the weights). Answers are kept as the model
wrote them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from peftbench.errors import RunFailed, UserError
from peftbench.evaluation.epochs import epoch_of, weights_of
from peftbench.evaluation.losses import answer_losses, write_losses
from peftbench.models.load import load_base, pick_device
from peftbench.store import partial_directory
from peftbench.training.adapt import attach, merge, restore
from peftbench.training.batches import Encoded, collate, encode
from peftbench.training.features import cache_folder, open_images
from peftbench.training.progress import Progress

if TYPE_CHECKING:
    from peftbench.models.load import Base
    from peftbench.spec import Execution, PredictSpec
    from peftbench.training.features import Images

PREDICTIONS_FILE = "predictions.parquet"


class Answer(msgspec.Struct, frozen=True):
    """``tokens`` counts what was generated before the end token; ``finished``: there was an end token."""

    text: str
    tokens: int
    finished: bool


def generate_predictions(
    spec: PredictSpec,
    base_dir: Path,
    run_dir: Path | None,
    data_dir: Path,
    image_store: Path,
    out_dir: Path,
    execution: Execution,
) -> dict[str, Any]:
    """Write ``predictions.parquet`` in the order of the test split; or, where the spec asks for it, ``losses.parquet``.

    The columns are id, prediction, prompt, n_tokens and finished; or id, loss and tokens. ``run_dir`` holds the trained
    weights; None for the untuned base model. Returns the facts for the record.
    """
    import hashlib

    import torch

    from peftbench.arrow import pa, pq
    from peftbench.data.load import read_examples

    torch.set_num_threads(execution.threads)
    base = load_base(base_dir, spec.precision, pick_device(execution.device), spec.model)
    torch.manual_seed(0)  # attach draws values that restore overwrites
    epoch = None if run_dir is None else epoch_of(run_dir, spec.epoch)
    merged = _tune(spec, base, None if run_dir is None else weights_of(run_dir, epoch))
    examples = read_examples(data_dir, "test")
    if not examples:
        raise UserError(f"{data_dir}: the test split is empty")
    shas = [example.image for example in examples]
    cache = cache_folder(execution) if spec.vision == "frozen" else None
    images, cache_facts = open_images(base, spec.model, image_store, shas, cache)
    reads = spec.what == "losses"
    prompts = encode(base, images, spec.model, spec.prompt, examples, None, answers=reads)

    start = time.monotonic()
    autocast = spec.precision == "bf16"
    shared: dict[str, Any] = {
        "examples": len(prompts),
        "merged": merged,
        "epoch": epoch or "last",
        "features": cache_facts,
    }
    if reads:
        losses = answer_losses(base, images, prompts, spec.decoding.batch_size, autocast)
        with partial_directory(out_dir) as work:
            outputs = write_losses(prompts, losses, work)
        return shared | _rates(time.monotonic() - start, prompts, losses) | {"outputs": outputs}
    answers = greedy(base, images, prompts, spec.decoding.max_new_tokens, spec.decoding.batch_size, autocast)
    seconds = time.monotonic() - start
    table = pa.table(
        {
            "id": [encoded.id for encoded in prompts],
            "prediction": [answer.text for answer in answers],
            "prompt": [encoded.prompt for encoded in prompts],
            "n_tokens": [answer.tokens for answer in answers],
            "finished": [answer.finished for answer in answers],
        }
    )
    with partial_directory(out_dir) as work:
        pq.write_table(table, work / PREDICTIONS_FILE)
        digest = hashlib.sha256((work / PREDICTIONS_FILE).read_bytes()).hexdigest()
    written = sum(answer.tokens for answer in answers)
    return {
        **shared,
        "unfinished": sum(not answer.finished for answer in answers),
        "seconds": round(seconds, 3),
        "throughput": {
            "samples_per_s": round(len(answers) / seconds, 3),
            "tokens_per_s": round(written / seconds, 3),
        },
        "outputs": {PREDICTIONS_FILE: digest},
    }


def _rates(seconds: float, examples: Sequence[Encoded], losses: Sequence[float]) -> dict[str, Any]:
    """Facts of a job that read answers; ``RunFailed`` for a loss that is not finite."""
    bad = next(
        (example.id for example, loss in zip(examples, losses, strict=True) if not math.isfinite(loss)), None
    )
    if bad is not None:
        raise RunFailed(f"the loss on the answer of example {bad} is not a finite number")
    return {
        "seconds": round(seconds, 3),
        "throughput": {
            "samples_per_s": round(len(examples) / seconds, 3),
            "tokens_per_s": round(sum(example.supervised for example in examples) / seconds, 3),
        },
    }


def _tune(spec: PredictSpec, base: Base, run_dir: Path | None) -> bool:
    """Put the run's weights into ``base``, in place; whether the method was merged."""
    if run_dir is None:
        # The untuned model: whatever the spec says about a connector, there are no weights to load.
        untuned = msgspec.structs.replace(
            spec, method="base", settings={}, connector="frozen", vision="frozen", location="default"
        )
        attach(base, untuned)
        return False
    tuned = attach(base, spec)
    restore(tuned, run_dir)
    exactly = bool(tuned.method.MERGEABLE) and spec.precision == "fp32"
    wanted = spec.merge == "always" or (spec.merge == "auto" and exactly)
    if wanted:
        merge(tuned, spec.method)
    return wanted


def greedy(
    base: Base,
    images: Images,
    prompts: Sequence[Encoded],
    max_new_tokens: int,
    batch_size: int,
    autocast: bool = False,
) -> list[Answer]:
    """Greedy answers to encoded prompts, in their order, by ``transformers``' generation with a cache.

    ``base`` holds whatever was applied to its model: peft puts its layers into the model itself.
    """
    import torch
    from transformers import GenerationConfig

    ends = end_tokens(base)
    model, own_config = base.model.eval(), base.model.generation_config
    # generate() fills what a configuration leaves open from the model's own, and those of the hub bring
    # temperatures and penalties.
    model.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=sorted(ends),
        pad_token_id=base.pad_token_id,
        use_cache=True,
    )
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].ids), i))
    answers: dict[int, Answer] = {}
    progress = Progress("predict", len(prompts))
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                items = [
                    (prompts[i], images.load(prompts[i].image) if prompts[i].image else {}) for i in rows
                ]
                inputs = collate(items, base.pad_token_id, left=True)
                del inputs["labels"]
                width = inputs["input_ids"].shape[1]
                output = model.generate(**{key: value.to(device) for key, value in inputs.items()})
                for i, ids in zip(rows, output[:, width:].tolist(), strict=True):
                    answers[i] = decode(base, ids, ends)
                progress.step(len(answers))
    finally:
        model.generation_config = own_config
    return [answers[i] for i in range(len(prompts))]


def end_tokens(base: Base) -> set[int]:
    """Ids that end an answer."""
    return base.end_tokens()


def decode(base: Base, ids: Sequence[int], ends: set[int]) -> Answer:
    """The answer up to its end token, verbatim but for the one space that the template puts before it."""
    stop = next((at for at, token in enumerate(ids) if token in ends), None)
    kept = ids if stop is None else ids[:stop]
    text = base.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Answer(text.removeprefix(" "), len(kept), stop is not None)
