"""One writer per family of models: a tiny random checkpoint in the layout of its repository, see ``model_zoo``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo_parts import (
    byte_level,
    clip_sizes,
    done,
    edit,
    gemma_tokenizer,
    llama_tokenizer,
    padded,
    qwen_tokenizer,
    random_model,
    save_image_processor,
    save_model,
    save_tokenizer,
    siglip_sizes,
    text_sizes,
)


def llava(folders: dict[str, Path], hidden: int = 32) -> None:
    """llava-hf/llava-1.5: the old key names, two shards, and a processor that crops."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = folders["model"]
    tokenizer = llama_tokenizer(multimodal=True)
    image = tokenizer.convert_tokens_to_ids("<image>")
    sizes = text_sizes(tokenizer, padded(tokenizer), num_key_value_heads=4, hidden_size=hidden)
    config = LlavaConfig(
        text_config=LlamaConfig(**sizes),
        vision_config=CLIPVisionConfig(**clip_sizes()),
        image_token_index=image,
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        pad_token_id=tokenizer.pad_token_id,
    )
    save_model(random_model(LlavaForConditionalGeneration, config), folder, tokenizer.eos_token_id, "60KB")
    save_tokenizer(tokenizer, folder, "LlamaTokenizer", "LlavaProcessor", add_bos_token=True)
    crop = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    save_image_processor(crop, folder, "CLIPImageProcessor", "LlavaProcessor")
    edit(
        folder / "processor_config.json",
        image_token="<image>",
        patch_size=7,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        processor_class="LlavaProcessor",
    )
    done(folders)


