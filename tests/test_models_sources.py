"""Building base models from what was retrieved: layouts, towers, vocabularies, counts, and what goes wrong."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from model_world import built, load, root
from model_zoo import edit, model_file, model_names, retrieved, source
from peftbench.errors import UserError
from peftbench.models.base import build_base_model, count_parameters
from peftbench.models.sources import hub, llava_original
from peftbench.models.weights import ShardWriter, read_weights
from peftbench.spec import BaseSpec


def build(name, out, files=None, parameters=None, **changes):
    spec = BaseSpec(
        model=name, source=source(name) | changes, names=model_names(name), parameters=parameters or {}
    )
    return build_base_model(spec, out, files or retrieved(name, root()))


def changed(name, origin, folder, **config):
    """The files of a model with one origin copied, to be damaged."""
    files = retrieved(name, root())
    copy = folder / origin
    shutil.copytree(files[origin], copy)
    for path in copy.iterdir():  # copies, not the shared files
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
    if config:
        edit(copy / "config.json", **config)
    return files | {origin: copy}


def original_pixels(image, side, mean, std):
    """The definition of LLaVA-1.5's image_aspect_ratio "pad", with Pillow and numpy alone."""
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), tuple(int(255 * value) for value in mean))
    square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    small = np.asarray(square.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    return ((small / 255 - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)


@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-1.5-13b", "sharegpt4v-7b"])
@pytest.mark.parametrize("size", [(500, 333), (333, 500), (336, 336), (41, 97), (640, 479), (1, 300)])
def test_llava_pads_as_the_original(name, size):
    rng = np.random.default_rng(sum(size))
    image = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    processor = load(name).processor.image_processor
    mean = (0.48145466, 0.4578275, 0.40821073)
    std = (0.26862954, 0.26130258, 0.27577711)
    for side in (28, 336):
        pixels = processor(
            images=[image],
            return_tensors="np",
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
        )["pixel_values"][0]
        expected = original_pixels(image, side, mean, std)
        assert np.abs(pixels - expected).max() < 1e-6, side
        # the 8-bit values themselves are the same
        back = [np.round((p.transpose(1, 2, 0) * std + mean) * 255).astype(int) for p in (pixels, expected)]
        assert (back[0] == back[1]).all()


def test_stock_processor_would_have_cropped():
    stock = json.loads((retrieved("llava-1.5-7b", root())["model"] / "preprocessor_config.json").read_bytes())
    assert stock["image_processor_type"] == "CLIPImageProcessor" and stock["do_center_crop"] is True
    assert "do_pad" not in stock
    own = json.loads((built("llava-1.5-7b") / "processor_config.json").read_bytes())["image_processor"]
    assert own["image_processor_type"].startswith("LlavaImageProcessor") and own["do_pad"] is True


def test_weights_are_linked_and_keep_the_hub_s_names():
    folder, made = retrieved("llava-1.5-7b", root())["model"], built("llava-1.5-7b")
    shards = sorted(path.name for path in made.glob("*.safetensors"))
    assert len(shards) > 1
    for shard in shards:
        assert (made / shard).stat().st_ino == (folder / shard).stat().st_ino
    keys = {name for name, _ in read_weights(made)}
    assert any(key.startswith("vision_tower.") for key in keys)
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in keys


def test_weights_are_copied_where_links_fail(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("other disk")

    files = {"model": retrieved("paligemma2-3b", root())["model"]}
    monkeypatch.setattr("os.link", refuse)
    build("paligemma2-3b", tmp_path / "m", files)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == (
        files["model"] / "model.safetensors"
    ).read_bytes()


def test_pickled_weights_become_safetensors(tmp_path):
    files = changed("internvl3-1b", "model", tmp_path)
    folder = files["model"]
    weights = dict(read_weights(folder))
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    build("internvl3-1b", tmp_path / "m", files)
    again = dict(read_weights(tmp_path / "m"))
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)


# --- published counts


def test_counts_are_compared(tmp_path):
    counts = count_parameters(built("qwen3-vl-2b"), model_names("qwen3-vl-2b"))
    facts = build("qwen3-vl-2b", tmp_path / "a", parameters=counts)
    assert facts["parameters"] == counts
    with pytest.raises(
        UserError, match=r"parameters: the model has language 15,552 instead of 15,553: another"
    ):
        build("qwen3-vl-2b", tmp_path / "b", parameters=counts | {"language": counts["language"] + 1})


def test_names_that_do_not_fit_are_found_when_the_model_is_built(tmp_path):
    spec = BaseSpec(model="x", source=source("smolvlm2-500m"), names=model_names("llava-1.5-7b"))
    with pytest.raises(UserError, match=r"layers: the pattern .* matches no module of SmolVLM"):
        build_base_model(spec, tmp_path / "m", retrieved("smolvlm2-500m", root()))


LLAMA = {"vocab_size": 32064, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
CLIP = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
REAL = {
    "llava-1.5-7b": {"model_type": "llava", "text_config": {**LLAMA, "intermediate_size": 11008}},
    "llava-1.5-13b": {
        "model_type": "llava",
        "text_config": LLAMA
        | {
            "hidden_size": 5120,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "intermediate_size": 13824,
        },
    },
    "llava-next-7b": {"model_type": "llava_next", "text_config": {**LLAMA, "intermediate_size": 11008}},
}


@pytest.mark.parametrize("name", REAL)
def test_published_counts_are_those_of_the_real_sizes(name, tmp_path):
    config = REAL[name] | {"vision_config": {"model_type": "clip_vision_model", **CLIP}}
    config["text_config"] = {"model_type": "llama", **config["text_config"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert count_parameters(tmp_path, model_names(name)) == model_file(name)["parameters"]


def test_totals_of_the_paper_s_table_15():
    """Without the 64 rows that the converted checkpoints add to each of the two matrices of the vocabulary."""
    for name, width, total in (
        ("llava-1.5-7b", 4096, 7_062_902_784),
        ("llava-1.5-13b", 5120, 13_350_839_296),
    ):
        assert sum(model_file(name)["parameters"].values()) - 2 * 64 * width == total


# --- settings of the image processor


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_padd": True}, r"CLIPImageProcessorPil has no setting 'do_padd'; did you mean 'do_pad'"),
        ({"type": "LlavaImagProcessor"}, "type: transformers has no image processor 'LlavaImagProcessor'"),
    ],
)
def test_unknown_settings_are_named(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        build("llava-1.5-7b", tmp_path / "m", image_processor=settings)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"kind": "hub", "from": ["modle"]}, "from: name one repository, 'model'; there is modle"),
        ({"kind": "hub", "from": ["model"], "image_procesor": {}}, "unknown field `image_procesor`"),
    ],
)
def test_hub_block_is_checked(block, message):
    with pytest.raises(UserError, match=message):
        hub.parse(block)


