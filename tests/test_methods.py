"""Methods: what they target, what they add, and how many parameters that is."""

import msgspec
import pytest

from peftbench.errors import UserError
from peftbench.models.arch import Dims, measure_dims, partition, target_regex
from peftbench.training.adapt import PEFT_ROOT, attach, load_method
from tiny_llava import NAMES, SETTINGS, load_tiny, predict_spec, train_spec

METHODS = ["lora", "ia3", "adapter", "prefix"]


def llama(width: int, ffn: int, layers: int, heads: int) -> Dims:
    square, up, down = (width, width), (width, ffn), (ffn, width)
    linear = dict.fromkeys(NAMES.attention, square) | dict(zip(NAMES.mlp, (up, up, down), strict=True))
    return Dims(
        layers=layers,
        attention=NAMES.attention,
        mlp=NAMES.mlp,
        linear=linear,
        kv_heads=heads,
        head_dim=width // heads,
        hidden=width,
    )


SIZES = {"7b": llama(4096, 11008, 32, 32), "13b": llama(5120, 13824, 40, 40)}


@pytest.mark.parametrize(
    ("size", "method", "location", "settings", "count"),
    [
        ("7b", "adapter", "default", {}, 201_326_592),
        ("7b", "lora", "default", {}, 319_815_680),
        ("7b", "ia3", "default", {}, 614_400),
        ("7b", "prefix", "default", {}, 5_242_880),
        ("13b", "adapter", "default", {}, 314_572_800),
        ("13b", "lora", "default", {}, 500_695_040),
        ("13b", "ia3", "default", {}, 962_560),
        ("13b", "prefix", "default", {}, 8_192_000),
        ("7b", "adapter", "attn", {}, 268_435_456),
        ("7b", "adapter", "both", {}, 469_762_048),
        ("7b", "lora", "attn", {}, 134_217_728),
        ("7b", "lora", "mlp", {}, 185_597_952),
        ("7b", "ia3", "attn", {}, 262_144),
        ("7b", "ia3", "mlp", {}, 352_256),
        # what the paper's released script trains before it saves the folded prefix
        ("7b", "prefix", "default", {"projection": True}, 1_090_867_200),
        ("13b", "prefix", "default", {"projection": True}, 2_123_883_520),
    ],
)
def test_counts_of_the_paper(size, method, location, settings, count):
    module = load_method(method)
    config = msgspec.convert(settings, module.Config)
    assert module.trainable_count(SIZES[size], config, location) == count


def test_percentages_of_table_15():
    base, connector = 7_062_902_784, 20_979_712
    printed = {
        "adapter": (2.771, 3.060),
        "lora": (4.332, 4.616),
        "ia3": (0.009, 0.306),
        "prefix": (0.074, 0.371),
    }
    for method, (frozen, tuned) in printed.items():
        module = load_method(method)
        count = module.trainable_count(SIZES["7b"], module.Config(), "default")
        assert round(100 * count / (base + count), 3) == frozen
        assert round(100 * (count + connector) / (base + count), 3) == tuned


def test_learning_rates_of_the_paper():
    rates = {method: load_method(method).Config().learning_rate for method in METHODS}
    assert rates == {"lora": 2e-4, "adapter": 5e-5, "ia3": 2e-4, "prefix": 1e-5}


CASES = [
    ("lora", "attn", {}, {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}),
    ("lora", "mlp", {}, {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}),
    ("lora", "default", {}, {*NAMES.attention, *NAMES.mlp}),
    ("ia3", "attn", {}, {"self_attn.k_proj", "self_attn.v_proj"}),
    ("ia3", "mlp", {}, {"mlp.down_proj"}),
    ("ia3", "default", {}, {"self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"}),
    ("adapter", "attn", {}, {*NAMES.attention}),
    ("adapter", "default", {}, {*NAMES.mlp}),
    ("adapter", "both", {}, {*NAMES.attention, *NAMES.mlp}),
    ("adapter", "both", {"placement": "houlsby", "bias": True}, {"self_attn.o_proj", "mlp.down_proj"}),
    ("prefix", "default", {}, {"self_attn"}),
    ("prefix", "attn", {"projection": True, "projection_size": 24}, {"self_attn"}),
]


