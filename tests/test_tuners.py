"""The two tuners of ours: registered with peft, right in value, saved and loaded by stock peft."""

import pytest
import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from safetensors.torch import load_file

from peftbench.models.arch import target_regex
from peftbench.training.adapt import attach, restore, save
from peftbench.tuners.bottleneck import BottleneckConfig, BottleneckLayer, BottleneckModel
from peftbench.tuners.kv_prefix import KVPrefixConfig, KVPrefixLayer, KVPrefixModel, fold
from peftbench.tuners.registry import add_peft_type, register
from tiny_llava import NAMES, SETTINGS, encoded_batch, load_tiny, train_spec, world


def shaken(tuned, seed=3):
    """Replace the trainable values by large random ones, so that every adapter matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in [*tuned.method_parameters.values(), *tuned.connector_parameters.values()]:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return tuned


def logits(model, batch):
    with torch.no_grad():
        return model(**{k: v for k, v in batch.items() if k != "labels"}).logits


@pytest.mark.parametrize(
    ("name", "config", "model", "prefix"),
    [
        ("BOTTLENECK", BottleneckConfig, BottleneckModel, "bottleneck_"),
        ("KV_PREFIX", KVPrefixConfig, KVPrefixModel, "kv_prefix_"),
    ],
)
def test_peft_knows_the_tuner(name, config, model, prefix):
    # the private parts of peft and enum that registration relies on; a new peft must pass this
    member = PeftType[name]
    assert member == name
    assert PeftType(name) is member and getattr(PeftType, name) is member
    assert member in list(PeftType)
    assert PEFT_TYPE_TO_CONFIG_MAPPING[member] is config
    assert PEFT_TYPE_TO_TUNER_MAPPING[member] is model
    assert PEFT_TYPE_TO_PREFIX_MAPPING[member] == prefix
    assert config().peft_type is member
    before = list(PeftType)
    add_peft_type(name)
    register(name, config, model)  # again: nothing happens
    assert list(PeftType) == before


def test_bottleneck_computes_the_series_form():
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 4)
    x = torch.randn(2, 5, 6)
    config = BottleneckConfig(bottleneck_size=3, adapter_dropout=0.0, scaling=0.5)
    for on_input in (True, False):
        layer = BottleneckLayer(linear, "default", config, on_input=on_input).eval()
        down, up = layer.bottleneck_down["default"].weight, layer.bottleneck_up["default"].weight
        assert down.shape == (3, 6 if on_input else 4)
        h = x if on_input else linear(x)
        h = h + 0.5 * (torch.tanh(h @ down.T) @ up.T)
        expected = linear(h) if on_input else h
        torch.testing.assert_close(layer(x), expected)
        with pytest.raises(NotImplementedError):
            layer.merge()


def test_bottleneck_initial_values():
    torch.manual_seed(0)
    layer = BottleneckLayer(torch.nn.Linear(400, 400), "default", BottleneckConfig(), on_input=True)
    for weights in (layer.bottleneck_down["default"].weight, layer.bottleneck_up["default"].weight):
        assert abs(float(weights.detach().std()) - 0.02) < 0.001
        assert abs(float(weights.detach().mean())) < 0.001
    assert layer.bottleneck_dropout["default"].p == 0.05
    assert layer.bottleneck_down["default"].bias is None


def test_bottleneck_dropout_acts_on_the_adapter_only():
    config = BottleneckConfig(bottleneck_size=3, adapter_dropout=0.999)
    layer = BottleneckLayer(torch.nn.Linear(64, 64), "default", config, on_input=True).train()
    x = torch.randn(1, 64)
    torch.testing.assert_close(layer(x), layer.base_layer(x), atol=2.0, rtol=0)
    assert not torch.equal(layer.eval()(x), layer.base_layer(x))


def test_identity_start_is_the_base_model():
    base = load_tiny()
    _, batch = encoded_batch(base)
    plain = logits(base.model, batch)
    tuned = attach(base, train_spec("adapter", settings=SETTINGS["adapter"] | {"init": "identity"}))
    assert torch.equal(logits(tuned.model.eval(), batch), plain)
    base = load_tiny()
    tuned = attach(base, train_spec("adapter"))
    assert not torch.equal(logits(tuned.model.eval(), batch), plain)  # N(0, 0.02) in both: the paper's code


@pytest.mark.parametrize("method", ["adapter", "prefix", "lora", "ia3"])
def test_stock_peft_loads_what_we_save(method, tmp_path):
    base = load_tiny()
    _, batch = encoded_batch(base)
    tuned = shaken(attach(base, train_spec(method, connector="frozen")))
    expected = logits(tuned.model.eval(), batch)
    save(tuned, tmp_path, "tiny")
    assert PeftConfig.from_pretrained(str(tmp_path / "adapter")).base_model_name_or_path == "tiny"
    fresh = load_tiny()
    loaded = PeftModel.from_pretrained(fresh.model, str(tmp_path / "adapter")).eval()
    assert torch.equal(logits(loaded, batch), expected)
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded, batch), logits(load_tiny().model, batch))
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == tuned.trainable["method"]


def prefixed(seed=1, **settings):
    torch.manual_seed(seed)
    base = load_tiny()
    return base, shaken(attach(base, train_spec("prefix", settings={"tokens": 5} | settings)))


def test_prefix_equals_attention_over_longer_keys():
    """One attention module against the formula, with grouped heads and a causal mask."""
    base, _ = prefixed()
    layer = base.model.model.language_model.layers[0].self_attn
    assert isinstance(layer, KVPrefixLayer)
    attention = layer.get_base_layer()
    assert attention.num_key_value_groups == 2
    x = torch.randn(2, 7, 32)
    cos, sin = base.model.model.language_model.rotary_emb(x, torch.arange(7)[None])
    causal = torch.ones(7, 7, dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        got = layer(hidden_states=x, position_embeddings=(cos, sin), attention_mask=causal)[0]

        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        def heads(projection):
            return projection(x).view(2, 7, -1, 8).transpose(1, 2)

        q, k, v = heads(attention.q_proj), heads(attention.k_proj), heads(attention.v_proj)
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        k = torch.cat([layer.kv_prefix_k["default"].expand(2, -1, -1, -1), k], 2).repeat_interleave(2, 1)
        v = torch.cat([layer.kv_prefix_v["default"].expand(2, -1, -1, -1), v], 2).repeat_interleave(2, 1)
        scores = q @ k.transpose(-1, -2) / 8**0.5
        visible = torch.cat([torch.ones(7, 5, dtype=torch.bool), causal[0, 0]], 1)
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        expected = attention.o_proj((weights @ v).transpose(1, 2).reshape(2, 7, 32))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["prefix", "adapter"])
def test_padding_side_does_not_matter(method):
    base = load_tiny()
    tuned = shaken(attach(base, train_spec(method)))
    tuned.model.eval()
    items, right = encoded_batch(base)
    _, left = encoded_batch(base, left=True)
    left["position_ids"] = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)
    from_left, from_right = logits(tuned.model, left), logits(tuned.model, right)
    width = right["input_ids"].shape[1]
    assert len({len(encoded.ids) for encoded, _ in items}) > 2
    for row, (encoded, _) in enumerate(items):
        n = len(encoded.ids)
        torch.testing.assert_close(from_left[row, width - n :], from_right[row, :n], atol=2e-5, rtol=1e-4)


def test_prefix_is_causal_and_seen_by_all():
    base, tuned = prefixed()
    tuned.model.eval()
    _, batch = encoded_batch(base, count=1)
    before = logits(tuned.model, batch)
    changed = {k: v.clone() for k, v in batch.items()}
    changed["input_ids"][0, -1] = 7
    after = logits(tuned.model, changed)
    torch.testing.assert_close(after[:, :-1], before[:, :-1], atol=1e-6, rtol=0)
    with torch.no_grad():
        tuned.model.base_model.model.model.language_model.layers[0].self_attn.kv_prefix_v["default"] += 1.0
    assert (logits(tuned.model, batch) - before).abs().amax(-1).min() > 1e-4  # even the first token sees it


def test_no_prefix_is_the_base_model_bit_for_bit():
    base = load_tiny()
    _, batch = encoded_batch(base)
    plain = logits(base.model, batch)
    tuned = attach(base, train_spec("prefix"))
    tuned.model.eval()
    with tuned.model.disable_adapter():
        torch.testing.assert_close(logits(tuned.model, batch), plain, atol=1e-6, rtol=1e-6)


def test_eager_attention_carries_the_prefix_too():
    torch.manual_seed(1)
    base = load_tiny()
    _, batch = encoded_batch(base)
    base.model.set_attn_implementation("eager")
    eager = shaken(attach(base, train_spec("prefix")))
    base, sdpa = prefixed()
    torch.testing.assert_close(
        logits(eager.model.eval(), batch), logits(sdpa.model.eval(), batch), atol=2e-5, rtol=1e-4
    )


def test_flash_attention_is_refused_for_a_prefix():
    base = load_tiny()
    base.model.model.language_model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="needs attention sdpa or eager"):
        attach(base, train_spec("prefix"))


def test_gradient_checkpointing_gives_the_same_gradients():
    for method in ("prefix", "adapter", "lora", "ia3"):
        grads = []
        for checkpointing in (False, True):
            base = load_tiny(seed=5)
            torch.manual_seed(5)
            tuned = shaken(attach(base, train_spec(method)))
            if checkpointing:
                base.model.activation_checkpointing_enable({"use_reentrant": False})
            tuned.model.train()
            _, batch = encoded_batch(base)
            loss = tuned.model(**batch, use_cache=False).loss
            loss.backward()
            parameters = {**tuned.method_parameters, **tuned.connector_parameters}
            grads.append((loss.detach(), {name: p.grad for name, p in parameters.items()}))
        (loss, plain), (loss_again, checkpointed) = grads
        assert torch.equal(loss, loss_again)
        for name, grad in plain.items():
            assert grad is not None and grad.abs().max() > 0, name
            assert torch.equal(grad, checkpointed[name]), name


def test_projection_folds_into_the_plain_prefix(tmp_path):
    base, tuned = prefixed(projection=True, projection_size=24)
    _, batch = encoded_batch(base)
    tuned.model.eval()
    expected = logits(tuned.model, batch)
    tuned.model.train()
    tuned.model(**batch).loss.backward()
    assert all(p.grad is not None for p in tuned.method_parameters.values())
    assert all("projection" in name for name in tuned.method_parameters)
    tuned.model.eval()
    save(tuned, tmp_path, "tiny")
    assert torch.equal(logits(tuned.model, batch), expected)
    config = PeftConfig.from_pretrained(str(tmp_path / "adapter"))
    assert config.projection is False
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum(t.numel() for t in stored.values()) == 5 * 2 * 2 * 2 * 8
    fresh = load_tiny()
    again = attach(fresh, train_spec("prefix", settings={"tokens": 5, "projection": True}))
    restore(again, tmp_path)
    assert torch.equal(logits(again.model.eval(), batch), expected)
    fold(again.model)  # nothing left to fold
    assert torch.equal(logits(again.model, batch), expected)


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_below_one_are_refused(size):
    model = load_tiny().model
    with pytest.raises(ValueError, match="at least 1"):
        get_peft_model(
            model,
            BottleneckConfig(target_modules=target_regex(NAMES, ["mlp.down_proj"]), bottleneck_size=size),
        )
    with pytest.raises(ValueError, match="at least 1"):
        get_peft_model(
            model, KVPrefixConfig(target_modules=target_regex(NAMES, ["self_attn"]), num_virtual_tokens=size)
        )


def test_second_adapter_beside_the_first():
    base = load_tiny()
    _, batch = encoded_batch(base)
    tuned = shaken(attach(base, train_spec("adapter", connector="frozen")))
    model = tuned.model.eval()
    first = logits(model, batch)
    torch.manual_seed(9)
    model.add_adapter("other", model.peft_config["default"])
    assert torch.equal(logits(model, batch), first)
    model.set_adapter("other")
    assert not torch.equal(logits(model, batch), first)
    model.set_adapter("default")
    model.delete_adapter("other")
    assert torch.equal(logits(model, batch), first)
    assert world().base.is_dir()