def test_missing_files_are_one_line(tmp_path):
    files = changed("llava-1.5-7b", "model", tmp_path / "a")
    next(files["model"].glob("model-00001*")).unlink()
    with pytest.raises(
        UserError, match=r"index.json lists model-00001-of-\d+.safetensors, which is not there"
    ):
        build("llava-1.5-7b", tmp_path / "b", files)
    files = changed("llava-1.5-7b", "model", tmp_path / "c")
    (files["model"] / "config.json").unlink()
    with pytest.raises(UserError, match=r"the repository has no config.json"):
        build("llava-1.5-7b", tmp_path / "d", files)
    files = changed("llava-1.5-7b", "model", tmp_path / "e")
    for path in files["model"].glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="cannot load the processor"):
        build("llava-1.5-7b", tmp_path / "f", files)


# --- the original layout


def test_sharegpt4v_is_its_two_parts_to_the_bit():
    files = retrieved("sharegpt4v-7b", root())
    model = load("sharegpt4v-7b").model
    state = model.state_dict()
    old = dict(read_weights(files["llm"]))
    pairs = {
        "model.language_model.layers.1.mlp.down_proj.weight": "model.layers.1.mlp.down_proj.weight",
        "model.multi_modal_projector.linear_1.weight": "model.mm_projector.0.weight",
        "model.multi_modal_projector.linear_2.bias": "model.mm_projector.2.bias",
    }
    for new, key in pairs.items():
        assert torch.equal(state[new], old[key].float())
    tower = dict(read_weights(files["tower"]))
    for key, value in tower.items():
        if not key.endswith("position_ids"):
            assert torch.equal(
                state["model.vision_tower." + key.removeprefix("vision_model.")], value.float()
            )
    rows = old["lm_head.weight"].shape[0]
    for new, key in (
        ("model.language_model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ):
        assert torch.equal(state[new][:rows], old[key].float())
        assert state[new].shape[0] % 64 == 0 and state[new].shape[0] >= rows + 2
        added, mean = state[new][rows:], old[key].float().mean(0)
        assert (added - mean).abs().max() < 0.1 * old[key].float().std()
        assert added.std(dim=0).min() > 0
    tokenizer = load("sharegpt4v-7b").tokenizer
    assert tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]) == [rows, rows + 1]
    assert model.config.image_token_id == rows