@pytest.mark.parametrize(("method", "location", "extra", "leaves"), CASES)
@pytest.mark.parametrize("connector", ["tuned", "frozen"])
def test_exactly_the_named_parts_are_trainable(method, location, extra, leaves, connector):
    base = load_tiny()
    expected_dims = measure_dims(base.model, NAMES)
    components = partition(base.model, NAMES)
    spec = train_spec(method, location=location, settings=SETTINGS[method] | extra, connector=connector)
    tuned = attach(base, spec)
    trainable = {name for name, p in tuned.model.named_parameters() if p.requires_grad}
    inside = {name.removeprefix(PEFT_ROOT) for name in trainable}

    connector_names = {n for n in inside if n.startswith("model.multi_modal_projector.")}
    assert bool(connector_names) == (connector == "tuned")
    wanted = {path for path, component in components.items() if component == "connector"}
    assert connector_names == (wanted if connector == "tuned" else set())

    own = inside - connector_names
    assert own == {name.removeprefix(PEFT_ROOT) for name in tuned.method_parameters}
    if not extra.get("projection"):
        layers = range(expected_dims.layers)
        hit = {
            (i, leaf)
            for i in layers
            for leaf in leaves
            if any(name.startswith(f"model.language_model.layers.{i}.{leaf}.") for name in own)
        }
        assert hit == {(i, leaf) for i in layers for leaf in leaves}
        paths = {f"model.language_model.layers.{i}.{leaf}" for i, leaf in hit}
        assert all(any(name.startswith(p + ".") for p in paths) for name in own)
    assert not any("vision" in name for name in trainable)

    config = msgspec.convert(spec.settings, load_method(method).Config)
    measured = sum(p.numel() for p in tuned.method_parameters.values())
    assert measured == load_method(method).trainable_count(expected_dims, config, location)
    assert tuned.trainable["method"] == measured
    assert tuned.trainable["vision"] == tuned.trainable["language"] == tuned.trainable["embeddings"] == 0
    assert tuned.totals["connector"] == 1600
    assert all(p.dtype.is_floating_point and p.dtype.itemsize == 4 for p in tuned.method_parameters.values())


def test_more_trainable_than_the_formula_is_refused(monkeypatch):
    module = load_method("lora")
    monkeypatch.setattr(module, "trainable_count", lambda *_: 1)
    with pytest.raises(AssertionError, match=r"method has .* trainable parameters, expected 1"):
        attach(load_tiny(), train_spec())


@pytest.mark.parametrize("location", ["mlp", "both"])
def test_prefix_has_no_place_in_the_mlp(location):
    with pytest.raises(UserError, match=f"prefix cannot be placed at location {location}: use attn"):
        attach(load_tiny(), train_spec("prefix", location=location))


def test_unknown_method_and_settings():
    with pytest.raises(UserError, match="there is no method 'nosuch'"):
        load_method("nosuch")
    with pytest.raises(UserError, match=r"method lora: .*rnak"):
        attach(load_tiny(), train_spec(settings={"rnak": 4}))
    with pytest.raises(UserError, match=r"method adapter: .*>= 1"):
        attach(load_tiny(), train_spec("adapter", settings={"bottleneck": 0}))


def test_patterns_never_match_the_vision_tower():
    import re

    base = load_tiny()
    paths = [name for name, _ in base.model.named_modules()]
    for leaf in NAMES.attention:
        hits = [path for path in paths if re.fullmatch(target_regex(NAMES, [leaf]), path)]
        assert hits == [f"model.language_model.layers.{i}.{leaf}" for i in range(2)]
        assert sum(path.endswith(leaf.rpartition(".")[2]) for path in paths) >= len(hits)


def test_each_parameter_has_one_component():
    base = load_tiny()
    components = partition(base.model, NAMES)
    assert set(components) == {name for name, _ in base.model.named_parameters()}
    assert set(components.values()) == {"language", "connector", "vision", "embeddings"}
    assert components["lm_head.weight"] == "embeddings"
    assert components["model.language_model.norm.weight"] == "language"


def test_nested_connector_beats_the_tower_around_it():
    names = msgspec.structs.replace(
        NAMES, connector=["model.vision_tower.post_layernorm", "model.multi_modal_projector"]
    )
    components = partition(load_tiny().model, names)
    assert components["model.vision_tower.post_layernorm.weight"] == "connector"
    assert components["model.vision_tower.pre_layrnorm.weight"] == "vision"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": r"model\.text\.layers\.\d+"}, "layers: the pattern .* matches no module"),
        ({"connector": ["model.projector"]}, "connector: model.projector is no part of Llava"),
        ({"embeddings": ["model.language_model.embed_tokens"]}, "parameter lm_head.weight belongs to none"),
        ({"vision": ["model.multi_modal_projector", "model.vision_tower"]}, "same prefix stands under two"),
    ],
)
def test_names_that_do_not_fit_the_model(change, message):
    with pytest.raises(UserError, match=message):
        partition(load_tiny().model, msgspec.structs.replace(NAMES, **change))


