"""Methods that come from peft: places, counts, training, saving, merging, and what each cannot do."""

import json

import msgspec
import pytest
import torch

from model_world import built, load, outputs, steps, train_spec, trainer_of
from peftbench.errors import UserError
from peftbench.models.arch import measure_dims, partition
from peftbench.spec import Decoding, PredictSpec
from peftbench.training.adapt import ADAPTER_DIR, PEFT_ROOT, attach, load_method, restore, save
from test_methods import SIZES
from tiny_llava import NAMES, load_tiny, predict_spec, world
from tiny_llava import train_spec as tiny_spec

SETTINGS = {
    "boft": {},
    "dora": {"rank": 4, "dropout": 0.0},
    "fourierft": {"coefficients": 20, "scale": 4.0},
    "hra": {"rank": 4},
    "ln_tuning": {},
    "loha": {"rank": 4},
    "lokr": {"rank": 2},
    "miss": {"rank": 8},
    "oft": {"block": 4},
    "olora": {"rank": 4, "alpha": 4.0, "dropout": 0.0},
    "p_tuning": {"tokens": 5},
    "pissa": {"rank": 4},
    "prompt_tuning": {"tokens": 5},
    "randlora": {"rank": 8, "alpha": 8},
    "rslora": {"rank": 4, "dropout": 0.0},
    "vera": {"rank": 16},
}
"""Small and without dropout."""
METHODS = sorted(SETTINGS)
PLACED = [method for method in METHODS if "attn" in load_method(method).LOCATIONS]
FAMILIES = ["llava-1.5-7b", "qwen2.5-vl-3b", "gemma3-4b"]
"""A plain one; positions in three dimensions and tied embeddings; norms after layers and inside attention."""


def to_predict(spec):
    """The spec under which trained weights are loaded."""
    same = ("model", "prompt", "method", "settings", "connector", "location", "precision")
    values = {name: getattr(spec, name) for name in same}
    return PredictSpec(decoding=Decoding(max_new_tokens=4, batch_size=3), **values)


pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:peft"
)  # tied embeddings: nothing is merged into them


def trained(name, method, folder, checkpointing=False, **changes):
    base, tuned, trainer, items = trainer_of(
        name, method, "tuned", checkpointing, settings=SETTINGS[method], **changes
    )
    frozen = {
        path: p.clone()
        for path, p in tuned.model.named_parameters()
        if not p.requires_grad
        and "soft_prompt" not in path  # which the network behind a prompt fills at the end
    }
    losses = steps(trainer, items, 2)
    folder.mkdir()
    save(tuned, folder, "base")
    return base, tuned, items, losses, frozen


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_trains_comes_back_to_the_bit_and_merges(name, method, tmp_path):
    stored = []
    for checkpointing in (False, True):
        folder = tmp_path / str(checkpointing)
        base, tuned, items, losses, frozen = trained(name, method, folder, checkpointing)
        assert losses[1] < losses[0]
        for path, parameter in tuned.model.named_parameters():
            if path in frozen:
                assert torch.equal(parameter, frozen[path]), path
            assert parameter.isfinite().all(), path
        stored.append({path.name: path.read_bytes() for path in folder.rglob("*.safetensors")})
        expected = outputs(tuned.model, base, items)
    assert stored[0] == stored[1]
    assert tuned.trainable["vision"] == tuned.trainable["language"] == tuned.trainable["embeddings"] == 0
    again = load(name, seed=1)
    restored = attach(again, to_predict(train_spec(name, method, settings=SETTINGS[method])))
    assert not torch.equal(outputs(restored.model, again, items), expected)
    restore(restored, folder)
    assert torch.equal(outputs(restored.model, again, items), expected)
    if restored.method.MERGEABLE:
        restored.model.merge_and_unload()
        torch.testing.assert_close(outputs(again.model, again, items), expected, rtol=0, atol=2e-4)
    else:
        with pytest.raises((ValueError, NotImplementedError), match="cannot be merged"):
            restored.model.merge_and_unload()


@pytest.mark.parametrize("location", ["attn", "mlp", "both"])
@pytest.mark.parametrize("method", PLACED)
def test_stands_where_the_location_says(method, location):
    base = load_tiny()
    dims, components = measure_dims(base.model, NAMES), partition(base.model, NAMES)
    spec = tiny_spec(method, location=location, settings=SETTINGS[method], connector="frozen")
    tuned = attach(base, spec)
    inside = {name.removeprefix(PEFT_ROOT) for name in tuned.method_parameters}
    leaves = [leaf for leaf in [*NAMES.attention, *NAMES.mlp] if any(f".{leaf}." in name for name in inside)]
    wanted = {"attn": NAMES.attention, "mlp": NAMES.mlp, "both": [*NAMES.attention, *NAMES.mlp]}[location]
    assert leaves == wanted
    assert all(name.startswith("model.language_model.layers.") for name in inside)
    assert not inside & set(components)
    config = msgspec.convert(SETTINGS[method], load_method(method).Config)
    measured = sum(p.numel() for p in tuned.method_parameters.values())
    assert measured == load_method(method).trainable_count(dims, config, location) > 0


