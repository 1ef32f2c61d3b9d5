"""What the tiny checkpoints of ``model_zoo`` are made of: tokenizers of the families' kinds, sizes, and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed,",
    "and polite answers to the user's questions. USER: what colour is the square? ASSISTANT: red green blue yellow",
    "system You are a helpful assistant. user model assistant answer en the picture User: Assistant: Who is it?",
    "Answer the question using a single word or phrase.\n\n\nWrite a short caption.\n\nwhich colour is shown here\n",
] * 8
WORDS = 320
"""Size of the tokenizers' vocabulary without special tokens."""


# --- tokenizers


def byte_level(specials: list[str], **settings: Any) -> Any:
    """GPT-2's kind: Qwen's and SmolLM's. The special tokens come last, as theirs do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _fast(tokenizer, specials, settings)


def sentence_piece(
    first: list[str], specials: list[str], prefix: bool, newlines: int, **settings: Any
) -> Any:
    """Llama's and Gemma's kind: pieces with a mark for spaces, bytes for what is unknown."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=WORDS, show_progress=False)
    trained.train_from_iterator([line.replace("\n", " ") for line in CORPUS], trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    runs = ["\n" * count for count in range(1, newlines + 1)]
    ordered = [*first, *(f"<0x{byte:02X}>" for byte in range(256)), *runs, *pieces]
    merges = [("\n", run[1:]) for run in runs[1:]] + [tuple(merge) for merge in model["merges"]]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(ordered))}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(content=" ", left=1)] if prefix else []),
        ]
    )
    bos = settings["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
    )
    return _fast(tokenizer, [*first, *specials], settings)


def _fast(tokenizer: Any, specials: list[str], settings: dict[str, Any]) -> Any:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


def llama_tokenizer(multimodal: bool) -> Any:
    """Vicuna's; llava-hf's has <image> and <pad> behind it."""
    return sentence_piece(
        ["<unk>", "<s>", "</s>"],
        ["<image>", "<pad>"] if multimodal else [],
        prefix=True,
        newlines=0,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>" if multimodal else "<unk>",
        **({"extra_special_tokens": {"image_token": "<image>"}} if multimodal else {}),
    )


def qwen_tokenizer(further: list[str], **settings: Any) -> Any:
    """Qwen2's, with the marks of a family."""
    return byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *further],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        **settings,
    )


def gemma_tokenizer(further: list[str], **settings: Any) -> Any:
    """Gemma's: a token for each run of line ends."""
    return sentence_piece(
        ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"],
        further,
        prefix=False,
        newlines=4,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
        **settings,
    )


# --- folders


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(path.read_bytes()) if path.is_file() else {}
    content = {key: value for key, value in (content | changes).items() if value is not None}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_tokenizer(tokenizer: Any, folder: Path, kind: str, processor: str | None, **further: Any) -> None:
    """Tokenizer files under the class name that the hub's have."""
    tokenizer.save_pretrained(folder)
    edit(folder / "tokenizer_config.json", tokenizer_class=kind, processor_class=processor, **further)


def save_image_processor(
    processor: Any, folder: Path, kind: str, name: str | None, drop: tuple[str, ...] = ()
) -> None:
    """``preprocessor_config.json`` under the class name that the hub's has."""
    processor.save_pretrained(folder)
    gone: dict[str, Any] = dict.fromkeys(drop)
    edit(folder / "preprocessor_config.json", image_processor_type=kind, processor_class=name, **gone)


def random_model(kind: Any, config: Any, seed: int = 0) -> Any:
    """A model whose every part shows in its logits: the stock initial values are too small for that, or zero."""
    import torch

    torch.manual_seed(seed)
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1 if parameter.dim() == 1 else 0.2)
        # Frozen in every run: a small head would bound how far a loss can fall.
        if (head := model.get_output_embeddings()) is not None:
            head.weight.mul_(2.0)
    return model


def save_model(model: Any, folder: Path, eos: list[int] | int, shards: str = "50GB", **config: Any) -> None:
    """Weights under the hub's names, in bfloat16, with configuration and generation settings."""
    import torch

    ends = eos if isinstance(eos, list) else [eos]
    model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    model.generation_config.do_sample = None
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=shards)
    edit(folder / "config.json", **config)


def text_sizes(tokenizer: Any, rows: int, **further: Any) -> dict[str, Any]:
    """A decoder of two layers with grouped heads."""
    return {
        "vocab_size": rows,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    } | further


def padded(tokenizer: Any, multiple: int = 64) -> int:
    """Rows of the embeddings: more than the tokenizer has, as everywhere."""
    return -(-len(tokenizer) // multiple) * multiple


def clip_sizes(side: int = 28) -> dict[str, Any]:
    """A CLIP tower with a class token; the model reads its last layer but one."""
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": 7,
        "projection_dim": 16,
    }


def siglip_sizes(side: int, **further: Any) -> dict[str, Any]:
    """A SigLIP tower: no class token."""
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": 14,
        "vision_use_head": False,
    } | further


def done(folders: dict[str, Path]) -> None:
    """Mark repositories as complete."""
    for folder in folders.values():
        (folder / "written").touch()
