"""The port of Qwen-VL-Chat computes what its description says: against Qwen2, and against slow references."""

from __future__ import annotations

import copy
import math
from functools import cache
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from peftbench.models.qwen_vl import QwenVLConfig, QwenVLForConditionalGeneration
from peftbench.models.qwen_vl.vision import resize_grid, sin_cos_positions
from qwen_vl_folder import FULL_SIZE, hub_config, hub_shapes, hub_weights
from qwen_vl_reference import bicubic, reference_logits, reference_vision

QUERIES = 16


def make(train=False, dtype=torch.float32, **changes):
    """A tiny model with the hub's tensor names, loaded strictly."""
    raw = hub_config(**copy.deepcopy(changes))
    known = set(QwenVLConfig().to_dict()) - {"transformers_version", "architectures"}
    torch.set_num_threads(1)
    model = QwenVLForConditionalGeneration(QwenVLConfig(**{k: v for k, v in raw.items() if k in known}))
    model.load_state_dict(hub_weights(raw), strict=True)
    return model.to(dtype).train(train)


@cache
def shared():
    return make()


def text_ids(*lengths, seed=0):
    """Rows of ordinary ids, padded on the left with 0, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids, mask = (
        torch.zeros(len(lengths), width, dtype=torch.long),
        torch.zeros(len(lengths), width, dtype=torch.long),
    )
    for row, length in enumerate(lengths):
        ids[row, width - length :] = torch.randint(1, 290, (length,), generator=generator)
        mask[row, width - length :] = 1
    return ids, mask


def with_image(ids, row, at, start_id=None):
    """Put ``<img>``, 16 placeholders and ``</img>`` into a row."""
    start = hub_config()["visual"]["image_start_id"] if start_id is None else start_id
    ids[row, at : at + QUERIES + 2] = torch.tensor([start, *[start + 2] * QUERIES, start + 1])


def pixels(count, seed=1, size=112):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


# The whole ---------------------------------------------------------------------------------------------------


def test_the_published_size_has_every_name_and_shape():
    raw = hub_config(**copy.deepcopy(FULL_SIZE))
    expected = hub_shapes(raw)
    with torch.device("meta"):
        model = QwenVLForConditionalGeneration(QwenVLConfig(visual=raw["visual"]))
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == expected
    assert len(expected) == 853
    assert sum(p.numel() for p in model.parameters()) == 9_656_935_168
    assert sum(math.prod(shape) for shape in expected.values()) * 2 == 19_313_870_336
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [
        "transformer.visual.attn_pool.pos_embed"
    ]
    assert model.config.to_dict()["hidden_size"] == 4096  # the defaults are the published sizes


def test_short_sequences_are_qwen2():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = hub_config()
    other = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=512,
            hidden_size=128,
            intermediate_size=344,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            max_position_embeddings=8192,
            tie_word_embeddings=False,
        )
    ).eval()
    renamed = {}
    for name, tensor in hub_weights(config).items():
        if "visual" in name:
            continue
        name = name.replace("transformer.h.", "model.layers.").replace(
            "transformer.wte", "model.embed_tokens"
        )
        name = name.replace("transformer.ln_f", "model.norm").replace("ln_1", "input_layernorm")
        name = name.replace("ln_2", "post_attention_layernorm").replace("attn.c_proj", "self_attn.o_proj")
        name = (
            name.replace("mlp.w2", "mlp.gate_proj")
            .replace("mlp.w1", "mlp.up_proj")
            .replace("mlp.c_proj", "mlp.down_proj")
        )
        if "c_attn" in name:
            for letter, part in zip("qkv", tensor.float().chunk(3), strict=True):
                renamed[name.replace("attn.c_attn", f"self_attn.{letter}_proj")] = part
        else:
            renamed[name] = tensor.float()
    other.load_state_dict(renamed, strict=True)
    ids, mask = text_ids(200, 120, 33)
    with torch.no_grad():
        ours = shared()(input_ids=ids, attention_mask=mask).logits
        theirs = other(
            input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)
        ).logits
        assert (ours - theirs)[mask.bool()].abs().max() < 1e-6 * theirs.abs().max()
        # in training nothing changes beyond seq_length either
        long = make(train=True, seq_length=64)(input_ids=ids, attention_mask=mask).logits
    assert (long - theirs)[mask.bool()].abs().max() < 1e-6 * theirs.abs().max()


@pytest.mark.parametrize("length", [30, 64, 65, 100, 128, 129, 300])
def test_beyond_seq_length_against_the_formulas(length):
    config = hub_config(seq_length=64)
    model = make(seq_length=64)
    ids, _ = text_ids(length, seed=length)
    expected = reference_logits(model.state_dict(), config, model.transformer.wte(ids)[0].detach())
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].double()
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()
    if length > 64:  # and it matters: training, which has neither, differs
        plain = reference_logits(
            model.state_dict(), config, model.transformer.wte(ids)[0].detach(), training=True
        )
        assert (plain - expected).abs().max() > 1e-2 * expected.abs().max()


@pytest.mark.parametrize(("prefill", "total"), [(100, 110), (60, 70), (120, 140), (20, 30)])
def test_decoding_keeps_the_alpha_of_the_prefill(prefill, total):
    config = hub_config(seq_length=64)
    model = make(seq_length=64)
    ids, _ = text_ids(total, seed=prefill)
    with torch.no_grad():
        out = model(input_ids=ids[:, :prefill], use_cache=True)
        logits = [out.logits[0]]
        for t in range(prefill, total):
            out = model(input_ids=ids[:, t : t + 1], past_key_values=out.past_key_values, use_cache=True)
            logits.append(out.logits[0])
        embeds = model.transformer.wte(ids)[0]
        full = model(input_ids=ids).logits[0]
    stepwise = torch.cat(logits)
    expected = reference_logits(model.state_dict(), config, embeds, prefill=prefill)
    # keys of the prefill were rotated with its alpha, later ones with the same
    assert (stepwise.double() - expected)[prefill:].abs().max() < 1e-5 * expected.abs().max()
    same_alpha = math.ceil(math.log2(prefill / 64)) == math.ceil(math.log2(total / 64)) or total <= 64
    assert ((stepwise - full).abs().max() < 1e-5 * full.abs().max()) == same_alpha


@pytest.mark.parametrize("size", [112, 224, 448])
def test_vision_against_a_slow_reference(size):
    # 8 x 8 and 32 x 32 patches: the tower's 16 x 16 positions are resized; 16 x 16: taken as they are
    config, model, image = hub_config(), shared(), pixels(1, seed=size, size=size)
    weights = model.state_dict()
    with torch.no_grad():
        tokens = model.get_image_features(image)[0]
    expected = reference_vision(weights, config, image[0])
    assert tokens.shape == (QUERIES, 128)
    assert (tokens.double() - expected).abs().max() < 1e-5 * expected.abs().max()


def test_images_of_other_shapes_and_tables_of_positions():
    table = torch.randn(256, 12, generator=torch.Generator().manual_seed(0))
    assert (resize_grid(table, 10, 21) - bicubic(table, 10, 21)).abs().max() < 1e-5
    assert resize_grid(table, 16, 16) is table
    side, channels = 4, 128
    from qwen_vl_folder import _sines

    assert (sin_cos_positions(channels, side) - torch.from_numpy(_sines(side, channels))).abs().max() < 1e-6


def test_an_image_takes_the_places_between_its_tags():
    config, model = hub_config(), shared()
    ids, _ = text_ids(50)
    with_image(ids, 0, 10)
    images = pixels(2)
    with torch.no_grad():
        features = model.get_image_features(images)
        embeds = model.transformer.wte(ids)[0].clone()
        embeds[11 : 11 + QUERIES] = features[0]
        expected = reference_logits(model.state_dict(), config, embeds)
        logits = [model(input_ids=ids, pixel_values=images[i : i + 1]).logits[0] for i in range(2)]
        text = model(input_ids=ids).logits[0]
    assert (logits[0].double() - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (logits[0] - logits[1])[27:].abs().max() > 1e-2
    assert torch.equal(logits[0][:11], logits[1][:11])  # causal
    assert (text - logits[0])[27:].abs().max() > 1e-2


def test_images_and_placeholders_must_match():
    model = shared()
    ids, _ = text_ids(50)
    with_image(ids, 0, 10)
    with pytest.raises(ValueError, match="2 images have 32 tokens, but input_ids hold 16"):
        model(input_ids=ids, pixel_values=pixels(2))
    with pytest.raises(ValueError, match="pixel_values need input_ids"):
        model(inputs_embeds=model.transformer.wte(ids), pixel_values=pixels(1))
    with pytest.raises(ValueError, match="exactly one"):
        model()


def mixed_batch():
    """Rows with an image, without, and with two."""
    ids, mask = text_ids(60, 35, 48, 20)
    with_image(ids, 0, 5)
    with_image(ids, 2, 14)
    with_image(ids, 2, 14 + QUERIES + 4)
    return ids, mask, pixels(3)


def single(ids, mask, images, row):
    """One row of the mixed batch alone."""
    own = {0: images[:1], 1: None, 2: images[1:], 3: None}[row]
    return {"input_ids": ids[row, mask[row].bool()][None], "pixel_values": own}


@pytest.mark.parametrize("limit", [2048, 32])
def test_a_padded_batch_is_its_rows_one_by_one(limit):
    model = make(seq_length=limit)
    ids, mask, images = mixed_batch()
    with torch.no_grad():
        left = model(input_ids=ids, attention_mask=mask, pixel_values=images).logits
        for row in range(len(ids)):
            alone = model(**single(ids, mask, images, row)).logits[0]
            assert (left[row, mask[row].bool()] - alone).abs().max() < 1e-4
        # padding on the right, as in training
        flipped = torch.zeros_like(ids)
        for row, length in enumerate(mask.sum(1)):
            flipped[row, :length] = ids[row, mask[row].bool()]
        right = model(input_ids=flipped, attention_mask=mask.flip(1), pixel_values=images).logits
    for row, length in enumerate(mask.sum(1)):
        assert (right[row, :length] - left[row, mask[row].bool()]).abs().max() < 1e-4


@pytest.mark.parametrize("limit", [2048, 32])
def test_generation_in_batches_with_a_cache_is_that_of_single_rows(limit):
    model = make(seq_length=limit)
    ids, mask, images = mixed_batch()
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    batch = model.generate(input_ids=ids, attention_mask=mask, pixel_values=images, **settings)[
        :, ids.shape[1] :
    ]
    assert len({tuple(row) for row in batch.tolist()}) == len(ids)
    for row in range(len(ids)):
        inputs = {k: v for k, v in single(ids, mask, images, row).items() if v is not None}
        width = inputs["input_ids"].shape[1]
        alone = model.generate(**inputs, **settings)[0, width:]
        assert alone.tolist() == batch[row].tolist()
        if limit == 2048:  # beyond seq_length a cache keeps alpha, growing prompts do not
            bare = model.generate(**inputs, use_cache=False, **settings)[0, width:]
            assert bare.tolist() == batch[row].tolist()


def test_eager_is_sdpa():
    ids, mask, images = mixed_batch()
    logits = []
    for implementation in ("sdpa", "eager"):
        model = make(seq_length=32)
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            logits.append(model(input_ids=ids, attention_mask=mask, pixel_values=images).logits[mask.bool()])
    assert (logits[0] - logits[1]).abs().max() < 1e-4


def test_gradient_checkpointing_changes_nothing():
    ids, mask, images = mixed_batch()
    labels = ids.masked_fill(mask == 0, -100)
    results = []
    for checkpointing in (False, True):
        model = make(train=True, emb_dropout_prob=0.1, attn_dropout_prob=0.1)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        out = model(input_ids=ids, attention_mask=mask, pixel_values=images, labels=labels, use_cache=False)
        out.loss.backward()
        results.append((out.loss, {n: p.grad for n, p in model.named_parameters()}))
    (loss, grads), (loss_again, grads_again) = results
    assert torch.equal(loss, loss_again)
    assert grads["transformer.visual.attn_pool.pos_embed"] is None
    for name, grad in grads.items():
        if grad is not None:
            assert torch.equal(grad, grads_again[name]), name
    without = {name for name, grad in grads.items() if grad is None or not grad.any()}
    assert without == {"transformer.visual.attn_pool.pos_embed"}


def test_logits_to_keep_and_recorded_states():
    model = shared()
    ids, mask, images = mixed_batch()
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": images, "use_cache": False}
    keep = torch.tensor([7, 30, 58])
    with torch.no_grad():
        every = model(**inputs)
        some = model(**inputs, logits_to_keep=keep).logits
        last = model(**inputs, logits_to_keep=1).logits
        states = model(**inputs, output_hidden_states=True).hidden_states
    assert torch.allclose(some, every.logits[:, keep], atol=1e-5)
    assert torch.allclose(last, every.logits[:, -1:], atol=1e-5)
    assert every.past_key_values is None
    assert len(states) == 3 and torch.allclose(model.lm_head(states[-1]), every.logits, atol=1e-5)
    outputs = SimpleNamespace(**model(**inputs, labels=ids))
    shifted = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert torch.allclose(outputs.loss, shifted)


def test_bf16_runs_and_stays_near_fp32():
    ids, mask, images = mixed_batch()
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": images}
    with torch.no_grad():
        exact = shared()(**inputs).logits[mask.bool()]
        coarse = make(dtype=torch.bfloat16)(**inputs).logits[mask.bool()]
    assert coarse.dtype == torch.bfloat16
    assert (coarse.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_initial_weights_are_drawn_and_the_constant_table_is_right():
    torch.manual_seed(0)
    model = QwenVLForConditionalGeneration(shared().config)
    own = dict(model.named_parameters())
    assert all(torch.isfinite(p).all() for p in own.values())
    weights = hub_weights(hub_config())
    name = "transformer.visual.attn_pool.pos_embed"
    assert (own[name] - weights[name]).abs().max() < 4e-3  # stored in bf16
    assert own["transformer.visual.proj"].std() > 0 and own["transformer.visual.attn_pool.query"].std() > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"no_bias": False}, "no_bias"),
        ({"rotary_pct": 0.5}, "rotary_pct"),
        ({"hidden_size": 64}, "hidden_size must be"),
        ({"visual": {"n_queries": 15}}, "n_queries must be a square"),
        ({"visual": {"output_dim": 64}}, "output_dim must be hidden_size"),
        ({"visual": {"image_start_id": 511}}, "image_start_id"),
        ({"visual": {"depth": 3}}, "visual.depth is not known"),
    ],
)
def test_configurations_that_the_port_does_not_compute_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        make(**changes)