def llava_next(folders: dict[str, Path]) -> None:
    """llava-hf/llava-v1.6: tiles of the image beside the whole."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    folder = folders["model"]
    tokenizer = llama_tokenizer(multimodal=True)
    grid = [[28, 56], [56, 28], [56, 56]]
    config = LlavaNextConfig(
        text_config=LlamaConfig(**text_sizes(tokenizer, padded(tokenizer), num_key_value_heads=4)),
        vision_config=CLIPVisionConfig(**clip_sizes()),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        pad_token_id=tokenizer.pad_token_id,
    )
    save_model(random_model(LlavaNextForConditionalGeneration, config), folder, tokenizer.eos_token_id)
    save_tokenizer(tokenizer, folder, "LlamaTokenizer", "LlavaNextProcessor", add_bos_token=True)
    tiles = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=grid
    )
    save_image_processor(tiles, folder, "LlavaNextImageProcessor", "LlavaNextProcessor")
    edit(
        folder / "processor_config.json",
        image_token="<image>",
        patch_size=7,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        processor_class="LlavaNextProcessor",
    )
    done(folders)


def sharegpt4v(folders: dict[str, Path]) -> None:
    """Two repositories in the original layout, in PyTorch's files, and the tokenizer of a third one."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    llm, tower = folders["llm"], folders["tower"]
    if not (folders["tokenizer"] / "written").is_file():
        llava({"model": folders["tokenizer"]})
    tokenizer = llama_tokenizer(multimodal=False)
    sizes = text_sizes(tokenizer, len(tokenizer), num_key_value_heads=4)
    weights = random_model(LlamaForCausalLM, LlamaConfig(**sizes), seed=1).state_dict()
    for layer, width in ((0, 32), (2, 32)):
        weights[f"model.mm_projector.{layer}.weight"] = 0.2 * torch.randn(32, width)
        weights[f"model.mm_projector.{layer}.bias"] = 0.1 * torch.randn(32)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    keys = sorted(weights)
    shards = {"pytorch_model-00001-of-00002.bin": keys[:9], "pytorch_model-00002-of-00002.bin": keys[9:]}
    for file, names in shards.items():
        torch.save({name: weights[name].to(torch.bfloat16) for name in names}, llm / file)
    places = {name: file for file, names in shards.items() for name in names}
    edit(llm / "pytorch_model.bin.index.json", metadata={"total_size": 1}, weight_map=places)
    edit(
        llm / "config.json",
        **sizes | {"pad_token_id": 0},
        architectures=["Share4VLlamaForCausalLM"],
        model_type="share4v",
        hidden_act="silu",
        rms_norm_eps=1e-5,
        torch_dtype="bfloat16",
        tie_word_embeddings=False,
        image_aspect_ratio="pad",
        mm_hidden_size=32,
        mm_projector_type="mlp2x_gelu",
        mm_use_im_start_end=False,
        mm_vision_select_feature="patch",
        mm_vision_select_layer=-2,
        mm_vision_tower="/".join(tower.parts[-2:]),
    )
    clip = random_model(CLIPVisionModel, CLIPVisionConfig(**clip_sizes()), seed=2)
    old = {f"vision_model.{name}": value.to(torch.bfloat16) for name, value in clip.state_dict().items()}
    old["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    torch.save(old, tower / "pytorch_model.bin")
    edit(
        tower / "config.json",
        model_type="clip_vision_model",
        architectures=["CLIPVisionModel"],
        **clip_sizes(),
    )
    done(folders)


def qwen2_vl_family(folders: dict[str, Path], three: bool) -> None:
    """Qwen2.5-VL and Qwen3-VL: patches in a row, positions in three dimensions."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
    )
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    folder = folders["model"]
    marks = ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = qwen_tokenizer(marks)
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    tokens = {f"{name}_token_id": i for name, i in ids.items()} | {
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"),
    }
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    text = text_sizes(tokenizer, padded(tokenizer), tie_word_embeddings=True, rope_parameters=rope)
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    if three:
        text |= {"head_dim": 8}
        text["rope_parameters"] = rope | {"mrope_interleaved": True}
        vision |= {"patch_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
        config: Any = Qwen3VLConfig(
            text_config=text, vision_config=vision, tie_word_embeddings=True, **tokens
        )
        model = random_model(Qwen3VLForConditionalGeneration, config)
    else:
        vision |= {"window_size": 56, "fullatt_block_indexes": [1]}
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **tokens)
        model = random_model(Qwen2_5_VLForConditionalGeneration, config)
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    save_model(model, folder, ends)
    name = "Qwen3VLProcessor" if three else "Qwen2_5_VLProcessor"
    save_tokenizer(tokenizer, folder, "Qwen2Tokenizer", name if not three else None, add_bos_token=False)
    patch = 16 if three else 14
    processor = Qwen2VLImageProcessorPil(
        patch_size=patch, size={"shortest_edge": (2 * patch) ** 2, "longest_edge": 1024 * patch**2}
    )
    kind = "Qwen2VLImageProcessorFast" if three else "Qwen2VLImageProcessor"
    save_image_processor(processor, folder, kind, name)
    done(folders)


def onevision(folders: dict[str, Path]) -> None:
    """llava-hf/llava-onevision: tiles on a fifth axis, an embedding at the end of each row."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    folder = folders["model"]
    tokenizer = qwen_tokenizer(["<image>", "<video>"])
    grid = [[28, 28], [28, 56], [56, 28], [56, 56]]
    config = LlavaOnevisionConfig(
        text_config=Qwen2Config(**text_sizes(tokenizer, padded(tokenizer), tie_word_embeddings=True)),
        vision_config=SiglipVisionConfig(**siglip_sizes(28)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        vision_aspect_ratio="anyres_max_9",
        tie_word_embeddings=True,
    )
    model = random_model(LlavaOnevisionForConditionalGeneration, config, seed=1)
    save_model(model, folder, tokenizer.eos_token_id)
    save_tokenizer(tokenizer, folder, "Qwen2Tokenizer", "LlavaOnevisionProcessor", add_bos_token=False)
    tiles = LlavaOnevisionImageProcessorPil(size={"height": 28, "width": 28}, image_grid_pinpoints=grid)
    save_image_processor(tiles, folder, "LlavaOnevisionImageProcessor", "LlavaOnevisionProcessor")
    edit(
        folder / "processor_config.json",
        image_token="<image>",
        video_token="<video>",
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        processor_class="LlavaOnevisionProcessor",
    )
    done(folders)


def internvl(folders: dict[str, Path]) -> None:
    """OpenGVLab/InternVL3-hf: tiles one after the other, four patches to a token."""
    from transformers import (
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLVisionConfig,
        Qwen2Config,
    )
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    folder = folders["model"]
    marks = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = qwen_tokenizer(list(marks.values()), extra_special_tokens=marks)
    vision = clip_sizes(28) | {"patch_size": [7, 7], "image_size": [28, 28], "attention_bias": True}
    vision.pop("projection_dim")
    config = InternVLConfig(
        text_config=Qwen2Config(**text_sizes(tokenizer, padded(tokenizer), tie_word_embeddings=True)),
        vision_config=InternVLVisionConfig(**vision),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=True,
    )
    save_model(random_model(InternVLForConditionalGeneration, config), folder, tokenizer.eos_token_id)
    save_tokenizer(tokenizer, folder, "Qwen2Tokenizer", "InternVLProcessor", add_bos_token=False, **marks)
    tiles = GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}, min_patches=1, max_patches=4)
    save_image_processor(tiles, folder, "GotOcr2ImageProcessorFast", "InternVLProcessor")
    edit(folder / "processor_config.json", image_seq_length=4, processor_class="InternVLProcessor")
    done(folders)


