"""Qwen-VL-Chat from its repository to a folder that the workflow loads: weights, tokenizer, processor."""

from __future__ import annotations

import json
import random
import re
import unicodedata

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftbench.errors import UserError
from peftbench.models.base import build_base_model
from peftbench.models.sources.qwen_vl import build, parse
from qwen_vl_folder import (
    byte_pairs,
    folders,
    hub_config,
    hub_weights,
    load_tiny_qwen,
    model_file,
    spec,
    write_hub_folder,
)

SOURCE = {"kind": "qwen_vl", "from": ["model"]}


# Building ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["bin", "safetensors"])
def test_build_keeps_every_tensor_and_no_code(layout):
    top = folders()
    built = top / f"built-{layout}"
    weights = {k: v for path in built.glob("*.safetensors") for k, v in load_file(path).items()}
    expected = hub_weights(hub_config())
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert not list(built.rglob("*.py")) and not list(built.glob("*.bin"))
    config = json.loads((built / "config.json").read_text())
    assert config["model_type"] == "qwen" and "auto_map" not in config and config["dtype"] == "bfloat16"
    assert "auto_map" not in (built / "tokenizer_config.json").read_text()
    for path in (top / layout).glob("*.safetensors"):
        assert path.stat().st_ino == (built / path.name).stat().st_ino  # linked, not copied
    generation = json.loads((built / "generation_config.json").read_text())
    eod = len(byte_pairs())
    assert generation["eos_token_id"] == [eod + 2, eod + 1, eod] and generation["pad_token_id"] == eod
    assert not generation.get("do_sample", False) and "top_p" not in generation


def test_the_repository_itself_loads_without_its_code():
    from transformers import AutoModelForImageTextToText

    import peftbench.models.qwen_vl  # noqa: F401 - registers

    top = folders()
    ids = torch.arange(20)[None]
    logits = []
    for folder in ("bin", "safetensors", "built-bin", "built-safetensors"):
        model, info = AutoModelForImageTextToText.from_pretrained(
            top / folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
        assert not any(info.values()), info
        with torch.no_grad():
            logits.append(model.eval()(input_ids=ids).logits)
    assert all(torch.equal(one, logits[0]) for one in logits)


def damaged(tmp_path, layout="bin", **changes):
    return write_hub_folder(tmp_path / "hub", layout, **changes)


def change_shard(folder, change):
    path = sorted(folder.glob("*-00001-of-*"))[0]
    weights = torch.load(path, weights_only=True) if path.suffix == ".bin" else load_file(path)
    change(weights)
    torch.save(weights, path) if path.suffix == ".bin" else save_file(weights, path)


@pytest.mark.parametrize("layout", ["bin", "safetensors"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("transformer.h.1.mlp.w1.weight"), "misses tensor transformer.h.1.mlp.w1.weight"),
        (lambda w: w.update({"transformer.h.0.attn.masked_bias": torch.zeros(1)}), "has unexpected tensor"),
        (lambda w: w.update({"transformer.ln_f.weight": torch.ones(64)}), r"\(64,\) instead of \(128,\)"),
        (lambda w: w.update({"transformer.ln_f.weight": torch.ones(128)}), "several types"),
    ],
)
def test_weights_must_be_exactly_those_of_the_model(tmp_path, layout, change, words):
    folder = damaged(tmp_path, layout)
    change_shard(folder, change)
    with pytest.raises(UserError, match=words):
        build(spec(), tmp_path / "out", {"model": folder})
    assert not (tmp_path / "out").exists()


