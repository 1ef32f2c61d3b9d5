"""Methods that train the base model's own weights: what they select, count, save, load and refuse."""

import json

import msgspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model_world import load as load_family
from model_world import outputs, steps, trainer_of
from model_world import train_spec as family_spec
from model_zoo import model_names
from peftbench.errors import UserError
from peftbench.evaluation.generate import generate_predictions
from peftbench.fingerprint import default_fingerprinter
from peftbench.models.arch import Dims, block_part, measure_dims, partition
from peftbench.models.load import load_base
from peftbench.spec import Execution, Optim
from peftbench.stages import components
from peftbench.training.adapt import attach, load_method, merge, restore, save
from peftbench.training.loop import train_adapter
from tiny_llava import NAMES, build, load_tiny, predict_spec, train_spec, world

MASKING = ["spider", "magnitude_mask", "random_mask"]
BLOCKS = ["selected", *MASKING, "l1_to_pretrained", "l2_to_pretrained", "dare", "grafting", "model_tailor"]
METHODS = [*BLOCKS, "half_ft", "full_lm", "bitfit"]
SETTINGS = {"grafting": {"steps": 1, "samples": 2}, "model_tailor": {"samples": 2}}
FAMILIES = ["qwen2.5-vl-3b", "gemma3-4b"]
"""Biases of query, key and value and a connector inside the tower; four norms a layer and norms in attention."""


def seven_billion():
    width, ffn, layers = 4096, 11008, 32
    shapes = [(width, width)] * 4 + [(width, ffn), (width, ffn), (ffn, width)]
    linear = dict(zip([*NAMES.attention, *NAMES.mlp], shapes, strict=True))
    block = {f"{leaf}.weight": i * o for leaf, (i, o) in linear.items()}
    block |= {"input_layernorm.weight": width, "post_attention_layernorm.weight": width}
    return Dims(
        layers=layers,
        attention=NAMES.attention,
        mlp=NAMES.mlp,
        linear=linear,
        kv_heads=32,
        head_dim=128,
        hidden=width,
        attention_module="self_attn",
        blocks=[block] * layers,
        outside=width,
        embeddings=2 * 32000 * width,
    )


BLOCK = 202_383_360
"""Parameters of a decoder layer of LLaMA 7B."""


@pytest.mark.parametrize(
    ("method", "location", "settings", "count"),
    [
        ("selected", "default", {}, 2 * BLOCK),
        ("spider", "default", {}, 2 * BLOCK),
        ("selected", "attn", {"blocks": 1}, 4 * 4096**2),
        ("selected", "mlp", {"blocks": 3}, 3 * 3 * 4096 * 11008),
        ("selected", "both", {"modules": ["norm"]}, 2 * 2 * 4096),
        ("half_ft", "default", {}, BLOCK),  # exactly half of two layers
        ("half_ft", "default", {"blocks": 32}, 16 * BLOCK),
        ("half_ft", "default", {"blocks": 4, "level": "layer"}, 2 * BLOCK),
        ("full_lm", "default", {"embeddings": False}, 32 * BLOCK + 4096),
        ("full_lm", "default", {}, 6_738_415_616),  # LLaMA 7B as published
        ("full_lm", "attn", {}, 32 * 4 * 4096**2),
        ("bitfit", "default", {}, 32 * (4 * 4096 + 2 * 11008 + 4096)),
        ("bitfit", "attn", {}, 32 * 4 * 4096),
        ("linear_probe", "default", {}, 0),
    ],
)
def test_counts_of_a_7b_model(method, location, settings, count):
    module = load_method(method)
    config = msgspec.convert(settings, module.Config)
    assert module.trainable_count(seven_billion(), config, location) == count


def test_learning_rates():
    rates = {method: load_method(method).Config().learning_rate for method in METHODS}
    assert rates.pop("full_lm") == 2e-5 and rates.pop("bitfit") == 1e-3
    assert set(rates.values()) == {2e-4}


# --- what is trained ---


