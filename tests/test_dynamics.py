"""What methods do to weights around each optimizer step: SPIDER, masks and penalties, against direct references."""

import math

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from peftbench.errors import UserError
from peftbench.methods import spider
from peftbench.methods._dynamics import compact
from peftbench.methods.magnitude_mask import largest
from peftbench.methods.random_mask import drawn
from peftbench.planning.operations import training_memory
from peftbench.planning.sizes import Sizes, method_on
from peftbench.spec import Execution
from peftbench.training.adapt import attach
from peftbench.training.features import LiveImages
from peftbench.training.loop import Trainer
from peftbench.training.stepping import make_dynamics
from real_project import RealJob
from selective_world import OPTIM, steps, trainer_for, weights
from test_distributed import TOLERANCE
from tiny_llava import NAMES, encoded_batch, load_tiny, train_spec, world

# --- SPIDER's formulas, in double precision and by another route ---


def reference_importance(values):
    magnitude = np.abs(values)
    if (magnitude == 0).all():
        return np.zeros_like(magnitude)
    deviation = math.sqrt(((magnitude - magnitude.mean()) ** 2).sum() / (magnitude.size - 1))
    return 1.0 / (1.0 + np.exp(-(magnitude - magnitude.mean()) / deviation))


def reference_mask(pretrained, accumulated):
    old, new = reference_importance(pretrained), reference_importance(accumulated)
    share = np.zeros_like(old)
    for at in np.ndindex(*old.shape):
        if old[at] < new[at]:
            share[at] = new[at] / (old[at] + new[at])
    moved = share[share != 0]
    return np.minimum(share / moved.mean(), 1.0) if moved.size else share


@pytest.mark.parametrize("clip", [None, 0.5])
def test_every_step_equals_the_reference_in_double_precision(clip):
    """Six steps of the real loop; its own gradients and stepped weights go into the formulas."""
    settings = {"blocks": 1, "modules": ["attention", "mlp"]}
    trainer, items = trainer_for(settings=settings, optim=msgspec.structs.replace(OPTIM, max_grad_norm=clip))
    dynamics = trainer.dynamics
    start = {name: p.detach().double().numpy().copy() for name, p in dynamics.parameters.items()}
    total = {name: np.zeros(values.shape) for name, values in start.items()}
    before, after = dynamics.before_step, dynamics.after_step
    seen = {"entries": 0, "far": 0, "moved": 0}

    def recorded_before():
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in dynamics.parameters.values()))
        assert clip is None or norm <= clip * 1.0001  # clipped before it is read
        for name, parameter in dynamics.parameters.items():
            total[name] += parameter.grad.double().numpy()
        before()

    def recorded_after():
        stepped = {name: p.detach().double().numpy().copy() for name, p in dynamics.parameters.items()}
        after()
        for name, parameter in dynamics.parameters.items():
            share = reference_mask(start[name], total[name])
            expected = (1 - share) * start[name] + share * stepped[name]
            got = parameter.detach().double().numpy()
            near = np.abs(got - expected) <= 1e-6 * np.maximum(1.0, np.abs(expected))
            seen["entries"] += near.size
            seen["far"] += int((~near).sum())
            seen["moved"] += int((share != 0).sum())
            # what the mask leaves out is the pre-trained value to the bit
            assert np.array_equal(got[(share == 0) & near], start[name][(share == 0) & near])

    dynamics.before_step, dynamics.after_step = recorded_before, recorded_after
    steps(trainer, items, 6)
    # where I and G agree to seven digits, rounding decides which side an entry is on
    assert seen["far"] <= 2e-4 * seen["entries"], seen
    assert 0.4 < seen["moved"] / seen["entries"] < 0.65
    assert len(start) == 7 + 4  # linear layers of one block, weights and biases of the connector


@pytest.mark.parametrize("kind", ["normal", "laplace", "student", "lognormal"])
def test_simulated_statistics(kind):
    """Gaussian weights: 50 to 54 % of the mask is not zero, all of that lies in [0.81, 1], 22 to 26 % is one."""
    rng = np.random.default_rng(3)
    draws = {
        "normal": rng.normal(size=(400, 500)),
        "laplace": rng.laplace(size=(400, 500)),
        "student": rng.standard_t(3, size=(400, 500)),
        "lognormal": rng.lognormal(size=(400, 500)) * rng.choice([-1.0, 1.0], size=(400, 500)),
    }
    weight = torch.from_numpy(rng.normal(0, 0.02, size=(400, 500))).float()
    share = spider.mask(weight, torch.from_numpy(draws[kind] * 1e-3).float())
    moved = share[share != 0]
    assert 0.495 <= float((share != 0).float().mean()) < 0.545  # "50-54 %", by symmetry 50 for equal laws
    assert float(moved.min()) >= 0.8095 and float(moved.max()) == 1.0
    assert 0.22 <= float((share == 1).float().mean()) <= 0.26