def test_other_repositories_and_damaged_files_are_refused(tmp_path):
    folder = damaged(tmp_path)
    for name, content, words in (
        ("config.json", "{", "not a configuration"),
        ("config.json", json.dumps(hub_config(model_type="qwen2")), "not a Qwen-VL checkpoint"),
        ("config.json", json.dumps({k: v for k, v in hub_config().items() if k != "visual"}), "visual block"),
        ("config.json", json.dumps(hub_config(no_bias=False)), "no_bias"),
        ("config.json", json.dumps(hub_config(hidden_size="128")), "hidden_size"),
        ("config.json", json.dumps(hub_config(visual={"image_start_id": 500})), "different models"),
        ("config.json", json.dumps(hub_config(vocab_size=511)), "image_start_id|has 512 tokens"),
        ("qwen.tiktoken", "IQ== 0\n!!! 1\n", "line 2 is not a token"),
        ("qwen.tiktoken", "IQ== 0\nIg== 2\n", "ranks are not 0 to 1"),
        ("qwen.tiktoken", "IQ== 0\nIg== 1\n", "single bytes are missing"),
        ("qwen.tiktoken", None, "No such file"),
        ("pytorch_model-00002-of-00002.bin", None, "not there"),
        ("pytorch_model-00002-of-00002.bin", "junk", "cannot be read"),
    ):
        path = folder / name
        before = path.read_bytes()
        path.unlink() if content is None else path.write_text(content)
        with pytest.raises(UserError, match=words):
            build(spec(), tmp_path / "out", {"model": folder})
        path.write_bytes(before)
    build(spec(), tmp_path / "out", {"model": folder})
    for source, words in (
        ({"kind": "qwen_vl", "from": ["tower"]}, "one origin 'model'"),
        ({"kind": "qwen_vl"}, "from"),
        (SOURCE | {"layers": 3}, "layers"),
    ):
        with pytest.raises(UserError, match=words):
            parse(source)


@pytest.mark.parametrize("variant", ["qwen-vl-chat", "qwen-vl-chat-as_coded"])
def test_the_model_files_fit(tmp_path, variant):
    from peftbench.models.arch import component_counts, measure_dims, partition
    from peftbench.models.qwen_vl import QwenVLConfig, QwenVLForConditionalGeneration

    own = model_file(variant)
    with torch.device("meta"):
        model = QwenVLForConditionalGeneration(QwenVLConfig())
    parts = partition(model, model_file(variant).names)
    assert component_counts(parts, model) == own.parameters
    assert sum(own.parameters.values()) == 9_656_935_168
    assert parts["transformer.visual.attn_pool.pos_embed"] == "vision"
    assert measure_dims(model, model_file(variant).names).head_dim == 128
    # the whole of what a build job does, with the names of the model file
    facts = build_base_model(
        spec(names=model_file(variant).names), tmp_path / "out", {"model": folders() / "bin"}
    )
    assert facts["tensors"] == len(hub_weights(hub_config())) and facts["dtype"] == "bfloat16"
    with pytest.raises(UserError, match="parameters"):
        wrong = spec(names=model_file(variant).names, parameters={"language": 1})
        build_base_model(wrong, tmp_path / "other", {"model": folders() / "bin"})


# Tokenizer and processor -------------------------------------------------------------------------------------

PIECES = re.compile(
    r"<\|im_start\|>|<\|im_end\|>|<img>|</img>|<imgpad>|<\|endoftext\|>|<box>|<\|extra_204\|>"
)


