"""Every model file in training: overfitting, half precision, and results in the hands of stock peft."""

import contextlib
import io
import math

import pytest
import torch

from model_world import MODELS, encoded, load, outputs, steps, train_spec, trainer_of
from peftbench.evaluation.generate import greedy
from peftbench.spec import Optim
from peftbench.training.adapt import save


@pytest.mark.parametrize("name", MODELS)
def test_one_batch_overfits(name):
    optim = Optim(learning_rate=1e-2, connector_learning_rate=3e-3, warmup_ratio=0.0, schedule="constant")
    settings = {**train_spec(name, "lora").settings, "rank": 16}
    _, _, trainer, items = trainer_of(name, "lora", optim=optim, settings=settings)
    losses = steps(trainer, items, 40)
    assert losses[-1] < 0.1 * losses[0], losses


@pytest.mark.parametrize("method", ["lora", "ia3", "adapter"])
@pytest.mark.parametrize("name", MODELS)
def test_stock_peft_loads_what_is_saved(name, method, tmp_path):
    """The folder ``adapter`` is peft's own layout (the bottleneck adapter's, once its module is imported)."""
    from peft import PeftModel

    base, tuned, trainer, items = trainer_of(name, method, "frozen")
    steps(trainer, items, 2)
    save(tuned, tmp_path, "base")
    expected = outputs(tuned.model, base, items)
    fresh = load(name, seed=1)
    with contextlib.redirect_stderr(io.StringIO()):
        loaded = PeftModel.from_pretrained(fresh.model, str(tmp_path / "adapter"))
    assert torch.equal(outputs(loaded, fresh, items), expected)


STOCK_PREFIX = [
    "llava-1.5-7b",
    "llava-1.5-13b",
    "sharegpt4v-7b",
    "llava-next-7b",
    "internvl3-1b",
    "smolvlm2-500m",
]


@pytest.mark.parametrize("name", STOCK_PREFIX)
def test_prefix_as_stock_prefix_tuning(name, tmp_path):
    """peft's PREFIX_TUNING with the exported prefix gives our logits, and the same answers."""
    from peft import PeftModel

    from peftbench.tuners.stock_prefix import prompt_embeddings, write_stock_prefix

    optim = Optim(learning_rate=1.0, connector_learning_rate=1e-3, warmup_ratio=0.0, schedule="constant")
    base, tuned, trainer, items = trainer_of(name, "prefix", "frozen", optim=optim)
    steps(trainer, items, 3)
    expected = outputs(tuned.model, base, items)
    write_stock_prefix(tuned.model, tmp_path, "base")
    fresh = load(name)
    untuned = outputs(fresh.model, fresh, items)
    loaded = PeftModel.from_pretrained(fresh.model, str(tmp_path))
    ours = outputs(loaded, fresh, items)
    scale = (expected - untuned).abs().max()
    assert scale > 0.05
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    # without the rotation by the prefix's length it would be another function
    wrong = load(name)
    loaded = PeftModel.from_pretrained(wrong.model, str(tmp_path))
    table = loaded.prompt_encoder["default"].embedding.weight
    layer = next(m for m in tuned.model.modules() if hasattr(m, "kv_prefix_k"))
    heads, count, size = layer.kv_prefix_k["default"].shape
    with torch.no_grad():
        plain = layer.kv_prefix_k["default"].permute(1, 0, 2).reshape(count, -1)
        assert not torch.allclose(plain, table[:, : heads * size], atol=1e-3)
        table[:, : heads * size] = plain
    assert (outputs(loaded, wrong, items) - expected).abs().max() > 1e-3
    assert prompt_embeddings(tuned.model).shape == (5, 2 * 2 * heads * size)


@pytest.mark.parametrize("name", ["qwen2.5-vl-3b", "qwen3-vl-2b", "gemma3-4b", "paligemma2-3b"])
def test_prefix_that_stock_peft_cannot_hold_is_refused(name, tmp_path):
    from peftbench.errors import UserError
    from peftbench.tuners.stock_prefix import write_stock_prefix

    _, tuned, _, _ = trainer_of(name, "prefix", "frozen")
    with pytest.raises(UserError, match="wants the types of tokens, which peft's PREFIX_TUNING drops"):
        write_stock_prefix(tuned.model, tmp_path / "x", "base")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", MODELS)
def test_merged_weights_give_the_same_logits(name):
    for method in ("lora", "ia3"):
        base, tuned, trainer, items = trainer_of(name, method)
        steps(trainer, items, 2)
        expected = outputs(tuned.model, base, items)
        merged = tuned.model.merge_and_unload()
        torch.testing.assert_close(outputs(merged, base, items), expected, atol=2e-4, rtol=1e-3)
        assert not [path for path, _ in merged.named_parameters() if "lora_" in path or "ia3_" in path]


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_trains_and_generates(name):
    """bf16 weights under autocast, with recomputation: types must meet at every seam between the parts."""
    for method, connector in (("prefix", "tuned"), ("adapter", "frozen")):
        base, _, trainer, items = trainer_of(name, method, connector, True, precision="bf16")
        losses = steps(trainer, items, 3)
        assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]
        images, prompts = encoded(base, name, answers=False)
        assert len(greedy(base, images, [row for row, _ in prompts], 2, 5, True)) == len(prompts)
