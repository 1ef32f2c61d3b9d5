"""Prediction: batching, caching and merging change no answer."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftbench.data.load import read_examples
from peftbench.errors import UserError
from peftbench.evaluation.generate import decode, end_tokens, greedy
from peftbench.spec import Decoding, Execution
from peftbench.training.adapt import attach, restore
from peftbench.training.batches import encode
from peftbench.training.features import LiveImages
from tiny_llava import NAMES, PROMPT, SETTINGS, encoded_batch, load_tiny, predict_spec, train_spec, world

METHODS = ["lora", "ia3", "adapter", "prefix"]


@pytest.fixture(scope="module")
def runs():
    """One trained run per method, with rates high enough that answers change."""
    from peftbench.spec import Optim

    optim = Optim(learning_rate=5e-2, connector_learning_rate=1e-2)
    specs = {method: train_spec(method, optim=optim, epochs=6) for method in METHODS}
    return {method: (spec, world().train(spec)[0]) for method, spec in specs.items()}


def by_hand(model, base, prompts, images, steps):
    """Greedy decoding one by one, without padding and without a cache."""
    answers = []
    for encoded in prompts:
        ids = torch.tensor(encoded.ids[None].astype("int64"))
        start = ids.shape[1]
        inputs = images.load(encoded.image) if encoded.image else {}
        for _ in range(steps):
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False, **inputs).logits
            token = logits[0, -1].argmax()
            ids = torch.cat([ids, token[None, None]], dim=1)
            if int(token) == base.tokenizer.eos_token_id:
                break
        answers.append(decode(base, ids[0, start:].tolist(), end_tokens(base)))
    return answers


@pytest.mark.parametrize("method", [*METHODS, "base"])
def test_batched_equals_one_by_one_equals_no_cache(method, runs):
    base = load_tiny()
    images = LiveImages(base, world().images)
    if method == "base":
        model = base.model
    else:
        spec, folder = runs[method]
        tuned = attach(base, predict_spec(spec))
        restore(tuned, folder)
        model = tuned.model.eval()
    examples = read_examples(world().data, "test")
    prompts = encode(base, images, NAMES, PROMPT, examples, None, answers=False)
    assert len({len(encoded.ids) for encoded in prompts}) > 2
    assert any(not encoded.image for encoded in prompts)
    expected = by_hand(model, base, prompts, images, 6)
    assert len({answer.text for answer in expected}) > 1  # not the same answer to everything
    for batch_size in (1, 4, 100):
        assert greedy(base, images, prompts, 6, batch_size) == expected


@pytest.mark.parametrize("method", METHODS)
def test_predictions_are_in_order_and_complete(method, runs):
    spec, folder = runs[method]
    frame = world().predict(predict_spec(spec), folder)
    assert frame.columns == ["id", "prediction", "prompt", "n_tokens", "finished"]
    assert frame["id"].to_list() == [f"test-{i}" for i in range(10)]
    assert frame["prompt"][0] == (
        "USER: <image>\nwhat colour is the square ? "
        "Answer the question using a single word or phrase. ASSISTANT:"
    )
    assert frame["prompt"][7].startswith("USER: ")  # text alone
    assert (frame["n_tokens"] <= 6).all()
    assert (frame.filter(~frame["finished"])["n_tokens"] == 6).all()
    untuned = world().predict(predict_spec(spec), None)
    assert untuned["prediction"].to_list() != frame["prediction"].to_list()


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_merging_is_exact(method, runs):
    spec, folder = runs[method]
    texts, logits = [], []
    for merge in ("auto", "never"):
        frame = world().predict(predict_spec(spec, merge=merge), folder)
        texts.append(frame["prediction"].to_list())
        base = load_tiny()
        tuned = attach(base, predict_spec(spec))
        restore(tuned, folder)
        model = tuned.model.merge_and_unload() if merge == "auto" else tuned.model
        _, batch = encoded_batch(base)
        with torch.no_grad():
            logits.append(model.eval()(**batch).logits)
    assert texts[0] == texts[1]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_restored_weights_are_the_trained_ones(method, runs):
    spec, folder = runs[method]
    tuned = attach(load_tiny(), predict_spec(spec))
    restore(tuned, folder)
    stored = load_file(folder / "connector.safetensors")
    for name, parameter in tuned.connector_parameters.items():
        assert torch.equal(parameter, stored[name.removeprefix("base_model.model.")])
    trained = load_file(folder / "adapter" / "adapter_model.safetensors")
    values = sorted(float(tensor.double().sum()) for tensor in trained.values())
    own = sorted(float(p.detach().double().sum()) for p in tuned.method_parameters.values())
    assert own == values


def test_cached_features_give_the_same_answers(runs):
    spec, folder = runs["lora"]
    plain = world().predict(predict_spec(spec), folder)
    cached = world().predict(
        predict_spec(spec), folder, Execution(device="cpu", cache_dir=str(world().folder / "c"))
    )
    assert cached.equals(plain)


def test_connector_is_part_of_the_result(runs, tmp_path):
    spec, folder = runs["lora"]
    shutil.copytree(folder, tmp_path / "run")
    file = tmp_path / "run" / "connector.safetensors"
    save_file({name: tensor * 0 for name, tensor in load_file(file).items()}, file)
    changed = world().predict(predict_spec(spec), tmp_path / "run")
    assert (
        changed["prediction"].to_list() != world().predict(predict_spec(spec), folder)["prediction"].to_list()
    )


def test_connector_without_method(tmp_path):
    spec = train_spec("base", settings={}, epochs=1)
    folder, _ = world().train(spec)
    assert len(world().predict(predict_spec(spec), folder)) == 10


def test_answers_are_verbatim_up_to_the_end_token():
    base = load_tiny()
    ids = base.tokenizer(" red  green ", add_special_tokens=False)["input_ids"]
    eos, pad = base.tokenizer.eos_token_id, base.tokenizer.pad_token_id
    ends = end_tokens(base)
    answer = decode(base, [*ids, eos, pad, pad], ends)
    assert (answer.text, answer.tokens, answer.finished) == ("red  green ", len(ids), True)
    assert decode(base, ids, ends).finished is False
    assert decode(base, [eos], ends) == decode(base, [eos, pad], ends)
    assert decode(base, [eos], ends).text == ""


def test_hub_generation_settings_do_not_leak(runs):
    base = load_tiny()
    images = LiveImages(base, world().images)
    prompts = encode(base, images, NAMES, PROMPT, read_examples(world().data, "test"), None, answers=False)
    expected = greedy(base, images, prompts, 6, 4)
    config = base.model.generation_config
    config.do_sample, config.temperature, config.repetition_penalty, config.num_beams = True, 3.0, 9.0, 2
    assert greedy(base, images, prompts, 6, 4) == expected
    base.model.generation_config.eos_token_id = [base.tokenizer.eos_token_id, 7]
    assert end_tokens(base) == {base.tokenizer.eos_token_id, 7}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda run: (run / "adapter" / "adapter_model.safetensors").unlink(),
            "not found: train this run first",
        ),
        (lambda run: (run / "connector.safetensors").write_bytes(b"x" * 40), "damaged"),
        (
            lambda run: save_file({"a": torch.zeros(1)}, run / "connector.safetensors"),
            "not those of this model and method",
        ),
    ],
)
def test_damaged_runs_are_named(damage, message, runs, tmp_path):
    spec, folder = runs["lora"]
    shutil.copytree(folder, tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        world().predict(predict_spec(spec), tmp_path / "run")


def test_weights_of_another_rank_are_refused(runs):
    spec, folder = runs["lora"]
    with pytest.raises(UserError, match=r"lora_A.weight is \(4, \d+\), the model has \(2, \d+\)"):
        world().predict(predict_spec(spec, settings=SETTINGS["lora"] | {"rank": 2}), folder)


def test_bf16_is_not_merged(runs, monkeypatch):
    spec, folder = runs["lora"]
    merged = []
    from peft import LoraModel

    plain = LoraModel.merge_and_unload
    monkeypatch.setattr(LoraModel, "merge_and_unload", lambda *a, **k: merged.append(1) or plain(*a, **k))
    decoding = Decoding(max_new_tokens=3, batch_size=4)
    world().predict(predict_spec(spec, precision="bf16", decoding=decoding), folder)
    assert merged == []
    world().predict(predict_spec(spec, decoding=decoding), folder)
    assert merged == [1]