@pytest.mark.parametrize("location", ["default", "attn", "mlp"])
@pytest.mark.parametrize("name", ["tiny", *FAMILIES])
def test_exactly_the_last_blocks_are_trainable(name, location):
    names = NAMES if name == "tiny" else model_names(name)
    base = load_tiny() if name == "tiny" else load_family(name)
    spec = (
        train_spec("selected", settings={"blocks": 1}, location=location, connector="frozen")
        if name == "tiny"
        else family_spec(name, "selected", "frozen", settings={"blocks": 1}, location=location)
    )
    dims = measure_dims(base.model, names)
    tuned = attach(base, spec)
    trainable = {path for path, p in tuned.model.named_parameters() if p.requires_grad}
    prefix = names.layers.replace(r"\.", ".").replace(r"\d+", str(dims.layers - 1)) + "."
    part = {"default": None, "attn": "attention", "mlp": "mlp"}[location]
    wanted = {
        path
        for path, _ in tuned.model.named_parameters()
        if path.startswith(prefix)
        and (
            part is None
            or block_part(path.removeprefix(prefix), names.attention, names.mlp, names.attention_module)
            == part
        )
    }
    assert trainable == wanted == set(tuned.method_parameters) and wanted
    if location == "default":
        assert len(wanted) == len(dims.blocks[-1])
    assert all(p.dtype == torch.float32 for p in tuned.method_parameters.values())


def test_parts_of_a_block():
    parts = {path: block_part(path, NAMES.attention, NAMES.mlp, "self_attn") for path in (
        "self_attn.q_proj.bias", "self_attn.q_norm.weight", "mlp.gate_proj.weight", "mlp.act.weight",
        "input_layernorm.weight",
    )}  # fmt: skip
    assert list(parts.values()) == ["attention", "attention", "mlp", "mlp", "norm"]
    assert block_part("fc1.weight", ["q"], ["fc1", "fc2"], "attn") == "mlp"
    assert block_part("ln.weight", ["q"], ["fc1", "fc2"], "attn") == "norm"


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("location", ["default", "attn", "mlp"])
@pytest.mark.parametrize("method", ["half_ft", "full_lm", "bitfit"])
def test_reference_methods_on_other_families(method, location, name):
    """``attach`` compares the formula with what is trainable; the vision tower has no part in it."""
    base = load_family(name)
    components_before = partition(base.model, model_names(name))
    tuned = attach(base, family_spec(name, method, location=location, settings={}))
    assert tuned.trainable["vision"] == 0 and tuned.method_parameters
    assert not any(components_before.get(path) == "vision" for path in tuned.method_parameters)
    if method == "bitfit":
        assert all(path.endswith(".bias") for path in tuned.method_parameters)
        added = [path for path in tuned.method_parameters if path not in components_before]
        assert sum(tuned.method_parameters[path].numel() for path in added) == tuned.trainable["method"] > 0


def test_half_of_the_tensors_by_their_own_seed():
    def chosen(**settings):
        tuned = attach(load_tiny(), train_spec("half_ft", settings=settings))
        return set(tuned.method_parameters)

    first = chosen()
    assert first == chosen() and first != chosen(selection_seed=1)
    for layer in (0, 1):
        mine = [p for p in first if f".layers.{layer}." in p]
        assert sum("self_attn" in p for p in mine) == 2
        assert sum("layernorm" in p for p in mine) == 1
    assert sum(".mlp." in p for p in first) == 3


def test_untouched_weights_stay():
    base = load_tiny()
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    tuned = attach(base, train_spec("bitfit", settings={}))
    with torch.no_grad():
        for p in tuned.method_parameters.values():
            p.add_(1.0)
    assert all(torch.equal(before[n], p) for n, p in base.model.named_parameters() if n in before)