def test_tensors_without_variance():
    ones, gradient = torch.ones(6), torch.tensor([0.0, 0.1, -0.2, 0.3, -0.4, 0.5])
    share = spider.mask(ones, gradient)
    assert share.isfinite().all() and 0 < int((share != 0).sum()) < 6
    assert not spider.mask(ones, gradient, protect_equal=True).any()
    assert not spider.mask(torch.full((6,), 0.1), gradient, protect_equal=True).any()  # whose mean is rounded
    assert torch.equal(spider.mask(torch.zeros(6), gradient), torch.ones(6))  # nothing to protect
    assert not spider.mask(gradient, torch.zeros(6)).any()  # no gradient yet
    assert not spider.mask(gradient, torch.zeros(6), protect_equal=True).any()
    assert (
        spider.mask(torch.tensor([2.0]), torch.tensor([1.0])).isfinite().all()
    )  # one entry has no deviation


def test_norms_of_ones_are_trained_or_protected():
    for setting, moves in (("neutral", True), ("protected", False)):
        trainer, items = trainer_for(settings={"equal_weights": setting})
        steps(trainer, items, 3)
        norm = next(p for name, p in trainer.dynamics.parameters.items() if "input_layernorm" in name)
        assert bool((norm != 1).any()) == moves


def test_the_connector_is_masked_where_the_setting_says_so():
    stays = {}
    for on in (True, False):
        trainer, items = trainer_for(settings={"on_connector": on})
        before = {n: p.detach().clone() for n, p in trainer.tuned.connector_parameters.items()}
        steps(trainer, items, 2)
        same = [
            (before[n] == p).float().mean()
            for n, p in trainer.tuned.connector_parameters.items()
            if n.endswith("weight")  # biases of zero have nothing to protect
        ]
        stays[on] = float(torch.stack(same).mean())
        assert len(trainer.dynamics.parameters) == 18 + 4 * on
    assert stays[True] > 0.3 and stays[False] < 0.05


# --- the loop around it ---


def test_accumulated_gradients_do_not_depend_on_the_micro_batch():
    summed = []
    for micro_batch in (None, 3):
        trainer, items = trainer_for(execution=Execution(device="cpu", micro_batch=micro_batch))
        trainer.step(items, [encoded for encoded, _ in items])
        summed.append(trainer.dynamics.accumulated)
    for name, values in summed[0].items():
        assert values.any()
        torch.testing.assert_close(summed[1][name], values, atol=1e-6, rtol=1e-4)


METHODS = ["spider", "magnitude_mask", "random_mask", "l1_to_pretrained", "l2_to_pretrained", "dare"]


@pytest.mark.parametrize("method", METHODS)
def test_a_continued_run_is_equal_bit_for_bit(method, tmp_path):
    whole, items = trainer_for(method)
    steps(whole, items, 6)
    first, _ = trainer_for(method)
    steps(first, items, 3)
    torch.save(
        {
            "model": weights(first),
            "optimizer": first.optimizer.state_dict(),
            "dynamics": first.dynamics.state_dict(),
        },
        tmp_path / "state.pt",
    )
    stored = torch.load(tmp_path / "state.pt")
    second, _ = trainer_for(method, seed=99)  # another seed: masks and all come from the state
    with torch.no_grad():
        for name, parameter in second.dynamics.parameters.items():
            parameter.copy_(stored["model"][name])
    second.optimizer.load_state_dict(stored["optimizer"])
    second.dynamics.load_state_dict(stored["dynamics"])
    # the data of steps 4 to 6
    for i in range(3, 6):
        batch = items[(i % 2) * 4 :][:4] if i % 3 else items
        second.step(batch, [encoded for encoded, _ in batch])
    expected = weights(whole)
    for name, values in weights(second).items():
        assert torch.equal(values, expected[name]), name
    with pytest.raises(ValueError, match="not the state of these parameters"):
        second.dynamics.load_state_dict({"pretrained": {}})