def test_new_rows_have_the_old_ones_covariance():
    rows = torch.randn(300, 8, generator=torch.Generator().manual_seed(0)) @ torch.randn(8, 8) + 2
    many = llava_original._more_rows(rows, 300 + 200_000)
    assert torch.equal(many[:300], rows)
    added = many[300:].double()
    centred = rows.double() - rows.double().mean(0)
    torch.testing.assert_close(added.mean(0), rows.double().mean(0), atol=1e-3, rtol=0)
    expected = 1e-5 * centred.T @ centred / 300
    torch.testing.assert_close(
        added.T.cov(correction=0), expected, atol=3e-2 * expected.abs().max().item(), rtol=0
    )
    assert torch.equal(llava_original._more_rows(rows, 310), llava_original._more_rows(rows, 310))


def test_logits_are_those_of_the_parts():
    """The converted model against the language model and the tower run by hand, as LLaVA's own code joins them."""
    from transformers import CLIPVisionModel, LlamaForCausalLM

    base = load("sharegpt4v-7b")
    model = base.model
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, *[base.image_token_id] * 16, 300, 301]])
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
        tower = CLIPVisionModel(model.config.vision_config).eval()
        tower.load_state_dict(model.model.vision_tower.state_dict())
        features = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        projector = model.model.multi_modal_projector
        features = projector.linear_2(torch.nn.functional.gelu(projector.linear_1(features)))
        language = LlamaForCausalLM(model.config.text_config).eval()
        language.model.load_state_dict(model.model.language_model.state_dict())
        language.lm_head.load_state_dict(model.lm_head.state_dict())
        embeddings = language.model.embed_tokens(ids)
        joined = torch.cat([embeddings[:, :1], features, embeddings[:, 17:]], dim=1)
        torch.testing.assert_close(language(inputs_embeds=joined).logits, expected, atol=1e-5, rtol=1e-5)


def test_safetensors_and_one_file_give_the_same(tmp_path):
    files = changed("sharegpt4v-7b", "llm", tmp_path)
    weights = dict(read_weights(files["llm"]))
    for path in files["llm"].glob("pytorch_model*"):
        path.unlink()
    with ShardWriter(files["llm"]) as writer:
        for name, tensor in weights.items():
            writer.add(name, tensor)
    build("sharegpt4v-7b", tmp_path / "m", files)
    new, old = dict(read_weights(tmp_path / "m")), dict(read_weights(built("sharegpt4v-7b")))
    assert new.keys() == old.keys() and all(torch.equal(new[name], old[name]) for name in new)