def smolvlm(folders: dict[str, Path]) -> None:
    """HuggingFaceTB/SmolVLM2: tiles with row and column marks, and a mask over pixels."""
    from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    folder = folders["model"]
    marks = {
        "fake_image_token": "<fake_token_around_image>",
        "image_token": "<image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    rows = [f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)]
    tokenizer = byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks.values(), *rows],
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        extra_special_tokens=marks,
    )
    vision = clip_sizes(56) | {"patch_size": 14, "model_type": "smolvlm_vision"}
    vision.pop("projection_dim")
    config = SmolVLMConfig(
        text_config=LlamaConfig(**text_sizes(tokenizer, padded(tokenizer))).to_dict(),
        vision_config=vision,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    save_model(random_model(SmolVLMForConditionalGeneration, config), folder, tokenizer.eos_token_id)
    save_tokenizer(tokenizer, folder, "GPT2Tokenizer", "SmolVLMProcessor", **marks)
    tiles = SmolVLMImageProcessorPil(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    save_image_processor(tiles, folder, "SmolVLMImageProcessor", "SmolVLMProcessor")
    edit(folder / "processor_config.json", image_seq_len=4, processor_class="SmolVLMProcessor")
    done(folders)


def gemma3(folders: dict[str, Path]) -> None:
    """google/gemma-3-it: a sliding window in one layer, the image as a block that sees all of itself."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    folder = folders["model"]
    marks = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    tokenizer = gemma_tokenizer(
        ["<start_of_turn>", "<end_of_turn>", *marks.values()], extra_special_tokens=marks
    )
    text = text_sizes(
        tokenizer,
        padded(tokenizer),
        head_dim=8,
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=8,
    )
    config = Gemma3Config(
        text_config=text,
        vision_config=siglip_sizes(56),
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
    )
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    save_model(random_model(Gemma3ForConditionalGeneration, config), folder, ends)
    save_tokenizer(tokenizer, folder, "GemmaTokenizer", "Gemma3Processor", add_bos_token=True, **marks)
    processor = Gemma3ImageProcessorPil(size={"height": 56, "width": 56}, image_seq_length=4)
    save_image_processor(processor, folder, "Gemma3ImageProcessor", "Gemma3Processor")
    edit(folder / "processor_config.json", image_seq_length=4, processor_class="Gemma3Processor")
    done(folders)


def paligemma2(folders: dict[str, Path]) -> None:
    """google/paligemma2-pt: Gemma 2 with capped logits; no chat, the prompt sees all of itself."""
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    folder = folders["model"]
    places = [f"<loc{i:04d}>" for i in range(1024)] + [f"<seg{i:03d}>" for i in range(128)]
    tokenizer = gemma_tokenizer(["<image>", *places], extra_special_tokens={"image_token": "<image>"})
    text = text_sizes(
        tokenizer,
        padded(tokenizer),
        model_type="gemma2",
        head_dim=8,
        sliding_window=24,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"],
    )
    config = PaliGemmaConfig(
        text_config=text,
        vision_config=siglip_sizes(28, projection_dim=32),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    model = random_model(PaliGemmaForConditionalGeneration, config)
    save_model(model, folder, tokenizer.eos_token_id)
    save_tokenizer(tokenizer, folder, "GemmaTokenizer", "PaliGemmaProcessor", add_bos_token=True)
    processor = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    processor.image_seq_length = 4
    save_image_processor(processor, folder, "SiglipImageProcessor", "PaliGemmaProcessor")
    done(folders)


def qwen_vl(folders: dict[str, Path]) -> None:
    """Qwen/Qwen-VL-Chat, see ``qwen_vl_folder``."""
    from qwen_vl_folder import write_hub_folder

    write_hub_folder(folders["model"])
    done(folders)
