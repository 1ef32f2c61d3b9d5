"""Methods that train plainly and change the weights afterwards: DARE, grafting, Model Tailor."""

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from peftbench.evaluation.epochs import weights_of
from peftbench.methods import dare, grafting, model_tailor
from peftbench.methods._dynamics import generator
from peftbench.spec import Execution
from peftbench.training import stepping
from selective_world import steps, trainer_for, weights
from tiny_llava import load_tiny, train_spec, world

SETTINGS = {
    "dare": {"blocks": 1},
    "grafting": {"blocks": 1, "steps": 2, "samples": 3},
    "model_tailor": {"blocks": 2, "samples": 6},
}


def base_values(stored):
    base = load_tiny().model
    return {name: base.get_parameter(name).detach() for name in stored}


def whole(run):
    return load_file(run / "delta.safetensors") | load_file(run / "connector.safetensors")


# --- all of them ---


@pytest.mark.parametrize("method", SETTINGS)
def test_the_epochs_kept_are_merged_and_training_goes_on_unmerged(method):
    """The last epoch's result is the same whether or not an earlier one was merged, evaluated and kept."""
    spec = train_spec(method, settings=SETTINGS[method], epochs=2, keep_epochs=True, eval_loss=True)
    kept, facts = world().train(spec)
    plain, _ = world().train(msgspec.structs.replace(spec, keep_epochs=False, eval_loss=False))
    one, other = whole(kept), whole(plain)
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert (kept / "delta.safetensors").read_bytes() == (plain / "delta.safetensors").read_bytes()
    # the first epoch of a longer run is what a merge after it gives
    first = whole(weights_of(kept, 1))
    base = base_values(first)
    same = sum(int((first[n] == base[n]).sum()) for n in first) / sum(t.numel() for t in first.values())
    plainly = {"blocks": SETTINGS[method]["blocks"]}
    trained, trained_facts = world().train(msgspec.structs.replace(spec, method="selected", settings=plainly))
    unmerged = whole(weights_of(trained, 1))
    assert same > 0.5  # most of the change is gone
    assert sum(int((unmerged[n] == base[n]).sum()) for n in base) < 0.1 * sum(
        t.numel() for t in base.values()
    )
    # what is evaluated is what is saved
    evaluated, plainly_evaluated = facts["losses"]["eval"], trained_facts["losses"]["eval"]
    assert all(abs(one - other) > 1e-3 for one, other in zip(evaluated, plainly_evaluated, strict=True))


@pytest.mark.parametrize("method", SETTINGS)
def test_how_the_work_is_split_changes_rounding_only(method):
    spec = train_spec(method, settings=SETTINGS[method], epochs=1)
    one = whole(world().train(spec)[0])
    other = whole(world().train(spec, Execution(device="cpu", micro_batch=3))[0])
    far = sum(int(((one[n] - other[n]).abs() > 1e-4).sum()) for n in one)
    assert far <= 2e-3 * sum(t.numel() for t in one.values())  # thresholds: rounding may decide


def test_losses_of_single_examples_add_up_to_the_mean():
    trainer, items = trainer_for("dare")
    trainer.tuned.model.eval()
    with torch.no_grad():
        parts = [float(loss) for loss in stepping.example_losses(trainer, 99)]
        rows = [encoded for encoded, _ in items]
        together = float(trainer.loss_sum(trainer._inputs(items))) / sum(e.supervised for e in rows)
    assert len(parts) == 8 and sum(parts) == pytest.approx(together, rel=1e-5)
    assert len(list(stepping.example_losses(trainer, 3))) == 3


# --- DARE ---


def test_dare_drops_and_rescales():
    trainer, items = trainer_for("dare", settings={"drop": 0.7})
    base = weights(trainer)
    steps(trainer, items, 3)
    trained = weights(trainer)
    trainer.dynamics.after_training(None)
    kept = entries = 0
    for name, merged in weights(trainer).items():
        drawn = torch.rand(merged.shape, generator=generator(42, "dare", name)) >= 0.7
        expected = base[name].double() + (trained[name].double() - base[name].double()) / 0.3
        torch.testing.assert_close(merged[drawn].double(), expected[drawn], atol=1e-6, rtol=1e-5)
        assert torch.equal(merged[~drawn], base[name][~drawn])
        kept, entries = kept + int(drawn.sum()), entries + drawn.numel()
    assert abs(kept / entries - 0.3) < 0.01
    # all of it kept, or not rescaled: the trained values exactly
    ones = torch.ones(3, dtype=torch.bool)
    a, b = torch.rand(3), torch.rand(3)
    assert torch.equal(dare.dropped(a, b, ones, 0.0, True), b)
    assert torch.equal(dare.dropped(a, b, ones, 0.5, False), b)