def test_small_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(ShardWriter.__init__, "__defaults__", (40_000,))
    build("sharegpt4v-7b", tmp_path / "m")
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_bytes())
    files = sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
    assert len(files) > 3 and sorted(set(index["weight_map"].values())) == files
    assert not list((tmp_path / "m").glob("*.part"))
    new, old = dict(read_weights(tmp_path / "m")), dict(read_weights(built("sharegpt4v-7b")))
    assert new.keys() == old.keys() and all(torch.equal(new[name], old[name]) for name in new)


def test_stock_tower_is_refused_unless_asked_for(tmp_path):
    files = changed("sharegpt4v-7b", "tower", tmp_path)
    edit(files["tower"] / "record.json", spec={"hub": "openai/clip-vit-large-patch14-336"})
    message = re.escape(
        "from.tower is openai/clip-vit-large-patch14-336, but the checkpoint was trained with "
        "Lin-Chen/ShareGPT4V-7B_Pretrained_vit-large336-l12: take that one, or say other_tower: true"
    )
    with pytest.raises(UserError, match=message):
        build("sharegpt4v-7b", tmp_path / "a", files)
    assert build("sharegpt4v-7b", tmp_path / "b", files, other_tower=True)["tower"].startswith("openai/")
    (files["tower"] / "record.json").unlink()
    with pytest.raises(UserError, match=r"from.tower is of unknown origin"):
        build("sharegpt4v-7b", tmp_path / "c", files)


def spoil(files, origin, change):
    """Rewrite the weights of an origin as one file."""
    weights = change(dict(read_weights(files[origin])))
    for path in files[origin].glob("pytorch_model*"):
        path.unlink()
    torch.save(weights, files[origin] / "pytorch_model.bin")
    return files


@pytest.mark.parametrize(
    ("origin", "change", "message"),
    [
        (
            "llm",
            lambda w: {k: v for k, v in w.items() if "mm_projector.2" not in k},
            r"lacks 2 of \d+ weights",
        ),
        ("tower", lambda w: {k: v for k, v in w.items() if "layers.1" not in k}, r"from.tower lacks \d+ of"),
        (
            "llm",
            lambda w: w | {"model.vision_tower.x": torch.ones(1)},
            "holds model.vision_tower.x, which is no",
        ),
        ("llm", lambda w: w | {"model.norm.weight": torch.ones(5)}, r"model.norm.weight is \(5,\), expected"),
    ],
)
def test_weights_that_do_not_fit_are_named(origin, change, message, tmp_path):
    files = spoil(changed("sharegpt4v-7b", origin, tmp_path), origin, change)
    with pytest.raises(UserError, match=message):
        build("sharegpt4v-7b", tmp_path / "m", files)


def test_damaged_pickle_and_other_projector(tmp_path):
    files = changed("sharegpt4v-7b", "tower", tmp_path / "a")
    (files["tower"] / "pytorch_model.bin").write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"pytorch_model.bin: cannot be read as weights"):
        build("sharegpt4v-7b", tmp_path / "b", files)
    files = changed("sharegpt4v-7b", "llm", tmp_path / "c", mm_projector_type="linear")
    with pytest.raises(UserError, match=r"mm_projector_type linear is not LLaVA-1.5's mlp2x_gelu"):
        build("sharegpt4v-7b", tmp_path / "d", files)


def test_whole_clip_as_tower(tmp_path):
    """A repository of CLIP with its text half: that half is left out."""
    files = changed("sharegpt4v-7b", "tower", tmp_path)
    folder = files["tower"]
    vision = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").unlink()
    edit(folder / "config.json", model_type="clip", vision_config=vision, text_config={"hidden_size": 8})
    extra = {"text_model.embeddings.x": torch.ones(2), "logit_scale": torch.ones(())}
    spoil(files, "tower", lambda w: w | extra | {"visual_projection.weight": torch.ones(2, 2)})
    build("sharegpt4v-7b", tmp_path / "m", files)
    new, old = dict(read_weights(tmp_path / "m")), dict(read_weights(built("sharegpt4v-7b")))
    assert new.keys() == old.keys() and all(torch.equal(new[name], old[name]) for name in new)
