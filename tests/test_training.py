"""The training loop: what it learns from, what it leaves, and what may not change its result."""

import csv
import functools
import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from peftbench.errors import UserError
from peftbench.spec import Execution, Optim
from peftbench.training import loop
from peftbench.training.adapt import attach
from peftbench.training.batches import (
    IGNORED,
)
from peftbench.training.features import LiveImages
from peftbench.training.optimizer import make_optimizer
from tiny_llava import SETTINGS, encoded_batch, load_tiny, make_data, train_spec, world

METHODS = ["lora", "ia3", "adapter", "prefix"]


def weights(folder):
    return {
        f"{path.relative_to(folder)}/{name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def log_of(folder):
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


# --- one step ---


@pytest.mark.parametrize("connector", ["tuned", "frozen"])
@pytest.mark.parametrize("method", METHODS)
def test_one_batch_can_be_overfitted(method, connector):
    base = load_tiny(seed=1)
    rate = 0.1 if method in ("ia3", "prefix") else 2e-2
    optim = Optim(learning_rate=rate, connector_learning_rate=1e-2)
    settings = {"tokens": 20} if method == "prefix" else SETTINGS[method]
    tuned = attach(base, train_spec(method, connector=connector, optim=optim, settings=settings))
    frozen = {n: p.clone() for n, p in tuned.model.named_parameters() if not p.requires_grad}
    optimizer = make_optimizer(tuned, optim)
    assert [group["name"] for group in optimizer.param_groups] == (
        ["method", "connector"] if connector == "tuned" else ["method"]
    )
    _, batch = encoded_batch(base)
    losses = []
    for _ in range(30):
        loss = tuned.model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert min(losses) < 0.6 * losses[0], losses
    for name, parameter in tuned.model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name


def trainer_for(execution=None, **changes):
    base = load_tiny(seed=7)
    spec = train_spec(**changes)
    tuned = attach(base, spec)
    images = LiveImages(base, world().images)
    examples = [encoded for encoded, _ in encoded_batch(base)[0]]
    execution = execution or Execution(device="cpu")
    return loop.Trainer(spec, tuned, images, examples, base.pad_token_id, execution)


def gradients(micro_batch):
    trainer = trainer_for(Execution(device="cpu", micro_batch=micro_batch))
    base = load_tiny()
    items, _ = encoded_batch(base)
    batch = [encoded for encoded, _ in items]
    loss = trainer._accumulate(items, batch)
    parameters = {**trainer.tuned.method_parameters, **trainer.tuned.connector_parameters}
    return loss, {name: p.grad for name, p in parameters.items()}


def test_loss_and_gradients_do_not_depend_on_the_micro_batch():
    loss, grads = gradients(None)
    for micro_batch in (1, 3, 4):
        other, split = gradients(micro_batch)
        assert other == pytest.approx(loss, rel=1e-6)
        for name in grads:
            torch.testing.assert_close(split[name], grads[name], atol=1e-6, rtol=1e-4)


def test_loss_is_the_mean_over_supervised_tokens():
    trainer = trainer_for()
    base = load_tiny()
    items, batch = encoded_batch(base)
    total = trainer.loss_sum(batch)
    supervised = sum(encoded.supervised for encoded, _ in items)
    reference = trainer.tuned.model(**batch).loss
    torch.testing.assert_close(total / supervised, reference, atol=1e-6, rtol=1e-5)


def test_no_label_means_no_loss_and_no_nan():
    trainer = trainer_for()
    base = load_tiny()
    _, batch = encoded_batch(base)
    batch["labels"][:] = IGNORED
    loss = trainer.loss_sum(batch)
    assert float(loss.detach()) == 0.0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in trainer.tuned.method_parameters.values())


def test_text_alone_gives_the_connector_gradient_zero_not_none():
    trainer = trainer_for()
    items, _ = encoded_batch(load_tiny())
    text = [item for item in items if not item[1]]
    assert len(text) == 1
    trainer._accumulate(text, [text[0][0]])
    for parameter in trainer.tuned.connector_parameters.values():
        assert parameter.grad is not None and not parameter.grad.any()


def test_every_backward_pass_reaches_the_connector_on_the_same_path():
    """ZeRO adds gradients in their order of arrival, so text alone must not change it."""
    trainer = trainer_for()
    items, _ = encoded_batch(load_tiny())
    orders = []
    for micro in ([item for item in items if item[1]][:2], [item for item in items if not item[1]], []):
        order, handles = [], []
        for name, parameter in trainer.tuned.model.named_parameters():
            if parameter.requires_grad:
                hook = functools.partial(lambda name, _, order: order.append(name), name, order=order)
                handles.append(parameter.register_post_accumulate_grad_hook(hook))
        trainer._backward(micro, 4)
        for handle in handles:
            handle.remove()
        orders.append(order)
    assert orders[0] == orders[1] == orders[2]
    assert len(orders[0]) == len(trainer.tuned.method_parameters) + 4