def test_methods_without_dynamics_have_none():
    assert trainer_for("selected")[0].dynamics is None
    assert trainer_for("lora", settings={"rank": 2})[0].dynamics is None


@pytest.mark.parametrize("method", ["magnitude_mask", "random_mask"])
def test_half_of_each_tensor_stays(method):
    trainer, items = trainer_for(method)
    before = weights(trainer)
    steps(trainer, items, 4)
    for name, values in weights(trainer).items():
        stays = values == before[name]
        protected = trainer.dynamics.protected[name]
        assert torch.equal(values[protected], before[name][protected])
        assert not bool(stays[~protected].all())
        if method == "magnitude_mask":
            assert int(protected.sum()) == values.numel() // 2
            if before[name].unique().numel() > 2:
                assert before[name][protected].abs().min() >= before[name][~protected].abs().max()
        elif values.numel() > 1000:
            assert abs(float(protected.float().mean()) - 0.5) < 0.05


def test_masks_by_hand():
    values = torch.tensor([[0.1, -3.0, 2.0], [-2.0, 0.0, 1.0]])
    assert largest(values, 0.5).tolist() == [[False, True, True], [True, False, False]]
    assert int(largest(values, 0.34).sum()) == 2 and int(largest(torch.ones(5), 0.5).sum()) == 2
    one = drawn((40, 50), 0.25, 1, "a")
    assert torch.equal(one, drawn((40, 50), 0.25, 1, "a")) and 0.2 < float(one.float().mean()) < 0.3
    assert not torch.equal(one, drawn((40, 50), 0.25, 1, "b"))
    assert not torch.equal(one, drawn((40, 50), 0.25, 2, "a"))


@pytest.mark.parametrize(("method", "power"), [("l1_to_pretrained", 1), ("l2_to_pretrained", 2)])
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_the_penalty_is_added_once_per_global_batch(method, power, micro_batch):
    execution = Execution(device="cpu", micro_batch=micro_batch)
    found = {}
    for strength in (0.0, 5.0):
        trainer, items = trainer_for(method, settings={"strength": strength}, execution=execution)
        with torch.no_grad():
            for parameter in trainer.dynamics.parameters.values():
                parameter.add_(0.1)
        loss = trainer._accumulate(items, [encoded for encoded, _ in items])
        parameters = trainer.dynamics.parameters
        found[strength] = (loss, {n: p.grad.clone() for n, p in parameters.items()})
    assert found[0.0][0] == found[5.0][0]  # the loss is that of the data
    tensors = len(found[0.0][1])
    for name, gradient in found[0.0][1].items():
        slope = 1.0 if power == 1 else 2 * 0.1
        extra = found[5.0][1][name] - gradient
        expected = torch.full_like(extra, 5.0 * slope / gradient.numel() / tensors)
        torch.testing.assert_close(extra, expected, atol=2e-6, rtol=1e-3)


def test_a_strong_penalty_holds_the_weights():
    moved = []
    for strength in (0.0, 1e4):
        trainer, items = trainer_for("l2_to_pretrained", settings={"strength": strength})
        before = weights(trainer)
        steps(trainer, items, 20)
        moved.append(sum(float((v - before[n]).square().sum()) for n, v in weights(trainer).items()))
    assert moved[1] < 0.5 * moved[0]


def test_copies_are_short_where_nothing_is_lost():
    exact = torch.randn(7, 5).bfloat16().float()
    assert compact(exact).dtype == torch.bfloat16 and torch.equal(compact(exact).float(), exact)
    odd = torch.randn(7, 5)
    assert compact(odd).dtype == torch.float32 and torch.equal(compact(odd), odd)
    assert compact(odd).data_ptr() != odd.data_ptr()


# --- memory, as planned ---


def tiny_sizes():
    base = load_tiny()
    counts = {"language": 0, "connector": 1600, "vision": 0, "embeddings": 0}
    counts["language"] = sum(
        p.numel() for n, p in base.model.named_parameters() if n.startswith("model.language_model.layers")
    )
    return Sizes(
        source="architecture",
        layers=2,
        hidden=32,
        intermediate=64,
        heads=4,
        kv_heads=2,
        head_dim=8,
        vocabulary=400,
        attention=NAMES.attention,
        mlp=NAMES.mlp,
        parameters=counts,
        image_tokens=16,
        vision_flops=0.0,
        connector_flops=0.0,
        connector_tuned=3.0,
        feature_bytes=0.0,
        vision_activations=0.0,
    )