def test_missing_leaf_is_named():
    names = msgspec.structs.replace(NAMES, mlp=["mlp.fc1", "mlp.fc2"])
    with pytest.raises(UserError, match=r"mlp.fc1 is not a module of model.language_model.layers.0"):
        measure_dims(load_tiny().model, names)


def test_untuned_base_adds_nothing():
    base = load_tiny()
    spec = predict_spec(train_spec("base", connector="frozen", settings={}))
    tuned = attach(base, spec)
    assert tuned.model is base.model
    assert sum(tuned.trainable.values()) == 0


# The targets of the paper's code for Qwen-VL: fused query, key and value; w2 is the gate, w1 the up projection.
FUSED = Dims(
    layers=32,
    attention=["attn.c_attn", "attn.c_proj"],
    mlp=["mlp.w2", "mlp.w1", "mlp.c_proj"],
    linear={
        "attn.c_attn": (4096, 12288),
        "attn.c_proj": (4096, 4096),
        "mlp.w1": (4096, 11008),
        "mlp.w2": (4096, 11008),
        "mlp.c_proj": (11008, 4096),
    },
    kv_heads=32,
    head_dim=128,
    hidden=4096,
)


@pytest.mark.parametrize(
    ("method", "settings", "count"),
    [
        ("lora", {"targets": ["attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2"]}, 224_395_264),
        ("adapter", {"inputs": ["mlp.w2", "mlp.w1"], "outputs": ["attn.c_proj"]}, 201_326_592),
        ("ia3", {"targets": ["attn.c_proj"], "feedforward": ["mlp.c_proj"]}, 483_328),
        ("prefix", {}, 5_242_880),
    ],
)
def test_counts_of_the_paper_s_qwen_code(method, settings, count):
    module = load_method(method)
    assert module.trainable_count(FUSED, msgspec.convert(settings, module.Config), "default") == count


EXPLICIT = {
    "lora": {"rank": 4, "targets": ["self_attn.q_proj", "mlp.down_proj"]},
    "adapter": {"bottleneck": 8, "inputs": ["mlp.down_proj"], "outputs": ["self_attn.v_proj"]},
    "ia3": {"targets": ["self_attn.o_proj"], "feedforward": ["mlp.up_proj"]},
}


@pytest.mark.parametrize("method", EXPLICIT)
def test_explicit_leaves_replace_the_default_location_alone(method):
    settings = EXPLICIT[method]
    leaves = {leaf for value in settings.values() if isinstance(value, list) for leaf in value}
    tuned = attach(load_tiny(), train_spec(method, settings=settings))
    hit = {name.removeprefix(PEFT_ROOT) for name in tuned.method_parameters}
    found = {leaf for name in hit for leaf in [*NAMES.attention, *NAMES.mlp] if f".{leaf}." in name}
    assert found == leaves and all(name.startswith("model.language_model.layers.") for name in hit)
    # a location that is named keeps its meaning
    tuned = attach(load_tiny(), train_spec(method, settings=settings, location="attn"))
    assert all(".self_attn." in name for name in tuned.method_parameters)
    assert not any("mlp" in name for name in tuned.method_parameters)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (
            "lora",
            {"targets": ["self_attn.q_prj"]},
            "targets: self_attn.q_prj .*did you mean 'self_attn.q_proj'",
        ),
        ("lora", {"targets": []}, "length >= 1"),
        ("adapter", {"outputs": ["mlp.dow_proj"]}, "did you mean 'mlp.down_proj'"),
        ("adapter", {"inputs": [], "outputs": []}, "inputs and outputs are both empty"),
        (
            "adapter",
            {"inputs": ["mlp.up_proj"], "outputs": ["mlp.up_proj"]},
            "mlp.up_proj stands under inputs and",
        ),
        ("ia3", {"targets": ["mlp"]}, "targets or feedforward: mlp is no linear layer"),
        (
            "ia3",
            {"targets": ["mlp.up_proj"], "feedforward": ["mlp.up_proj"]},
            "stands under targets and feedf",
        ),
    ],
)
def test_leaves_that_do_not_exist_are_named(method, settings, message):
    with pytest.raises(UserError, match=message):
        attach(load_tiny(), train_spec(method, settings=settings))
