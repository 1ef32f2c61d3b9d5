"""Every model file on a tiny checkpoint in its repository's layout: building, names, inputs, generation."""

import re

import pytest
import torch

from model_world import MODELS, PROMPT, built, encoded, examples, images_folder, load
from model_zoo import model_names
from peftbench.data.load import load_image
from peftbench.evaluation.generate import decode, greedy
from peftbench.models.arch import COMPONENTS, decoder_layers, measure_dims, partition, target_regex
from peftbench.models.template import render_chat, user_text
from peftbench.training.batches import IGNORED, collate


def stock_inputs(base, name, row):
    """What the family's own processor makes of one example with its answer, in one call."""
    names, example = model_names(name), examples()[row]
    tokens = (base.image_token, base.tokenizer.eos_token, base.tokenizer.bos_token or "")
    text = user_text(PROMPT, example)
    image = load_image(images_folder(), example.image)
    if names.template == "paligemma":  # puts start token, line end and end token in itself
        task = f"{base.image_token}answer en {text}"
        inputs = base.processor(images=[image], text=[task], suffix=[example.target], return_tensors="pt")
        del inputs["labels"]
        return inputs
    full = render_chat(names.template, text, True, example.target, *tokens)
    return base.processor(images=[image], text=[full], return_tensors="pt")


def logits(model, inputs):
    with torch.no_grad():
        return model(**{key: value for key, value in inputs.items() if key != "labels"}).logits


@pytest.mark.parametrize("name", MODELS)
def test_names_fit(name):
    base, names = load(name), model_names(name)
    layers = decoder_layers(base.model, names)
    assert len(layers) == 2
    dims = measure_dims(base.model, names)
    components = partition(base.model, names)
    assert set(components) == {path for path, _ in base.model.named_parameters()}
    assert {"language", "connector", "vision"} <= set(components.values()) <= set(COMPONENTS)
    targets = re.compile(target_regex(names, [*dims.attention, *dims.mlp, names.attention_module]))
    hit = [path for path, _ in base.model.named_modules() if targets.fullmatch(path)]
    assert len(hit) == 2 * (len(dims.attention) + len(dims.mlp) + 1)
    for path in hit:
        assert {c for p, c in components.items() if p.startswith(path + ".")} == {"language"}


@pytest.mark.parametrize("name", MODELS)
def test_batch_equals_the_family_s_own_processor(name):
    """Ids, types of tokens, pixels and logits: of a padded batch, against single calls of the stock classes."""
    base = load(name)
    _, items = encoded(base, name)
    batch = collate(items, base.pad_token_id, left=False)
    assert set(batch) - {"labels"} <= base.accepted
    together = logits(base.model, batch)
    for row, (encoded_row, tensors) in enumerate(items):
        if not encoded_row.image:
            continue
        stock = stock_inputs(base, name, row)
        length = stock["input_ids"].shape[1]
        assert stock["input_ids"][0].tolist() == encoded_row.ids[:length].tolist()
        # Qwen-VL's label policy appends the line end after the turn
        assert length == len(encoded_row.ids) - (model_names(name).labels == "chat_marks")
        for key, value in stock.items():
            if key in tensors:
                assert torch.equal(value, tensors[key]), key
            elif key in batch:
                assert torch.equal(value[0], batch[key][row, :length]), key
            else:
                assert key not in base.accepted, key
        stock = {key: value for key, value in stock.items() if key in base.accepted}
        torch.testing.assert_close(logits(base.model, stock)[0], together[row, :length], atol=2e-4, rtol=1e-4)
    # a text alone, unpadded
    text_row = len(items) - 1
    alone = logits(base.model, collate(items[-1:], base.pad_token_id, left=False))
    torch.testing.assert_close(together[text_row, : alone.shape[1]], alone[0], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_labels_are_answer_and_end(name):
    base = load(name)
    _, items = encoded(base, name)
    batch = collate(items, base.pad_token_id, left=False)
    for row, (encoded_row, _) in enumerate(items):
        labels = batch["labels"][row]
        learnt = labels[labels != IGNORED].tolist()
        assert len(learnt) == encoded_row.supervised
        if model_names(name).labels == "answer":
            assert learnt[-1] in base.end_tokens()
            text = base.tokenizer.decode(learnt[:-1], clean_up_tokenization_spaces=False)
            assert text.removeprefix(" ") == examples()[row].target
        image_ids = [base.image_token_id, getattr(base.model.config, "image_token_id", base.image_token_id)]
        assert not set(image_ids) & set(learnt)
        # where the padding token is the end token, the real one still counts
        assert int(batch["attention_mask"][row].sum()) == len(encoded_row.ids)


@pytest.mark.parametrize("name", MODELS)
def test_the_image_changes_the_logits(name):
    base = load(name)
    _, items = encoded(base, name, which=slice(0, 1))
    batch = collate(items, base.pad_token_id, left=False)
    before = logits(base.model, batch)[0, -2]
    other = batch | {"pixel_values": batch["pixel_values"].flip(0) * -1.0}
    assert (logits(base.model, other)[0, -2] - before).abs().max() > 1e-3
    torch.testing.assert_close(logits(base.model, batch)[0, -2], before)


def by_hand(base, encoded_row, tensors, steps):
    """Greedy decoding of one prompt without padding and without a cache."""
    ids, ends = encoded_row.ids.tolist(), base.end_tokens()
    start = len(ids)
    for _ in range(steps):
        types = {key: torch.tensor([v]) for key, v in base.token_types(ids, start).items()}
        inputs = {"input_ids": torch.tensor([ids]), **types, **tensors}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            token = int(base.model(**inputs, use_cache=False).logits[0, -1].argmax())
        ids.append(token)
        if token in ends:
            break
    return decode(base, ids[start:], ends)


@pytest.mark.parametrize("name", MODELS)
def test_batched_generation_equals_single_equals_no_cache(name):
    base = load(name)
    images, items = encoded(base, name, answers=False)
    prompts = [encoded_row for encoded_row, _ in items]
    assert len({len(p.ids) for p in prompts}) > 1
    expected = [by_hand(base, *item, 5) for item in items]
    assert len({answer.text for answer in expected}) > 1
    for size in (1, 5):
        assert greedy(base, images, prompts, 5, size) == expected


@pytest.mark.parametrize("name", MODELS)
def test_processor_without_torchvision_saves_and_pickles(name, tmp_path):
    import pickle

    from peftbench.models.processors import load_processor

    processor = load(name).processor
    image = load_image(images_folder(), examples()[1].image)
    pixels = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    assert type(processor.image_processor).__name__.endswith("Pil")
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((built(name) / "config.json").read_bytes())
    for other in (pickle.loads(pickle.dumps(processor)), load_processor(tmp_path)):
        assert type(other).__name__ == type(processor).__name__
        assert type(other).__name__ != "ImagesOnly"
        again = other.image_processor(images=[image], return_tensors="pt")["pixel_values"]
        assert torch.equal(again, pixels)
        assert (
            other.tokenizer("what <image> is it")["input_ids"]
            == processor.tokenizer("what <image> is it")["input_ids"]
        )
