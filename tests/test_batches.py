"""Examples to ids and labels, their order, and the learning rate."""

import math

import pytest
import torch

from peftbench.data.load import read_examples
from peftbench.errors import UserError
from peftbench.spec import Prompt
from peftbench.training.batches import (
    IGNORED,
    collate,
    derived_seed,
    encode,
    epoch_order,
    global_batches,
)
from peftbench.training.features import LiveImages
from peftbench.training.optimizer import lr_factor, warmup_steps
from tiny_llava import NAMES, PROMPT, encoded_batch, load_tiny, world


def test_labels_are_the_answer_and_the_end_token():
    base = load_tiny()
    items, batch = encoded_batch(base)
    examples = read_examples(world().data, "train")[: len(items)]
    for row, (example, (encoded, _)) in enumerate(zip(examples, items, strict=True)):
        labels = batch["labels"][row]
        supervised = labels[labels != IGNORED].tolist()
        assert base.tokenizer.decode(supervised) == f" {example.target}</s>"
        assert len(supervised) == encoded.supervised
        first = int((labels != IGNORED).nonzero()[0])
        ids = batch["input_ids"][row]
        assert ids[first:][labels[first:] != IGNORED].tolist() == supervised
        assert base.tokenizer.decode(ids[:first]).endswith("ASSISTANT:")
        assert (ids == base.image_token_id).sum() == (16 if example.image else 0)
        assert not (labels == base.image_token_id).any()
        assert int(batch["attention_mask"][row].sum()) == len(encoded.ids)


def test_ids_equal_those_of_the_processor():
    base = load_tiny()
    items, _ = encoded_batch(base, count=3)
    for example, (encoded, _) in zip(read_examples(world().data, "train"), items, strict=False):
        from peftbench.data.load import load_image

        text = encoded.prompt + f" {example.target}</s>"
        image = load_image(world().images, example.image)
        out = base.processor(images=[image], text=[text], return_tensors="pt")
        assert out["input_ids"][0].tolist() == encoded.ids.tolist()
        pixels = LiveImages(base, world().images).load(example.image)["pixel_values"]
        assert torch.equal(out["pixel_values"], pixels)


def test_vicuna_template_word_for_word():
    from peftbench.models.template import render_chat

    prompt = render_chat("vicuna_v1", "What is it?", True, None, "<image>", "</s>")
    assert prompt == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions. USER: <image>\nWhat is it? ASSISTANT:"
    )
    full = render_chat("vicuna_v1", "What is it?", True, "a cat", "<image>", "</s>")
    assert full == prompt + " a cat</s>"
    assert "<image>" not in render_chat("vicuna_v1", "What is it?", False, None, "<image>", "</s>")


def test_prompts_are_drawn_by_picture_and_filled():
    import msgspec

    from peftbench.models.template import user_text

    example = msgspec.structs.replace(read_examples(world().data, "train")[0], choices=["x", "y {z}"])
    assert user_text(Prompt(templates=["{question} {choices} {lettered}"]), example) == (
        "what colour is the square ? x, y {z} A. x B. y {z}"
    )
    several = Prompt(templates=["a", "b", "c"])

    def draw(**changes: str) -> list[str]:
        return [
            user_text(
                several, msgspec.structs.replace(example, **{k: v + str(i) for k, v in changes.items()})
            )
            for i in range(300)
        ]

    for change in ({"image": "f"}, {"image": "f", "id": "x"}):
        drawn = draw(**change)
        assert drawn == draw(**change) == draw(image="f")  # by the picture alone
        assert all(80 < drawn.count(letter) < 120 for letter in "abc")
    assert len(set(draw(id="x"))) == 1  # examples of one picture ask in the same words
    text_only = [
        user_text(several, msgspec.structs.replace(example, image="", id=str(i))) for i in range(300)
    ]
    assert all(80 < text_only.count(letter) < 120 for letter in "abc")
    with pytest.raises(UserError, match=r"prompt: cannot fill '\{answer\}'"):
        user_text(Prompt(templates=["{answer}"]), example)


@pytest.mark.parametrize(
    ("change", "max_length", "message"),
    [
        ({"target": "  "}, 200, "example train-0: the training target is empty"),
        ({"question": "is <image> here"}, 200, "contains the image placeholder"),
        ({}, 20, r"1 of 1 examples are longer than max_length 20 tokens \(first: train-0 with \d+\)"),
        ({"image": "0" * 64}, 200, None),
    ],
)
def test_bad_rows_are_named(change, max_length, message):
    import msgspec

    base = load_tiny()
    images = LiveImages(base, world().images)
    example = msgspec.structs.replace(read_examples(world().data, "train")[0], **change)
    if message is None:
        with pytest.raises(UserError, match="image is missing"):
            images.load(example.image)
    else:
        with pytest.raises(UserError, match=message):
            encode(base, images, NAMES, PROMPT, [example], max_length, answers=True)


def test_unknown_template_lists_the_known():
    from peftbench.models.template import template_path

    with pytest.raises(UserError, match="no chat template 'vicuna'; did you mean 'vicuna_v1'"):
        template_path("vicuna")


def test_order_comes_from_seed_and_epoch_alone():
    assert sorted(epoch_order(100, 1, 0)) == list(range(100))
    assert epoch_order(100, 1, 0) == epoch_order(100, 1, 0)
    orders = {tuple(epoch_order(100, seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}
    assert len(orders) == 4
    before = torch.get_rng_state()
    epoch_order(100, 1, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert derived_seed(1, "order", 0) != derived_seed(1, "dropout", 0)


def test_batches_cover_each_example_once_and_are_sorted_by_length():
    lengths = [i % 7 for i in range(20)]
    batches = list(global_batches(lengths, 8, seed=3, epoch=0))
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert sorted(i for batch in batches for i in batch) == list(range(20))
    order = epoch_order(20, 3, 0)
    for at, batch in enumerate(batches):
        assert set(batch) == set(order[at * 8 : at * 8 + 8])
        assert [lengths[i] for i in batch] == sorted((lengths[i] for i in batch), reverse=True)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("total", "ratio"), [(60, 0.03), (10, 0.0), (7, 0.5)])
def test_schedule_equals_transformers(schedule, total, ratio):
    from transformers import get_scheduler

    name = "constant_with_warmup" if schedule == "constant" else schedule
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    warmup = warmup_steps(total, ratio)
    assert warmup == math.ceil(total * ratio)
    reference = get_scheduler(name, optimizer, warmup, total)
    for step in range(total):
        assert lr_factor(schedule, step, warmup, total) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()


def test_collate_needs_no_image():
    items, _ = encoded_batch(load_tiny())
    batch = collate([item for item in items if not item[1]], 3, left=True)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_plain_template_is_the_form_the_tiny_model_was_trained_on():
    from peftbench.models.template import render_chat
    from peftbench.models.tiny.exposure import turn

    for example in (read_examples(world().data, "train")[0], read_examples(world().data, "train")[7]):
        prompt, answer = turn(example, "vqav2")
        image = bool(example.image)
        assert render_chat("plain", example.question, image, None, "<image>", "</s>") == prompt
        full = render_chat("plain", example.question, image, example.target, "<image>", "</s>")
        assert full == prompt + answer + "</s>"