def test_connector_needs_an_image_to_learn_from():
    trainer = trainer_for()
    text = [encoded for encoded in trainer.examples if not encoded.image]
    with pytest.raises(UserError, match="no training example has an image"):
        loop.Trainer(trainer.spec, trainer.tuned, trainer.images, text, 3, Execution(device="cpu"))


def test_out_of_memory_halves_the_micro_batch(monkeypatch):
    limit = 3
    plain = loop.Trainer.loss_sum

    def limited(self, inputs):
        if len(inputs["labels"]) > limit:
            raise torch.OutOfMemoryError("simulated")
        return plain(self, inputs)

    small, facts = world().train(train_spec(), Execution(device="cpu", micro_batch=2))
    monkeypatch.setattr(loop.Trainer, "loss_sum", limited)
    out, facts = world().train(train_spec(), Execution(device="cpu"))
    assert facts["micro_batch"] == 2
    assert difference(weights(out), weights(small)) == 0.0
    limit = 0
    with pytest.raises(UserError, match=r"out of memory at micro-batch 1: .*gradient_checkpointing"):
        world().train(train_spec())


# --- whole runs ---


@pytest.fixture(scope="module")
def run():
    return world().train(train_spec(eval_loss=True, epochs=4))


def test_files_and_facts_of_a_run(run):
    out, facts = run
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "connector.safetensors",
        "log.csv",
        "eval.csv",
    }
    assert facts["outputs"].keys() == files
    log = log_of(out)
    assert [int(row["step"]) for row in log] == list(range(1, 13))
    assert [row["epoch"] for row in log] == ["1"] * 3 + ["2"] * 3 + ["3"] * 3 + ["4"] * 3
    assert float(log[0]["lr"]) == 0.0 and float(log[1]["lr"]) == 1e-2
    assert all(float(row["lr_connector"]) == pytest.approx(float(row["lr"]) / 10) for row in log)
    assert facts["steps"] == 12 and facts["examples"] == 24
    assert facts["losses"]["last"] < facts["losses"]["first"]
    assert facts["losses"]["last"] == float(log[-1]["loss"])
    with (out / "eval.csv").open() as file:
        evaluations = list(csv.DictReader(file))
    assert [row["step"] for row in evaluations] == ["3", "6", "9", "12"]
    assert [float(row["loss"]) for row in evaluations] == facts["losses"]["eval"]
    assert 0 < facts["throughput"]["padding_share"] < 0.5
    assert set(load_file(out / "connector.safetensors")) == {
        f"model.multi_modal_projector.linear_{i}.{part}" for i in (1, 2) for part in ("weight", "bias")
    }
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"


def test_evaluation_does_not_change_training(run):
    out, _ = world().train(train_spec(eval_loss=False, epochs=4))
    assert difference(weights(out), weights(run[0])) == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_two_runs_of_one_seed_are_equal_bit_for_bit(method):
    settings = SETTINGS[method] | ({"dropout": 0.1} if method in ("lora", "adapter") else {})
    spec = train_spec(method, settings=settings)
    first, facts = world().train(spec)
    torch.manual_seed(999)  # what ran before must not matter
    second, again = world().train(spec)
    assert (
        facts["outputs"]["adapter/adapter_model.safetensors"]
        == (again["outputs"]["adapter/adapter_model.safetensors"])
    )
    assert difference(weights(first), weights(second)) == 0.0
    losses = [[row["loss"] for row in log_of(out)] for out in (first, second)]
    assert losses[0] == losses[1]
    other, _ = world().train(train_spec(method, settings=settings, seed=7))
    assert difference(weights(first), weights(other)) > 1e-4


def test_seed_governs_the_initial_values():
    values = []
    for seed in (1, 1, 2):
        base = load_tiny()
        torch.manual_seed(seed)
        tuned = attach(base, train_spec())
        values.append(torch.cat([p.detach().flatten() for p in tuned.method_parameters.values()]))
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])