# --- grafting ---


def test_the_base_patch_is_the_farthest_moved():
    moves = {"a": torch.tensor([[0.1, -5.0], [0.0, 2.0]]), "b": torch.tensor([3.0, -0.2])}
    patch = grafting.base_patch(moves, 0.5)
    assert patch["a"].tolist() == [[False, True], [False, True]] and patch["b"].tolist() == [True, False]
    assert not any(mask.any() for mask in grafting.base_patch(moves, 0.1).values())
    everything = grafting.base_patch(moves, 1.0)
    assert sum(int(mask.sum()) for mask in everything.values()) == 5  # not the one that did not move


def test_a_graft_without_steps_is_the_base_patch():
    trainer, items = trainer_for("grafting", settings={"steps": 0, "share": 0.2})
    base = weights(trainer)
    steps(trainer, items, 3)
    trained = weights(trainer)
    trainer.dynamics.after_training(None)
    grafted = weights(trainer)
    moved = {name: trained[name] - base[name] for name in base}
    patch = grafting.base_patch(moved, 0.2)
    for name in base:
        assert torch.equal(grafted[name], torch.where(patch[name], trained[name], base[name]))


def test_the_mask_follows_the_gradient_and_the_best_one_is_taken():
    """One step by hand: gradient of the loss at the soft graft, through the sigmoid, onto the mask."""
    settings = {"steps": 3, "share": 0.05, "samples": 8, "sigmoid_bias": 1.0, "mask_learning_rate": 300.0}
    trainer, items = trainer_for("grafting", settings=settings | {"modules": ["mlp"]}, connector="frozen")
    base = weights(trainer)
    steps(trainer, items, 6)
    trained = weights(trainer)
    seen = []
    plain = trainer.dynamics._gradients

    def recorded(losses):
        found = plain(losses)
        seen.append((weights(trainer), found))
        return found

    trainer.dynamics._gradients = recorded
    trainer.tuned.model.eval()
    trainer.dynamics.after_training(lambda count: stepping.example_losses(trainer, count))
    assert len(seen) == 3
    patch = grafting.base_patch({n: trained[n] - base[n] for n in base}, 0.05)
    for name in base:
        start = patch[name].double()
        raw = torch.rand(start.shape, generator=generator(42, "graft", name)).double()
        for number in (0, 1):
            gate = torch.sigmoid(raw - 1.0)
            amount = start + (1 - 2 * start) * gate
            expected = base[name] + amount * (trained[name] - base[name]).double()
            torch.testing.assert_close(seen[number][0][name].double(), expected, atol=1e-5, rtol=1e-4)
            slope = (1 - 2 * start) * (trained[name] - base[name]).double() * gate * (1 - gate)
            raw -= 300.0 * seen[number][1][name].double() * slope
    grafted = weights(trainer)
    ends = [(grafted[n] == base[n]) | (grafted[n] == trained[n]) for n in base]
    assert all(bool(end.all()) for end in ends)
    # not worse than the base patch
    with torch.no_grad():
        final = float(sum(stepping.example_losses(trainer, 8)))
        for name, parameter in trainer.dynamics.parameters.items():
            parameter.copy_(torch.where(patch[name], trained[name], base[name]))
        assert final <= float(sum(stepping.example_losses(trainer, 8))) + 1e-6


# --- Model Tailor ---


def tailor_case(seed=0, rows=6, columns=9, tokens=40):
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(rows, columns, generator=draw)
    trained = base + 0.3 * torch.randn(rows, columns, generator=draw)
    inputs = torch.randn(tokens, columns, generator=draw) @ torch.randn(columns, columns, generator=draw)
    return base, trained, inputs, 2.0 * inputs.T @ inputs / tokens


def config_of(**settings):
    return msgspec.convert(settings, model_tailor.Config)