@pytest.mark.parametrize("method", PLACED)
def test_layers_by_name_replace_the_default_place(method):
    settings = SETTINGS[method] | {"targets": ["self_attn.v_proj"]}
    tuned = attach(load_tiny(), tiny_spec(method, settings=settings, connector="frozen"))
    assert all(".self_attn.v_proj." in name for name in tuned.method_parameters)
    with pytest.raises(UserError, match=f"method {method}: targets: mlp is no linear layer"):
        attach(load_tiny(), tiny_spec(method, settings=SETTINGS[method] | {"targets": ["mlp"]}))


@pytest.mark.parametrize(
    ("method", "settings", "count"),
    [
        # measured on the architecture of LLaVA-1.5-7B, attached by peft
        ("boft", {}, 5_914_624),
        ("dora", {}, 319_815_680 + 32 * (5 * 4096 + 2 * 11008)),
        ("fourierft", {}, 7 * 32 * 1000),
        ("hra", {}, 9_109_504),
        ("loha", {}, 39_976_960),
        ("lokr", {}, 1_331_200),
        ("miss", {}, 87_031_808),
        ("oft", {}, 17_649_664),
        ("olora", {}, 319_815_680 // 4),
        ("p_tuning", {}, 20 * 4096 + 3 * 4097 * 4096),
        ("pissa", {}, 319_815_680),
        ("prompt_tuning", {}, 100 * 4096),
        ("randlora", {}, 118_358_016),
        ("rslora", {}, 319_815_680),
        ("vera", {}, 32 * (7 * 256 + 5 * 4096 + 2 * 11008)),
    ],
)
def test_counts_on_a_model_of_7b(method, settings, count):
    module = load_method(method)
    assert module.trainable_count(SIZES["7b"], msgspec.convert(settings, module.Config), "default") == count


@pytest.mark.parametrize("settings", [{"factor": 4}, {"rank": 30}, {"factor": 3, "rank": 1}])
def test_factors_of_lokr_are_those_of_peft(settings):
    attach(load_tiny(), tiny_spec("lokr", settings=settings))  # which compares count and formula


def test_the_network_behind_a_prompt_may_be_an_lstm(tmp_path):
    settings = {"tokens": 3, "encoder": "LSTM", "encoder_size": 8}
    tuned = attach(load_tiny(), tiny_spec("p_tuning", settings=settings))
    save(tuned, tmp_path / "early", "base", final=False)
    before = (tmp_path / "early" / ADAPTER_DIR / "adapter_model.safetensors").read_bytes()
    assert (
        json.loads((tmp_path / "early" / ADAPTER_DIR / "adapter_config.json").read_text())["encoder"] is None
    )
    assert any("soft_prompt_encoder" in name for name, _ in tuned.model.named_parameters())
    save(tuned, tmp_path / "last", "base")
    assert (tmp_path / "last" / ADAPTER_DIR / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("method", "location", "settings", "message"),
    [
        ("ln_tuning", "attn", {}, "ln_tuning cannot be placed at location attn: use both"),
        ("prompt_tuning", "mlp", {}, "prompt_tuning cannot be placed at location mlp"),
        ("p_tuning", "attn", {}, "p_tuning cannot be placed at location attn"),
        ("pissa", "default", {"rank": 40}, r"method pissa: rank 40 is above that of a layer \(16\)"),
        ("olora", "default", {"rank": 17}, r"method olora: rank 17 is above"),
        ("oft", "default", {"block": 5}, r"method oft: block 5 does not divide the input of a layer \(32\)"),
        ("boft", "default", {"block": 6}, "method boft: block 6 does not divide"),
        ("hra", "default", {"rank": 3}, "method hra: .*multiple of 2"),
        ("fourierft", "default", {"coefficients": 513}, "513 coefficients are more than the 512 weights"),
        ("rslora", "default", {"rank": 0}, "method rslora: .*>= 1"),
    ],
)
def test_what_is_not_possible_is_one_line(method, location, settings, message):
    with pytest.raises(UserError, match=message):
        attach(load_tiny(), tiny_spec(method, location=location, settings=settings))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_frozen_weights_without_their_start_come_back_from_the_file_alone(method, precision, tmp_path):
    """What peft took out of the weights is computed from the file; the base model on disk stays as it is."""
    name = FAMILIES[0]
    on_disk = {path: path.read_bytes() for path in sorted(built(name).glob("*.safetensors"))}
    base, tuned, items, _, frozen = trained(name, method, tmp_path / "run", precision=precision)

    def answers(tuned, base):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return outputs(tuned.model, base, items)

    expected = answers(tuned, base)
    assert {path: path.read_bytes() for path in on_disk} == on_disk
    changed = [path for path in frozen if path.endswith("base_layer.weight")]
    whole = load(name, precision=precision)
    original = dict(whole.model.named_parameters())
    paths = {path: path.removeprefix(PEFT_ROOT).replace(".base_layer", "") for path in changed}
    assert changed and not any(torch.equal(frozen[path], original[paths[path]]) for path in changed)

    spec = train_spec(name, method, settings=SETTINGS[method], precision=precision)
    restored = attach(whole, to_predict(spec))  # decomposes nothing
    restore(restored, tmp_path / "run")
    own = dict(restored.model.named_parameters())
    assert all(torch.equal(own[path], frozen[path]) for path in changed)
    assert torch.equal(answers(restored, whole), expected)

    # resuming: a model that was decomposed in the same way
    again = load(name, precision=precision)
    resumed = attach(again, spec)
    restore(resumed, tmp_path / "run")
    assert torch.equal(answers(resumed, again), expected)


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_what_is_saved_is_a_lora_for_the_base_model(method, tmp_path):
    from peft import PeftModel

    name = FAMILIES[0]
    base, tuned, items, _, _ = trained(name, method, tmp_path / "run")
    expected = outputs(tuned.model, base, items)
    stock = load(name)
    with torch.no_grad():
        for path, parameter in tuned.connector_parameters.items():
            stock.model.get_parameter(path.removeprefix(PEFT_ROOT)).copy_(parameter)
    model = PeftModel.from_pretrained(stock.model, str(tmp_path / "run" / ADAPTER_DIR))
    assert model.peft_config["default"].r == 2 * SETTINGS[method]["rank"]
    torch.testing.assert_close(outputs(model, stock, items), expected, rtol=0, atol=2e-4)


def test_another_start_is_refused(tmp_path):
    name = FAMILIES[0]
    trained(name, "pissa", tmp_path / "run")
    other = load(name)
    with torch.no_grad():
        other.model.get_parameter("model.language_model.layers.1.mlp.up_proj.weight").mul_(1.001)
    resumed = attach(other, train_spec(name, "pissa", settings=SETTINGS["pissa"]))
    with pytest.raises(UserError, match="its weights decompose in another way here"):
        restore(resumed, tmp_path / "run")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_stands_before_every_example(name, tmp_path):
    """Generation with its cache, padded on the left, says what one forward pass without either says."""
    from model_world import encoded
    from peftbench.evaluation.generate import greedy
    from peftbench.training.batches import collate

    base, tuned, *_ = trained(name, "prompt_tuning", tmp_path / "run")
    images, items = encoded(base, name, answers=False)
    prompts = [row for row, _ in items]
    rows = base.model.get_input_embeddings().get_base_layer().num_embeddings
    assert all(list(prompt.ids[:5]) == list(range(rows, rows + 5)) for prompt in prompts)
    together = greedy(base, images, prompts, 4, len(prompts))
    tuned.model.eval()
    for item, answer in zip(items, together, strict=True):
        batch = collate([item], base.pad_token_id, left=False)
        del batch["labels"]
        with torch.no_grad():
            first = int(tuned.model(**batch, use_cache=False).logits[0, -1].argmax())
        alone = greedy(base, images, [item[0]], 4, 1)[0]
        assert alone == answer
        assert first in base.end_tokens() or answer.tokens > 0


def test_merging_what_cannot_be_merged_is_refused():
    spec = tiny_spec("prompt_tuning", settings=SETTINGS["prompt_tuning"])
    run, _ = world().train(spec)
    with pytest.raises(UserError, match="method prompt_tuning cannot be merged into the weights"):
        world().predict(predict_spec(spec, merge="always"), run)
    answers = world().predict(predict_spec(spec), run)
    assert len(answers) == 10


@pytest.mark.parametrize("merge", ["auto", "never", "always"])
def test_merged_or_not_the_answers_are_the_same(merge, tmp_path):
    spec = tiny_spec("ia3")
    run, _ = world().train(spec)
    expected = world().predict(predict_spec(spec, merge="never"), run)
    assert world().predict(predict_spec(spec, merge=merge), run)["prediction"].equals(expected["prediction"])