@pytest.mark.parametrize("method", METHODS)
def test_execution_settings_change_rounding_only(method):
    spec = train_spec(method, epochs=1)
    plain = weights(world().train(spec)[0])
    for execution in (
        Execution(device="cpu", micro_batch=3),
        Execution(device="cpu", gradient_checkpointing=True),
        Execution(device="cpu", cache_dir=str(world().folder / "cache")),
    ):
        other = weights(world().train(spec, execution)[0])
        assert difference(plain, other) < 2e-5, execution


def test_loader_processes_change_nothing():
    settings = SETTINGS["lora"] | {"dropout": 0.1}
    spec = train_spec(epochs=1, settings=settings)
    plain, loaded = (world().train(spec, Execution(device="cpu", workers=workers))[0] for workers in (0, 2))
    assert difference(weights(plain), weights(loaded)) == 0.0


def test_connector_frozen_leaves_no_connector_file():
    out, facts = world().train(train_spec(connector="frozen", epochs=1))
    assert not (out / "connector.safetensors").exists()
    assert facts["trainable"]["connector"] == 0
    assert all(row["lr_connector"] == "0.0" for row in log_of(out))


def test_bf16_trains_with_float32_adapters():
    out, facts = world().train(train_spec(precision="bf16", epochs=4))
    assert facts["losses"]["last"] < facts["losses"]["first"]
    assert all(tensor.dtype == torch.float32 for tensor in weights(out).values())


def test_clipping_limits_the_step():
    optim = Optim(learning_rate=1e-2, connector_learning_rate=1e-3, max_grad_norm=1e-3)
    clipped, _ = world().train(train_spec(optim=optim))
    plain, _ = world().train(train_spec())
    assert difference(weights(clipped), weights(plain)) > 0


# --- faults ---


def test_divergence_names_the_step():
    out = world().out()
    spec = train_spec(optim=Optim(learning_rate=1e30, connector_learning_rate=1e30))
    with pytest.raises(UserError, match=r"training diverged: the loss is (nan|inf) at step \d of 6"):
        world().train(spec, out=out)
    assert not out.exists()


def test_interrupt_leaves_nothing(monkeypatch):
    out = world().out()
    plain = loop.Trainer.step
    calls = []

    def interrupted(self, items, batch):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(self, items, batch)

    monkeypatch.setattr(loop.Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        world().train(train_spec(), out=out)
    assert not out.exists()


def test_nothing_to_train_is_an_error():
    with pytest.raises(UserError, match="method base with a frozen connector trains nothing"):
        world().train(train_spec("base", settings={}, connector="frozen"))


def test_connector_alone_can_be_trained():
    out, facts = world().train(train_spec("base", settings={}, epochs=1))
    assert {path.name for path in out.iterdir()} == {"connector.safetensors", "log.csv"}
    assert facts["trainable"]["method"] == 0 and facts["trainable"]["connector"] == 1600


def test_missing_model_folder_is_named(tmp_path):
    data, subset, images = make_data(tmp_path, 8, 2)
    with pytest.raises(UserError, match=r"holds no config.json: build or fetch the model first"):
        loop.train_adapter(
            train_spec(), tmp_path, data, subset, images, tmp_path / "out", Execution(device="cpu")
        )


def test_missing_weights_are_an_error(tmp_path):
    import shutil

    from safetensors.torch import save_file

    from peftbench.models.load import load_base

    shutil.copytree(world().base, tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    stored = load_file(file)
    name = next(name for name in stored if "q_proj" in name and "vision" not in name)
    save_file({k: v for k, v in stored.items() if k != name}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing keys: .*q_proj"):
        load_base(tmp_path / "base", "fp32", torch.device("cpu"))


def test_cuda_without_a_gpu_is_one_line(monkeypatch):
    from peftbench.models.load import pick_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(UserError, match="device cuda was asked for"):
        pick_device("cuda")


def test_zero_needs_several_processes():
    with pytest.raises(UserError, match="zero_stage: 2 splits state over processes"):
        loop.train_adapter(
            train_spec(),
            world().base,
            world().data,
            world().subset,
            world().images,
            world().out(),
            Execution(device="cpu", zero_stage=2),
        )


def test_progress_is_short(capsys):
    from peftbench.training.progress import Progress

    progress = Progress("train", 1000)
    for step in range(1, 1001):
        progress.step(step, "loss 1.0")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("train 1000/1000 loss 1.0")


def test_light_modules_stay_light():
    import subprocess

    code = (
        "import sys; import peftbench.models.arch, peftbench.models.template, peftbench.spec;"
        "import peftbench.methods.lora, peftbench.methods.ia3, peftbench.methods.adapter;"
        "import peftbench.methods.prefix, peftbench.methods.base;"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'polars', 'numpy'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