def reference_tailored(base, trained, hessian, damping, share):
    """Optimal brain surgeon, one column after the other, with the inverse of what is left each time; float64."""
    base, trained, hessian = base.double(), trained.double(), hessian.double()
    columns = base.shape[1]
    hessian = hessian + damping * hessian.diagonal().mean() * torch.eye(columns, dtype=torch.double)
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)

    def z(values):
        return (values - values.mean(1, keepdim=True)) / values.std(1, keepdim=True)

    score = 0.5 * z((trained - base).abs()) + 0.5 * z((trained / factor.diagonal()) ** 2)
    order = score.flatten().argsort(descending=True)
    patch = torch.zeros(score.numel(), dtype=torch.bool)
    patch[order[: round(share * score.numel())]] = True
    patch = patch.view_as(score)
    weights_left = trained.clone()
    for i in range(columns):
        rest = torch.linalg.inv(hessian[i:, i:])  # of the columns that are not settled yet
        value = torch.where(patch[:, i], weights_left[:, i], base[:, i])
        error = weights_left[:, i] - value
        weights_left[:, i:] -= error[:, None] * rest[0][None] / rest[0, 0]
        weights_left[:, i] = value
    return weights_left, patch


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_patch_equals_optimal_brain_surgeon(seed):
    base, trained, _, hessian = tailor_case(seed)
    got, patch = model_tailor.patched(trained, base, hessian, config_of(share=0.3))
    expected, wanted = reference_tailored(base, trained, hessian, 0.01, 0.3)
    assert torch.equal(patch, wanted)
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(got[~patch], base[~patch])


def test_compensation_brings_the_output_nearer():
    errors = {}
    for kind in ("surgeon", "none", "as_coded"):
        total = 0.0
        for seed in range(8):
            base, trained, inputs, hessian = tailor_case(seed, columns=24, tokens=200)
            got, _ = model_tailor.patched(trained, base, hessian, config_of(share=0.3, compensation=kind))
            total += float((inputs @ (got - trained).T).square().mean())
        errors[kind] = total
    assert errors["surgeon"] < errors["none"] < errors["as_coded"]


def test_groups_of_columns_and_degenerate_inputs():
    base, trained, _, hessian = tailor_case(columns=10)
    got, patch = model_tailor.patched(trained, base, hessian, config_of(share=0.25, group=4))
    assert [int(patch[:, a:b].sum()) for a, b in ((0, 4), (4, 8), (8, 10))] == [6, 6, 3]
    assert got.isfinite().all()
    dead = hessian.clone()
    dead[3] = dead[:, 3] = 0.0  # an input that never occurs
    assert model_tailor.patched(trained, base, dead, config_of())[0].isfinite().all()
    got, _ = model_tailor.patched(base, base, hessian, config_of())  # nothing was learnt
    torch.testing.assert_close(got, base)


def test_tailoring_a_model():
    trainer, items = trainer_for("model_tailor", settings={"samples": 8, "blocks": 1})
    base = weights(trainer)
    steps(trainer, items, 4)
    trained = weights(trainer)
    trainer.tuned.model.eval()
    trainer.dynamics.after_training(lambda count: stepping.example_losses(trainer, count))
    for name, merged in weights(trainer).items():
        if "projector" in name:
            assert torch.equal(merged, base[name])
        elif "norm" in name:
            assert torch.equal(merged, trained[name])
        else:
            share = float((merged != base[name]).float().mean())
            assert 0.05 < share <= 0.11, name
    handles = [m._forward_pre_hooks for m in trainer.tuned.model.modules()]
    assert not any(handles)


def test_the_connector_may_keep_what_it_learnt():
    trainer, items = trainer_for("model_tailor", settings={"samples": 2, "reset_connector": False})
    base = weights(trainer)
    steps(trainer, items, 2)
    trainer.dynamics.after_training(lambda count: stepping.example_losses(trainer, count))
    assert any(not torch.equal(v, base[n]) for n, v in weights(trainer).items() if "projector" in n)


def test_an_error_while_merging_leaves_no_result(monkeypatch, tmp_path):
    def broken(self, losses):
        raise KeyboardInterrupt

    monkeypatch.setattr(dare.Dare, "after_training", broken)
    with pytest.raises(KeyboardInterrupt):
        world().train(train_spec("dare", settings={"blocks": 1}, epochs=1), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