@pytest.mark.parametrize("connector", ["tuned", "frozen"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_kept_is_what_the_planner_plans(method, precision, connector):
    from peftbench.models.load import load_base
    from peftbench.planning.operations import BYTES, OPTIMISED, Example

    base = load_base(world().base, precision, torch.device("cpu"), NAMES)
    spec = train_spec(method, settings={}, precision=precision, connector=connector)
    tuned = attach(base, spec)
    items, _ = encoded_batch(load_tiny())
    trainer = Trainer(
        spec, tuned, LiveImages(base, world().images), [e for e, _ in items], 3, Execution(device="cpu")
    )
    planned = method_on(tiny_sizes(), method, {}, "both")
    plain = method_on(tiny_sizes(), "selected", {}, "both")
    assert planned.in_place == plain.in_place == tuned.trainable["language"] and planned.added == 0
    example = Example(prompt=20, answer=3)
    memory, without = (
        training_memory(tiny_sizes(), one, example, precision, connector == "tuned", False, False)
        for one in (planned, plain)
    )
    learns = tuned.trainable["language"] + tuned.trainable["connector"]
    assert without.trainable == OPTIMISED * learns
    extra = memory.trainable - without.trainable
    held = trainer.dynamics.nbytes()
    # the planner adds the copy during the merge, and the penalty's gradients
    if method in ("dare", "l1_to_pretrained", "l2_to_pretrained"):
        held += 4 * learns
    if precision == "fp32":  # norms of ones and biases of zero are kept in bf16 there too
        short = sum(t.numel() for t in trainer.dynamics.pretrained.values() if t.dtype == torch.bfloat16)
        held += 2 * short
        assert short < 0.05 * learns
    assert extra == held
    assert BYTES[precision] * learns <= held


# --- several processes ---


def test_parts_of_tensors_are_refused():
    trainer, _ = trainer_for("spider")
    next(trainer.tuned.model.parameters()).ds_id = 0  # what ZeRO 3 marks its parameters with
    with pytest.raises(
        UserError, match="method spider needs whole tensors in each process: use a ZeRO stage of 2"
    ):
        make_dynamics(trainer)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings", "zero_stage"),
    [
        ("spider", {"blocks": 1}, 2),
        ("grafting", {"blocks": 1, "steps": 1, "samples": 3}, 2),
        ("l2_to_pretrained", {"blocks": 1, "strength": 50.0}, None),
    ],
)
def test_two_processes_reach_the_weights_of_one(method, settings, zero_stage, tmp_path):
    """ZeRO-2 with clipping for what reads gradients and writes weights, also afterwards; DDP for the penalty."""
    how = {"epochs": 2, "global_batch": 9, "max_grad_norm": 2.0}
    jobs = {
        "single": RealJob(tmp_path / "single", method, settings, **how),
        "double": RealJob(tmp_path / "double", method, settings, **how),
        "plain": RealJob(tmp_path / "plain", "selected", {"blocks": 1}, **how),
    }
    jobs["single"].run_here()
    jobs["plain"].run_here()
    status, said = jobs["double"].run(processes=2, zero_stage=zero_stage, micro_batch=3)
    assert status == 0, said
    single, double, plain = (job.folder for job in jobs.values())
    far = entries = 0
    for name in ("delta.safetensors", "connector.safetensors"):
        one, other = load_file(single / name), load_file(double / name)
        assert one.keys() == other.keys()
        for key in one:
            far += int(((one[key] - other[key]).abs() > TOLERANCE).sum())
            entries += one[key].numel()
    # masks have thresholds: where two numbers agree to seven digits, rounding decides
    assert far <= (0 if method == "l2_to_pretrained" else 2e-3 * entries), (far, entries)
    changed = load_file(plain / "delta.safetensors")
    one = load_file(single / "delta.safetensors")
    assert sum(int(((one[k] - changed[k]).abs() > TOLERANCE).sum()) for k in one) > 0.3 * entries
    # the hash of the base is the same in every process
    assert (single / "delta.safetensors").read_bytes()[:300] == (double / "delta.safetensors").read_bytes()[
        :300
    ]
