"""Every model file with every method: what trains, is saved, and comes back to the bit."""

import pytest
import torch

from model_world import MODELS, load, outputs, steps, train_spec, trainer_of
from peftbench.training.adapt import attach, restore, save

METHODS = ["lora", "ia3", "adapter", "prefix"]


@pytest.mark.parametrize("connector", ["tuned", "frozen"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_trains_and_comes_back_to_the_bit(name, method, connector, tmp_path):
    """With recomputation of activations the same run gives the same weights; what is saved gives the same logits."""
    stored = []
    for checkpointing in (False, True):
        base, tuned, trainer, items = trainer_of(name, method, connector, checkpointing)
        frozen = {
            path: parameter.clone()
            for path, parameter in tuned.model.named_parameters()
            if not parameter.requires_grad
        }
        losses = steps(trainer, items, 2)
        assert losses[1] < losses[0]
        for path, parameter in tuned.model.named_parameters():
            if path in frozen:
                assert torch.equal(parameter, frozen[path]), path
            else:
                assert parameter.grad is None and parameter.isfinite().all(), path
        assert tuned.trainable["vision"] == tuned.trainable["language"] == 0
        folder = tmp_path / str(checkpointing)
        folder.mkdir()
        save(tuned, folder, "base")
        assert (folder / "connector.safetensors").is_file() == (connector == "tuned")
        stored.append({path.name: path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))})
        expected = outputs(tuned.model, base, items)
    assert stored[0].keys() == stored[1].keys()
    assert stored[0] == stored[1]
    again = load(name, seed=1)
    restored = attach(again, train_spec(name, method, connector))
    assert not torch.equal(outputs(restored.model, again, items), expected)
    restore(restored, folder)
    assert torch.equal(outputs(restored.model, again, items), expected)