# --- saved, loaded, predicted with ---


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_its_delta_and_comes_back_to_the_bit(method, tmp_path):
    settings = SETTINGS.get(method, {}) | ({"blocks": 1} if method in BLOCKS else {})
    spec = train_spec(method, settings=settings)
    out, facts = world().train(spec)
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert names == {"delta.safetensors", "connector.safetensors", "log.csv"} == facts["outputs"].keys()
    stored = load_file(out / "delta.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in stored.values())
    size = (out / "delta.safetensors").stat().st_size
    assert size < 4 * sum(t.numel() for t in stored.values()) + 250 * (len(stored) + 2)
    if method in BLOCKS:
        assert all(".layers.1." in name for name in stored)

    base = load_tiny()
    untuned = {name: p.clone() for name, p in base.model.named_parameters()}
    tuned = attach(base, predict_spec(spec))
    restore(tuned, out)
    present = dict(base.model.named_parameters())
    saved = stored | load_file(out / "connector.safetensors")
    assert any(not torch.equal(saved[n], untuned[n]) for n in saved if n in untuned) or method == "bitfit"
    for name, values in present.items():
        assert torch.equal(values, saved[name] if name in saved else untuned[name]), name
    save(tuned, tmp_path / "again", "base")
    assert (tmp_path / "again/delta.safetensors").read_bytes() == (out / "delta.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["spider", "half_ft", "bitfit", "model_tailor"])
@pytest.mark.parametrize("name", FAMILIES)
def test_other_families_come_back_to_the_bit(name, method, tmp_path):
    settings = SETTINGS.get(method, {})
    base, tuned, trainer, items = trainer_of(name, method, checkpointing=True, settings=settings)
    losses = steps(trainer, items, 3)
    assert losses[-1] < losses[0]
    save(tuned, tmp_path, "base")
    expected = outputs(tuned.model, base, items)
    again = load_family(name, seed=1)
    restored = attach(again, family_spec(name, method, settings=settings))
    assert not torch.equal(outputs(restored.model, again, items), expected)
    restore(restored, tmp_path)
    assert torch.equal(outputs(restored.model, again, items), expected)


def test_predictions_are_those_of_the_trained_model():
    spec = train_spec("spider", settings={}, epochs=4)
    out, _ = world().train(spec)
    tuned = world().predict(predict_spec(spec), out)["prediction"].to_list()
    base = world().predict(predict_spec(spec), None)["prediction"].to_list()
    assert tuned != base
    unmerged = world().predict(predict_spec(spec, merge="never"), out)["prediction"].to_list()
    assert unmerged == tuned


def test_bf16_base_with_fp32_masters(tmp_path):
    spec = train_spec("spider", settings={}, precision="bf16", epochs=3)
    out, facts = world().train(spec)
    assert facts["losses"]["last"] < facts["losses"]["first"]
    stored = load_file(out / "delta.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in stored.values())
    # the masters moved by less than bf16 can hold
    assert any(not torch.equal(t, t.bfloat16().float()) for t in stored.values())
    base = load_base(world().base, "bf16", torch.device("cpu"), NAMES)
    tuned = attach(base, predict_spec(spec))
    restore(tuned, out)
    assert all(torch.equal(tuned.method_parameters[name], values) for name, values in stored.items())
    assert len(world().predict(predict_spec(spec), out)) == 10


# --- refused ---


def test_a_delta_belongs_to_its_base(tmp_path):
    spec = train_spec("selected", settings={"blocks": 1}, epochs=1)
    out, _ = world().train(spec)
    other = build(tmp_path / "other", seed=5)
    with pytest.raises(
        UserError, match=r"made for another base model \(base, sha256 .*load it onto"
    ) as caught:
        generate_predictions(
            predict_spec(spec), other, out, world().data, world().images, tmp_path / "out", Execution(device="cpu")
        )  # fmt: skip
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    # one value of one replaced tensor is enough; of another tensor it is another matter
    for path, refused in (("layers.1.mlp.up_proj.weight", True), ("layers.0.mlp.up_proj.weight", False)):
        base = load_tiny()
        with torch.no_grad():
            base.model.get_parameter(f"model.language_model.{path}")[0, 0] += 1e-3
        tuned = attach(base, predict_spec(spec))
        if refused:
            with pytest.raises(UserError, match="made for another base model"):
                restore(tuned, out)
        else:
            restore(tuned, out)


def test_a_delta_of_other_tensors_or_none(tmp_path):
    spec = train_spec("selected", settings={"blocks": 1}, epochs=1)
    out, _ = world().train(spec)
    tuned = attach(load_tiny(), predict_spec(msgspec.structs.replace(spec, settings={"blocks": 2})))
    with pytest.raises(UserError, match=r"another base model|its tensors are not those"):
        restore(tuned, out)
    with pytest.raises(UserError, match="not found: train this run first"):
        restore(tuned, tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "delta.safetensors")
    with pytest.raises(UserError, match="not the weights of a method that trains the base model"):
        restore(tuned, tmp_path)
    with safe_open(str(out / "delta.safetensors"), "pt") as file:
        said = json.loads(file.metadata()["delta"])
    assert said["form"] == "new values, fp32" and said["base"] == "base" and len(said["base_sha256"]) == 64


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("spider", {"modules": []}, r"method spider: Expected `array` of length >= 1 - at `\$.modules`"),
        (
            "spider",
            {"modules": ["vision"]},
            r"method spider: Invalid enum value 'vision' - at `\$.modules\[0\]`",
        ),
        ("spider", {"blocks": 0}, r"method spider: Expected `int` >= 1 - at `\$.blocks`"),
        ("spider", {"blocks": 3}, "method spider: blocks: 3: the model has 2 decoder layers"),
        ("magnitude_mask", {"protected": 1.0}, "method magnitude_mask: Expected `float` < 1.0"),
        ("half_ft", {"blocks": 1, "level": "layer"}, "half of 1 decoder layers is none"),
        ("bitfit", {"missing": "leave"}, "method bitfit: the decoder layers have no biases to train"),
        ("dare", {"drop": 1}, "method dare: Expected `float` < 1.0"),
    ],
)
def test_settings_that_select_nothing(method, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        attach(load_tiny(), train_spec(method, settings=settings))
    assert "\n" not in str(caught.value)


def test_modules_that_the_model_does_not_have():
    base = load_tiny()
    for layer in base.model.model.language_model.layers:
        layer.input_layernorm = layer.post_attention_layernorm = torch.nn.Identity()
    with pytest.raises(UserError, match="method spider: modules: the decoder layers have no norm: nothing"):
        attach(base, train_spec("spider", settings={"modules": ["norm"]}))


def test_a_probe_needs_its_connector():
    out, facts = world().train(train_spec("linear_probe", settings={}, epochs=1))
    assert {path.name for path in out.iterdir()} == {"connector.safetensors", "log.csv"}
    assert facts["trainable"] == {"language": 0, "connector": 1600, "vision": 0, "embeddings": 0, "method": 0}
    assert len(world().predict(predict_spec(train_spec("linear_probe", settings={})), out)) == 10
    with pytest.raises(UserError, match="method linear_probe with a frozen connector trains nothing"):
        world().train(train_spec("linear_probe", settings={}, connector="frozen"))


@pytest.mark.parametrize("method", ["adapter", "prefix"])
def test_merging_a_method_that_cannot_be_merged(method, tmp_path):
    spec = train_spec(method, epochs=1)
    tuned = attach(load_tiny(), spec)
    with pytest.raises(
        UserError, match=f"method {method} cannot be merged into the weights: set merge: auto or never"
    ):
        merge(tuned, method)
    out, _ = world().train(spec)
    with pytest.raises(UserError, match="cannot be merged"):
        world().predict(predict_spec(spec, merge="always"), out)
    both = train_spec("lora", epochs=1)
    out, _ = world().train(both)
    assert len(world().predict(predict_spec(both, merge="always"), out)) == 10


def test_frozen_connector_with_blocks():
    out, facts = world().train(train_spec("spider", settings={}, connector="frozen", epochs=1))
    assert {path.name for path in out.iterdir()} == {"delta.safetensors", "log.csv"}
    assert facts["trainable"]["connector"] == 0 and facts["trainable"]["language"] > 0


def test_nothing_to_train_in_training(tmp_path):
    with pytest.raises(UserError, match="the model has 2 decoder layers"):
        train_adapter(
            train_spec("spider", settings={"blocks": 9}, optim=Optim(learning_rate=1e-3, connector_learning_rate=0.0)),
            *(world().base, world().data, world().subset, world().images, tmp_path / "out"),
            Execution(device="cpu"),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


# --- identity ---


def test_a_method_s_module_counts_for_its_own_runs_alone():
    printer = default_fingerprinter()
    spec = msgspec.to_builtins(train_spec("selected", settings={}))
    script = printer.package_dir.parents[1] / "workflow/scripts/train_adapter.py"
    closures = {}
    for method in ("selected", "spider", "lora"):
        modules, files = components("train", spec | {"method": method}, printer.locate)
        closures[method] = {
            m for m in printer.code(script, modules, files)["modules"] if m.startswith("methods.")
        }
    assert closures["selected"] == {"methods._selection", "methods.selected"}
    assert closures["spider"] == {"methods._selection", "methods._dynamics", "methods.spider"}
    assert closures["lora"] == {"methods.lora"}
