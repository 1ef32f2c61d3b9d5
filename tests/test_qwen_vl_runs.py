"""Qwen-VL-Chat tuned: its prompt and labels, what is trainable, saving and coming back, a whole run."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch

from peftbench.errors import UserError
from peftbench.models.labels import chat_marks_mask, chat_marks_tail
from peftbench.models.template import render_chat
from peftbench.spec import PredictSpec
from peftbench.training.adapt import attach, restore, save
from qwen_vl_folder import byte_pairs, folders, load_tiny_qwen, model_file
from tiny_llava import PROMPT, SETTINGS, make_data, make_tokenizer, train_spec

# Prompt and labels -------------------------------------------------------------------------------------------

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
USER = "<|im_start|>user\nPicture 1: <img><imgpad></img>\nwhat colour ?<|im_end|>\n<|im_start|>assistant\n"


def test_the_prompt_is_chatml():
    tokens = ("<imgpad>", "<|im_end|>")
    prompt = render_chat("chatml_qwen_vl", "what colour ?", True, None, *tokens)
    assert prompt == SYSTEM + USER
    assert render_chat("chatml_qwen_vl", "what colour ?", True, "red", *tokens) == prompt + "red<|im_end|>"
    text = render_chat("chatml_qwen_vl", "what colour ?", False, None, *tokens)
    assert text == SYSTEM + USER.replace("Picture 1: <img><imgpad></img>\n", "")


def test_chat_marks_are_learnt_in_every_turn():
    tokenizer = load_tiny_qwen().tokenizer
    prompt = tokenizer(SYSTEM + USER.replace("<imgpad>", "<imgpad>" * 16))["input_ids"]
    answer = tokenizer("red\nblue<|im_end|>")["input_ids"]
    tail = chat_marks_tail(tokenizer)
    ids = prompt + answer + tail
    mask = chat_marks_mask(ids, len(prompt), tokenizer)
    assert len(mask) == len(ids)
    learnt = tokenizer.decode([i for i, on in zip(ids, mask, strict=True) if on])
    # the first id is not among them: nothing predicts it
    assert learnt == "<|im_end|>\n<|im_start|><|im_end|>\n<|im_start|>red\nblue<|im_end|>\n"
    silent = tokenizer.decode([i for i, on in zip(ids, mask, strict=True) if not on])
    assert (
        silent
        == "<|im_start|>system\nYou are a helpful assistant.user\nPicture 1: <img>"
        + "<imgpad>" * 16
        + ("</img>\nwhat colour ?assistant\n")
    )
    assert chat_marks_mask(ids[:-1], len(prompt), tokenizer) == mask[:-1]
    assert chat_marks_mask([], 0, tokenizer) == []


def test_chat_marks_need_a_tokenizer_that_has_them():
    with pytest.raises(UserError, match=r"no <\|im_start\|>"):
        chat_marks_mask([1, 2], 1, make_tokenizer())


# Tuning ------------------------------------------------------------------------------------------------------


@cache
def data():
    return make_data(folders() / "data")


def tuning(method, connector="tuned", variant="qwen-vl-chat", **changes):
    settings = model_file(variant).methods.get(method, {}) | SETTINGS.get(method, {})
    return train_spec(
        method,
        model=model_file(variant).names,
        settings=settings,
        connector=connector,
        max_length=300,
        **changes,
    )


def full_size(variant, method, connector, settings):
    from peftbench.models.qwen_vl import QwenVLConfig, QwenVLForConditionalGeneration

    with torch.device("meta"):
        model = QwenVLForConditionalGeneration(QwenVLConfig())
        model.requires_grad_(False)
        run = train_spec(method, model=model_file(variant).names, settings=settings, connector=connector)
        return attach(SimpleNamespace(model=model), run)


@pytest.mark.parametrize(
    ("method", "count", "share"),
    [
        ("lora", 224_395_264, 2.271),
        ("adapter", 201_326_592, 2.042),
        ("ia3", 483_328, 0.005),
        ("prefix", 5_242_880, 0.054),
    ],
)
def test_counts_at_full_size_are_those_of_the_papers_code(method, count, share):
    settings = model_file().methods.get(method, {})
    tuned = full_size("qwen-vl-chat", method, "tuned", settings)
    assert tuned.trainable["method"] == count
    assert tuned.trainable["connector"] == 76_054_528 - 1_048_576  # without pos_embed
    assert round(100 * count / (count + 9_656_935_168), 3) == share
    targets = {n.rpartition(".")[0] for n in tuned.method_parameters}
    assert not any("visual" in name for name in targets)


def test_the_connector_as_coded_is_embeddings_and_head():
    tuned = full_size("qwen-vl-chat-as_coded", "ia3", "tuned", {})
    assert tuned.trainable["connector"] == 1_244_659_712
    assert {n.removeprefix("base_model.model.") for n in tuned.connector_parameters} == {
        "transformer.wte.weight",
        "lm_head.weight",
    }


@pytest.mark.parametrize("variant", ["qwen-vl-chat", "qwen-vl-chat-as_coded"])
@pytest.mark.parametrize("connector", ["tuned", "frozen"])
@pytest.mark.parametrize("method", ["lora", "ia3", "adapter", "prefix"])
def test_tuned_weights_come_back_bit_by_bit(tmp_path, method, connector, variant):
    run = tuning(method, connector, variant)
    torch.manual_seed(0)
    tuned = attach(load_tiny_qwen(), run)
    ids, mask, images = batch()
    untuned = forward(load_tiny_qwen().model, ids, mask, images)
    parameters = [*tuned.method_parameters.values(), *tuned.connector_parameters.values()]
    assert "transformer.visual.attn_pool.pos_embed" not in " ".join(tuned.connector_parameters)
    assert bool(tuned.connector_parameters) == (connector == "tuned")
    optimizer = torch.optim.AdamW(parameters, lr=3e-2)
    before = {n: p.clone() for n, p in tuned.model.named_parameters()}
    tuned.model.train()
    for _ in range(2):
        loss = tuned.model(
            input_ids=ids, attention_mask=mask, pixel_values=images, labels=ids, use_cache=False
        ).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    own = {id(p) for p in parameters}
    for name, parameter in tuned.model.named_parameters():
        assert torch.equal(before[name], parameter) == (id(parameter) not in own), name
    tuned.model.eval()
    logits = forward(tuned.model, ids, mask, images)
    assert (logits - untuned).abs().max() > 1e-2
    save(tuned, tmp_path / "run", "tiny-qwen-vl")
    again = attach(load_tiny_qwen(), run)
    restore(again, tmp_path / "run")
    again.model.eval()
    assert torch.equal(forward(again.model, ids, mask, images), logits)


def batch():
    start = len(byte_pairs()) + 214
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 290, (3, 40), generator=generator)
    ids[0, 3:21] = ids[2, 9:27] = torch.tensor([start, *[start + 2] * 16, start + 1])
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    return ids, mask, torch.randn(2, 3, 112, 112, generator=generator)


def forward(model, ids, mask, images):
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, pixel_values=images).logits[mask.bool()]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_prefix_is_seen_in_batches_in_generation_and_under_checkpointing(implementation):
    one = load_tiny_qwen()
    one.model.set_attn_implementation(implementation)
    torch.manual_seed(0)
    tuned = attach(one, tuning("prefix", "tuned"))
    with torch.no_grad():
        for parameter in tuned.method_parameters.values():
            parameter.normal_()
    ids, mask, images = batch()
    left, left_mask = ids.clone(), mask.flip(1)
    left[1, 10:] = ids[1, :30]
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    tuned.model.eval()
    together = tuned.model.generate(input_ids=left, attention_mask=left_mask, pixel_values=images, **settings)
    alone = tuned.model.generate(input_ids=ids[1:2, :30], **settings)
    bare = tuned.model.generate(input_ids=ids[1:2, :30], use_cache=False, **settings)
    assert together[1, 40:].tolist() == alone[0, 30:].tolist() == bare[0, 30:].tolist()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            one.model.gradient_checkpointing_enable({"use_reentrant": False})
        tuned.model.train()
        tuned.model.zero_grad()
        tuned.model(
            input_ids=ids, attention_mask=mask, pixel_values=images, labels=ids, use_cache=False
        ).loss.backward()
        gradients.append([p.grad.clone() for p in tuned.method_parameters.values()])
        assert all(g.abs().max() > 0 for g in gradients[-1])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("labels", ["answer", "chat_marks"])
def test_a_run_from_data_to_answers(tmp_path, labels):
    import polars as pl

    from peftbench.evaluation.generate import generate_predictions
    from peftbench.spec import Decoding, Execution
    from peftbench.training.loop import train_adapter

    rows, subset, store = data()
    cpu = Execution(device="cpu", gradient_checkpointing=labels == "chat_marks")
    own = msgspec.structs.replace(model_file().names, labels=labels)
    run = msgspec.structs.replace(tuning("lora", epochs=10), model=own)
    facts = train_adapter(run, folders() / "built-bin", rows, subset, store, tmp_path / "run", cpu)
    assert facts["losses"]["last"] < 0.7 * facts["losses"]["first"]
    same = {
        name: getattr(run, name)
        for name in ("model", "prompt", "method", "settings", "connector", "location", "precision")
    }
    predict = PredictSpec(**same, decoding=Decoding(max_new_tokens=8, batch_size=4))
    generate_predictions(
        predict, folders() / "built-bin", tmp_path / "run", rows, store, tmp_path / "out", cpu
    )
    table = pl.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert table["prompt"][0].startswith(SYSTEM) and table["finished"].sum() > 0
    colours = {"red", "green", "blue", "yellow"}
    assert any(answer in colours for answer in table["prediction"])


def test_nothing_of_the_prompt_but_the_marks_is_learnt():
    from peftbench.data.load import read_examples
    from peftbench.training.batches import encode
    from peftbench.training.features import LiveImages

    rows, _, store = data()
    one = load_tiny_qwen()
    examples = read_examples(rows, "train")[:8]
    for labels in ("answer", "chat_marks"):
        own = msgspec.structs.replace(model_file().names, labels=labels)
        for encoded in encode(one, LiveImages(one, store), own, PROMPT, examples, 300, answers=True):
            on = np_mask(encoded)
            learnt = one.tokenizer.decode(encoded.ids[on])
            target = next(e.target for e in examples if e.id == encoded.id)
            if labels == "answer":
                assert learnt == target + "<|im_end|>"
            else:
                assert learnt == f"<|im_end|>\n<|im_start|><|im_end|>\n<|im_start|>{target}<|im_end|>\n"
            assert encoded.supervised == on.sum()


def np_mask(encoded):
    if encoded.loss is not None:
        return encoded.loss
    return np.arange(len(encoded.ids)) >= encoded.prompt_length