def reference_ids(text):
    """tiktoken's way: special tokens cut out, the rest split by the pattern, then the lowest rank merged first."""
    import regex

    ranks = {token: rank for rank, token in enumerate(byte_pairs())}
    special = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<|extra_204|>": 207, "<box>": 210}
    special |= {"<img>": 214, "</img>": 215, "<imgpad>": 216}
    pattern = regex.compile(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    ids, at = [], 0
    for found in [*PIECES.finditer(text), None]:
        end = len(text) if found is None else found.start()
        for piece in pattern.findall(unicodedata.normalize("NFC", text[at:end])):
            parts = [bytes([b]) for b in piece.encode()]
            while len(parts) > 1:
                pairs = [ranks.get(parts[i] + parts[i + 1], 10**9) for i in range(len(parts) - 1)]
                best = min(range(len(pairs)), key=pairs.__getitem__)
                if pairs[best] == 10**9:
                    break
                parts[best : best + 2] = [parts[best] + parts[best + 1]]
            ids += [ranks[part] for part in parts]
        if found is not None:
            ids.append(len(byte_pairs()) + special[found.group()])
            at = found.end()
    return ids


def samples():
    rng = random.Random(0)
    fixed = [
        "the red thing is on the other color's centre, they'll see 1234 + 56.",
        "  spaces   and\ttabs \n\n lines\r\n end  ",
        "中国人 国中 日本語 한국어",
        "e\u0301 and é, \u212b, ﬁ",
        "🙂👩‍👩‍👧 <|im_start|>user\nPicture 1: <img><imgpad></img>\nthe<|im_end|>\n<|endoftext|>",
        "<box>(1,2)</box> <|extra_204|> <|unknown|> <img",
        "",
    ]
    letters = [*"theinraoucd lgb'\n\t 19é中国🙂.,", "<|im_end|>", "<img>", " the", "  "]
    return fixed + ["".join(rng.choices(letters, k=rng.randint(1, 60))) for _ in range(400)]


def test_the_tokenizer_is_tiktokens():
    tokenizer = load_tiny_qwen().tokenizer
    for text in samples():
        ids = tokenizer(text)["input_ids"]
        known = text.replace("</box>", "").replace("<|unknown|>", "")
        if known == text:
            assert ids == reference_ids(text), text
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == unicodedata.normalize("NFC", text)


def test_special_tokens_have_the_ids_of_the_description():
    tokenizer, first = load_tiny_qwen().tokenizer, len(byte_pairs())
    expected = {
        "<|endoftext|>": 0,
        "<|im_start|>": 1,
        "<|im_end|>": 2,
        "<|extra_0|>": 3,
        "<|extra_204|>": 207,
    }
    expected |= {"<ref>": 208, "</ref>": 209, "<box>": 210, "</box>": 211, "<quad>": 212, "</quad>": 213}
    expected |= {"<img>": 214, "</img>": 215, "<imgpad>": 216}
    # with the 151,643 ranks of the published file: <|endoftext|> 151643, <img> 151857, <imgpad> 151859
    assert {token: tokenizer.convert_tokens_to_ids(token) - first for token in expected} == expected
    assert len(tokenizer) == first + 217
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert tokenizer.bos_token is None
    assert (
        tokenizer("the", add_special_tokens=True)["input_ids"]
        == tokenizer("the", add_special_tokens=False)["input_ids"]
    )
    assert (
        tokenizer.decode([first + 1, *tokenizer("the")["input_ids"], first + 2], skip_special_tokens=True)
        == "the"
    )


def test_pixels_are_bicubic_squares_in_clips_units():
    import numpy as np
    from PIL import Image

    processor = load_tiny_qwen().processor
    noise = np.random.default_rng(0).integers(0, 256, (90, 301, 3), dtype=np.uint8)
    for picture in (
        Image.fromarray(noise),
        Image.fromarray(noise[..., 0]),
        Image.fromarray(noise).convert("RGBA"),
    ):
        values = processor.image_processor(images=[picture], return_tensors="pt")["pixel_values"]
        square = picture.convert("RGB").resize((112, 112), Image.Resampling.BICUBIC)
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        expected = (np.asarray(square) / 255.0 - mean) / std
        assert values.shape == (1, 3, 112, 112)
        assert np.abs(values[0].permute(1, 2, 0).numpy() - expected).max() < 1e-5


def test_the_processor_survives_saving_and_pickling(tmp_path):
    import pickle

    from PIL import Image
    from transformers import AutoProcessor

    processor = load_tiny_qwen().processor
    processor.save_pretrained(tmp_path)
    picture = Image.new("RGB", (50, 80), (200, 10, 10))
    text = "Picture 1: <img><imgpad></img>\nthe"
    outs = []
    for one in (processor, AutoProcessor.from_pretrained(tmp_path), pickle.loads(pickle.dumps(processor))):
        assert one.image_token == "<imgpad>" and one.replace_image_token({}, 0) == "<imgpad>" * 16
        outs.append(one(images=[picture], text=[text], return_tensors="pt"))
    start = len(byte_pairs()) + 214
    ids = outs[0]["input_ids"][0].tolist()
    at = ids.index(start)
    assert ids[at : at + 18] == [start, *[start + 2] * 16, start + 1] and ids.count(start + 2) == 16
    for out in outs[1:]:
        assert all(torch.equal(out[key], outs[0][key]) for key in outs[0])
