"""Cached features of a frozen tower: computed once, equal to the tower's, and safe against crashes."""

import threading
import types

import pytest
import torch

from peftbench.data.load import read_examples
from peftbench.errors import UserError
from peftbench.spec import Execution
from peftbench.training import features
from peftbench.training.features import LiveImages, open_images
from tiny_llava import CPU, NAMES, load_tiny, predict_spec, train_spec, world


def shas(split="train"):
    return [example.image for example in read_examples(world().data, split)]


def test_cached_features_are_those_of_the_tower(tmp_path):
    live_base, base = load_tiny(), load_tiny()
    images, facts = open_images(base, NAMES, world().images, shas(), tmp_path)
    assert facts["cached"] and facts["computed"] and facts["images"] == 21
    live = LiveImages(live_base, world().images)
    for sha in [sha for sha in shas() if sha][:3]:
        pixels = live.load(sha)["pixel_values"]
        with torch.no_grad():
            states = live_base.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
            torch.testing.assert_close(
                images.load(sha)["pixel_values"][0, 0], states[0], atol=1e-5, rtol=1e-5
            )
            one = live_base.model.get_image_features(pixels).pooler_output[0]
            two = base.model.get_image_features(images.load(sha)["pixel_values"]).pooler_output[0]
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
        assert images.token_text(sha) == live.token_text(sha) == "<image>" * 16
    # 21 images are one chunk; features do not depend on which other images were asked for
    few, _ = open_images(load_tiny(), NAMES, world().images, [s for s in shas() if s][:2], tmp_path / "few")
    for sha in few.rows:
        assert torch.equal(few.load(sha)["pixel_values"], images.load(sha)["pixel_values"])


def test_the_second_job_computes_nothing(tmp_path, monkeypatch):
    execution = Execution(device="cpu", cache_dir=str(tmp_path))
    _, facts = world().train(train_spec(epochs=1), execution)
    assert facts["features"]["computed"] is True
    monkeypatch.setattr(LiveImages, "load", None)  # no image is opened any more
    _, facts = world().train(train_spec("adapter", epochs=1), execution)
    assert facts["features"]["computed"] is False
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert not list(tmp_path.glob("*.lock"))


def test_train_and_test_split_have_their_own_files(tmp_path):
    execution = Execution(device="cpu", cache_dir=str(tmp_path))
    spec = train_spec(epochs=1)
    out, _ = world().train(spec, execution)
    world().predict(predict_spec(spec), out, execution)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_many_chunks_are_written_in_order(tmp_path, monkeypatch):
    whole, _ = open_images(load_tiny(), NAMES, world().images, shas(), tmp_path / "a")
    monkeypatch.setattr(features, "CHUNK", 4)
    parts, _ = open_images(load_tiny(), NAMES, world().images, shas(), tmp_path / "b")
    assert parts.features.shape == whole.features.shape == (21, 1, 17, 16)
    torch.testing.assert_close(parts.features, whole.features, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("content", [b"", b"not a tensor file at all", None])
def test_damaged_file_is_made_again(content, tmp_path):
    images, _ = open_images(load_tiny(), NAMES, world().images, shas(), tmp_path)
    expected = images.features.clone()
    del images
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    images, facts = open_images(load_tiny(), NAMES, world().images, shas(), tmp_path)
    assert facts["computed"] is True
    assert torch.equal(images.features, expected)


def test_two_jobs_at_once_compute_once(tmp_path, monkeypatch):
    calls = []
    plain = features._compute
    monkeypatch.setattr(features, "_compute", lambda *a: calls.append(1) or plain(*a))
    bases = [load_tiny(), load_tiny()]
    results = []

    def job(base):
        results.append(open_images(base, NAMES, world().images, shas(), tmp_path)[0])

    threads = [threading.Thread(target=job, args=(base,)) for base in bases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1] and len(results) == 2
    assert torch.equal(results[0].features, results[1].features)


def test_other_weights_and_preprocessing_have_other_files(tmp_path):
    open_images(load_tiny(), NAMES, world().images, shas(), tmp_path)
    base = load_tiny()
    with torch.no_grad():
        base.model.model.vision_tower.pre_layrnorm.bias[0] += 1e-3
    assert open_images(base, NAMES, world().images, shas(), tmp_path)[1]["computed"]
    base = load_tiny()
    base.processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    assert open_images(base, NAMES, world().images, shas(), tmp_path)[1]["computed"]
    base = load_tiny()
    base.model.model.multi_modal_projector.linear_1.bias.data += 1  # behind the features
    assert not open_images(base, NAMES, world().images, shas(), tmp_path)[1]["computed"]
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_models_without_a_feature_layer_cannot_be_cached(tmp_path):
    base = load_tiny()
    base.model.config = types.SimpleNamespace()
    with pytest.raises(UserError, match="cache_vision: only for models with one tower"):
        open_images(base, NAMES, world().images, shas(), tmp_path)
    assert open_images(base, NAMES, world().images, shas(), None)[1] == {"cached": False}
    assert CPU.cache_dir is None
