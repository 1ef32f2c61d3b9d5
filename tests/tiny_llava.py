"""A tiny random LLaVA with its processor, and a data set for it: the real classes, no downloads."""

from __future__ import annotations

import atexit
import copy
import io
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from peftbench.spec import Decoding, Execution, ModelNames, Optim, PredictSpec, Prompt, TrainSpec

NAMES = ModelNames(
    layers=r"model\.language_model\.layers\.\d+",
    attention=["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
    mlp=["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
    attention_module="self_attn",
    connector=["model.multi_modal_projector"],
    vision=["model.vision_tower"],
    embeddings=["model.language_model.embed_tokens", "lm_head"],
    template="plain",
)
PROMPT = Prompt(templates=["{question} Answer the question using a single word or phrase."])
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 60, 220), "yellow": (230, 220, 40)}
QUESTIONS = ("what colour is the square ?", "what colour ?", "which colour is shown in the picture here ?")


def make_tokenizer(vocab_size: int = 400) -> Any:
    """Byte-level BPE trained on a few sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    corpus = [*QUESTIONS, *PROMPT.templates, "USER: ASSISTANT: red green blue yellow"] * 20
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<unk>", "<pad>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )


def build(
    folder: Path,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    image: int = 16,
    patch: int = 4,
    seed: int = 0,
) -> Path:
    """Save model and processor as a hub folder.

    About 10^5 parameters, 16 image tokens, grouped-query attention.
    """
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    tokenizer = make_tokenizer()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=hidden // 2,
            intermediate_size=hidden,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=image,
            patch_size=patch,
            projection_dim=hidden // 2,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=256,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(image // patch) ** 2,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():  # the stock initial values are so small that logits hardly depend on anything
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
        model.lm_head.weight.mul_(
            4.0
        )  # frozen in every run: small logits would bound how far a loss can fall
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = LlavaProcessor(
        image_processor=LlavaImageProcessorPil(
            do_pad=True, size={"shortest_edge": image}, crop_size={"height": image, "width": image}
        ),
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_data(folder: Path, train: int = 24, test: int = 10) -> tuple[Path, Path, Path]:
    """A data set in the normalised form: ``(data_dir, subset_dir, image_store)``.

    One example in eight is text alone.
    """
    import numpy as np
    import polars as pl
    from PIL import Image

    from peftbench.data.images import store_image

    data, subset, store = folder / "data", folder / "subset", folder / "images"
    data.mkdir(parents=True)
    subset.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        rows = []
        for i in range(count):
            colour = list(COLOURS)[i % len(COLOURS)]
            pixels = np.clip(np.array(COLOURS[colour]) + rng.integers(-25, 25, (20, 14, 3)), 0, 255)
            buffer = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
            sha = store_image(store, buffer.getvalue())
            text_only = i % 8 == 7
            rows.append(
                {
                    "id": f"{split}-{i}",
                    "image": "" if text_only else sha,
                    "question": QUESTIONS[i % len(QUESTIONS)],
                    "choices": [],
                    "answer_index": -1,
                    "answers": [colour],
                    "target": colour,
                    "question_type": "colour",
                    "answer_type": "word",
                    "split": split,
                    "source": json.dumps({"row": i}),
                }
            )
        frame = pl.DataFrame(rows, schema_overrides={"choices": pl.List(pl.String)})
        frame.write_parquet(data / f"{split}.parquet")
        if split == "train":
            frame.select("id").write_parquet(subset / "ids.parquet")
    return data, subset, store


SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4, "dropout": 0.0},
    "ia3": {},
    "adapter": {"bottleneck": 8, "dropout": 0.0},
    "prefix": {"tokens": 5},
}
"""Small and without dropout, so that splitting a batch may change rounding only."""
CPU = Execution(device="cpu")


class World:
    """A base model and a data set on disk, made once per process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = build(folder / "base")
        self.data, self.subset, self.images = make_data(folder)
        self._runs = 0

    def out(self) -> Path:
        """A fresh folder."""
        self._runs += 1
        return self.folder / f"out-{self._runs}"

    def train(
        self, spec: TrainSpec, execution: Execution = CPU, out: Path | None = None
    ) -> tuple[Path, dict[str, Any]]:
        """Train into a fresh folder; the folder and the facts."""
        from peftbench.training.loop import train_adapter

        out = out or self.out()
        facts = train_adapter(spec, self.base, self.data, self.subset, self.images, out, execution)
        return out, facts

    def predict(self, spec: PredictSpec, run: Path | None, execution: Execution = CPU) -> Any:
        """Predictions as a polars frame."""
        import polars as pl

        from peftbench.evaluation.generate import generate_predictions

        out = self.out()
        generate_predictions(spec, self.base, run, self.data, self.images, out, execution)
        return pl.read_parquet(out / "predictions.parquet")


@cache
def world() -> World:
    """The world of this process."""
    folder = tempfile.mkdtemp(prefix="tiny-llava-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return World(Path(folder))


def train_spec(method: str = "lora", **changes: Any) -> TrainSpec:
    """A short run: 24 examples, batches of 8, 2 epochs."""
    values: dict[str, Any] = {
        "model": NAMES,
        "prompt": PROMPT,
        "method": method,
        "settings": SETTINGS.get(method, {}),
        "connector": "tuned",
        "location": "default",
        "optim": Optim(learning_rate=1e-2, connector_learning_rate=1e-3),
        "epochs": 2,
        "global_batch": 8,
        "max_length": 200,
        "seed": 42,
        "precision": "fp32",
        "eval_loss": False,
    }
    return TrainSpec(**(values | changes))


def predict_spec(train: TrainSpec, **changes: Any) -> PredictSpec:
    """Predictions of the run of ``train``."""
    same = ("model", "prompt", "method", "settings", "connector", "location", "precision")
    values: dict[str, Any] = {name: getattr(train, name) for name in same}
    values["decoding"] = Decoding(max_new_tokens=6, batch_size=4)
    return PredictSpec(**(values | changes))


def load_tiny(seed: int = 0) -> Any:
    """A fresh copy of the world's base model in memory; torch's generator starts at ``seed``."""
    import torch

    torch.set_num_threads(1)  # more threads make models of this size many times slower
    torch.manual_seed(seed)
    return copy.deepcopy(_loaded())


@cache
def _loaded() -> Any:
    import torch

    from peftbench.models.load import load_base

    return load_base(world().base, "fp32", torch.device("cpu"))


def encoded_batch(base: Any, count: int = 8, left: bool = False) -> tuple[list[Any], dict[str, Any]]:
    """Training items of the first ``count`` examples and the batch they make."""
    from peftbench.data.load import read_examples
    from peftbench.training.batches import collate, encode
    from peftbench.training.features import LiveImages

    images = LiveImages(base, world().images)
    examples = read_examples(world().data, "train")[:count]
    encoded = encode(base, images, NAMES, PROMPT, examples, 200, answers=True)
    items = [(e, images.load(e.image) if e.image else {}) for e in encoded]
    return items, collate(items, base.pad_token_id, left)
