"""Planning: closed forms against the operations that torch counts, memory, hardware, records, fits, schedules."""

import itertools
import json
import math
import random
import shutil
from pathlib import Path

import pytest

from peftbench.config import Settings
from peftbench.efficiency.architecture import image_shape, instantiate, read_architecture
from peftbench.efficiency.flops import image_costs, measure
from peftbench.efficiency.parameters import Setting, attach_on_meta
from peftbench.errors import UserError
from peftbench.models.arch import component_counts, measure_dims, partition
from peftbench.planning.calibrate import Point, fit
from peftbench.planning.hardware import hardware_names, hardware_of_gpus, read_hardware
from peftbench.planning.operations import Example, Memory, answering, training, training_memory
from peftbench.planning.records import read_measurements
from peftbench.planning.schedule import Task, critical_path, list_schedule, tails
from peftbench.planning.sizes import Sizes, method_on, sizes_of
from peftbench.planning.texts import Lengths, read_assumptions

ROOT = Path(__file__).parents[1]
MODELS = ("llava-1.5-7b", "qwen-vl-chat", "tiny-llava")
METHODS = ("lora", "adapter", "ia3", "prefix")
COUNTED = [
    *(("tiny-llava", method, connector) for method in METHODS for connector in ("frozen", "tuned")),
    ("llava-1.5-7b", "lora", "frozen"),
    ("llava-1.5-7b", "adapter", "tuned"),
    ("llava-1.5-7b", "prefix", "frozen"),
    ("qwen-vl-chat", "lora", "tuned"),
    ("qwen-vl-chat", "ia3", "frozen"),
]
"""Counting takes a second or more for a large model."""
SETTINGS = Settings.from_files(ROOT)


def sizes(model: str, known: bool = True) -> Sizes:
    config = SETTINGS.model(model, "a test")
    architecture = json.loads((ROOT / f"config/architectures/{model}.json").read_text())
    return sizes_of(config.names, config.parameters, architecture if known else {})


@pytest.mark.parametrize("model", MODELS)
def test_sizes_are_those_of_the_real_classes(model):
    config, ours = SETTINGS.model(model, "a test"), sizes(model)
    real = instantiate(read_architecture(ROOT / f"config/architectures/{model}.json"), config.names.code)
    dims = measure_dims(real, config.names)
    assert (ours.layers, ours.hidden, ours.kv_heads, ours.head_dim) == (
        dims.layers,
        dims.hidden,
        dims.kv_heads,
        dims.head_dim,
    )
    assert ours.linear == {leaf: dims.linear[leaf] for leaf in ours.linear}
    counts = component_counts(partition(real, config.names), real)
    assert ours.total == pytest.approx(sum(counts.values()), rel=1e-3)
    assert ours.parameters["language"] == counts["language"]


@pytest.mark.parametrize(("model", "method", "connector"), COUNTED)
def test_closed_forms_agree_with_the_counted_operations(model, method, connector):
    config, ours = SETTINGS.model(model, "a test"), sizes(model)
    settings = dict(config.methods.get(method, {}))
    real = instantiate(read_architecture(ROOT / f"config/architectures/{model}.json"), config.names.code)
    tuned, _ = attach_on_meta(
        real, config.names, Setting(method=method, settings=settings, connector=connector)
    )
    image = image_costs(real, config.names, image_shape(real.config))
    counted = measure(real, config.names, image, 50, 10)
    assert ours.image_tokens == image.tokens
    added = method_on(ours, method, settings, "default")
    assert added.added == tuned.trainable["method"]
    example = Example(prompt=image.tokens + 50, answer=10)
    plain = training(ours, added, example, connector == "tuned")
    again = training(ours, added, example, connector == "tuned", checkpointing=True)
    answer = answering(ours, added, example, 10, "bf16", merged=False, cached=False)
    tolerance = 0.02 if model == "tiny-llava" else 0.003
    assert plain.forward == pytest.approx(counted.forward.total, rel=0.002)
    assert plain.total == pytest.approx(counted.training.total, rel=tolerance)
    assert again.total == pytest.approx(counted.recomputed.total, rel=tolerance)
    assert answer.prefill == pytest.approx(counted.prefill.total, rel=0.002)
    assert answer.decode == pytest.approx(counted.decoding.total, rel=0.002)


def test_what_is_cached_or_tuned_changes_the_operations_by_the_tower():
    ours = sizes("qwen-vl-chat")
    lora = method_on(ours, "lora", {}, "both")
    example = Example(prompt=300, answer=5)
    live, cached, tuned = (
        training(ours, lora, example, True, vision=vision, cached=cached)
        for vision, cached in ((False, False), (False, True), (True, True))
    )
    assert live.total - cached.total == ours.vision_flops
    assert tuned.total == pytest.approx(live.total + 2 * ours.vision_flops)
    assert ours.vision_flops == pytest.approx(4.106e12, rel=0.01)


def test_sizes_without_an_architecture_follow_the_parameter_counts():
    exact, guessed = sizes("llava-1.5-7b"), sizes("llava-1.5-7b", known=False)
    assert (exact.source, guessed.source) == ("architecture", "parameters")
    assert guessed.products == pytest.approx(exact.products, rel=0.03)
    assert guessed.vision_flops == pytest.approx(exact.vision_flops, rel=0.1)
    assert guessed.total == exact.total


def test_memory_grows_with_the_batch_and_shrinks_with_checkpointing():
    ours = sizes("llava-1.5-7b")
    lora, ia3, prefix = (method_on(ours, name, {}, "default") for name in ("lora", "ia3", "prefix"))
    example = Example(prompt=640, answer=10)

    def memory(method, checkpointing=False):
        return training_memory(ours, method, example, "bf16", True, False, checkpointing)

    plain, again = memory(lora), memory(lora, checkpointing=True)
    assert plain.weights == pytest.approx(2 * 7.04e9, rel=0.01)
    assert plain.trainable == 16 * (lora.added + ours.parameters["connector"])
    # about 3 GB of activations for each example of 650 tokens, twice that with LoRA's own inputs
    assert 2.5e9 < memory(prefix).per_example < 3.2e9
    assert 1.5 < plain.per_example / memory(prefix).per_example < 2.1
    assert memory(prefix).per_example < memory(ia3).per_example < plain.per_example
    assert again.per_example < plain.per_example / 8
    assert plain.largest(80e9 * 0.92, 128) in (8, 16)
    assert again.largest(80e9 * 0.92, 128) == 128
    assert plain.largest(25e9, 128) == 1
    assert plain.largest(12e9, 128) == 0


def test_the_largest_micro_batch_is_the_batch_halved_until_it_fits():
    memory = Memory(weights=10.0, trainable=0.0, per_example=1.0)
    assert [memory.largest(room, 100) for room in (200, 110, 109, 35, 22.5, 11, 10)] == [
        100,
        100,
        50,
        25,
        12,
        1,
        0,
    ]


# Hardware


def test_every_hardware_file_is_good():
    assert set(hardware_names(ROOT)) == {
        "a100-80gb",
        "h100-80gb",
        "a6000-48gb",
        "rtx4090-24gb",
        "cpu-2-cores",
    }
    for name in hardware_names(ROOT):
        hardware = read_hardware(ROOT, name)
        assert hardware.is_this("cpu") == (hardware.kind == "cpu")
    a100 = read_hardware(ROOT, "a100-80gb")
    assert a100.is_this("NVIDIA A100-SXM4-80GB") and not a100.is_this("NVIDIA H100 80GB HBM3")
    assert a100.flops("bf16") > 10 * a100.flops("fp32")


@pytest.fixture
def machine(tmp_path):
    """A project with one hardware file, and a function that changes it."""
    shutil.copytree(ROOT / "config/hardware", tmp_path / "config/hardware")
    path = tmp_path / "config/hardware/a100-80gb.yaml"

    def change(old: str, new: str) -> str:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(UserError) as caught:
            read_hardware(tmp_path, "a100-80gb")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return change


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("price_per_hour: 1.8", "price_per_hour: -1.8", "price_per_hour: expected `float` >= 0.0"),
        ("price_per_hour: 1.8", "price_per_hour: .inf", "price_per_hour: inf is no number to compute with"),
        ("price_per_hour: 1.8", "price_per_hour: .nan", "price_per_hour"),
        ("watts: 400", "wats: 400", "unknown key 'wats'; did you mean 'watts'?"),
        ("train: 0.45", "train: 1.45", "efficiency.train: expected `float` <= 1.0"),
        ("train: 0.45", "trein: 0.45", "efficiency: unknown key 'trein'; did you mean 'train'?"),
        ("memory: 80.0e+9", "memory: much", "memory: expected `float`, got `str`"),
        ("kind: gpu", "kind: tpu", "kind: invalid enum value 'tpu'"),
        ("watts: 400\n", "", "key 'watts' is missing"),
        ("matches: [A100]", "matches: []", "matches: name at least one word"),
    ],
)
def test_a_mistake_in_a_hardware_file_is_one_line_with_file_and_key(machine, old, new, message):
    said = machine(old, new)
    assert said.startswith("config/hardware/a100-80gb.yaml: ") and message in said


@pytest.mark.parametrize(
    ("models", "found"),
    [
        (["NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB"], "a100-80gb"),
        (["NVIDIA H100 80GB HBM3"], "h100-80gb"),
        (["NVIDIA RTX A6000"], "a6000-48gb"),
        (["Tesla T4"], None),
        (["NVIDIA A100-SXM4-80GB", "Tesla T4"], None),
        ([], None),
    ],
)
def test_the_hardware_of_this_machine_is_told_by_its_gpus(models, found, tmp_path):
    for place, model in enumerate(models):
        folder = tmp_path / f"0000:0{place}:00.0"
        folder.mkdir()
        (folder / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 16\n")
    assert hardware_of_gpus(ROOT, tmp_path) == found


def test_unknown_hardware_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"there is no hardware 'a10-80gb'; did you mean 'a100-80gb'\?"):
        read_hardware(ROOT, "a10-80gb")


# Texts


def test_lengths_come_from_templates_and_declared_averages_until_records_say_better():
    assumptions = read_assumptions(ROOT)
    lengths = Lengths(assumptions)
    config, data = SETTINGS.model("llava-1.5-7b", "a test"), SETTINGS.dataset("vqav2", "a test")

    def example():
        return lengths.example("m", "vqav2", data.stands_for, config.names, data.prompt, 576)

    # Vicuna's system sentence is about 35 tokens, question and instruction about 20
    assert 576 + 45 < example().length < 576 + 75
    lengths.trained["m", "vqav2"] = 700.0
    assert example().length == pytest.approx(700.0)
    mean, longest = lengths.steps("m", "vqav2", data.stands_for, 16)
    assert 1 < mean <= longest <= 16
    lengths.answered["m", "vqav2"] = 50.0
    assert lengths.steps("m", "vqav2", data.stands_for, 16) == (16.0, 16.0)


def test_a_mistake_in_the_assumptions_is_one_line(tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config/planning.yaml").write_text("characters_per_tokn: 4\n")
    with pytest.raises(UserError, match=r"planning.yaml: unknown key 'characters_per_tokn'; did you mean"):
        read_assumptions(tmp_path)
    (tmp_path / "config/planning.yaml").write_text("characters_per_token: 0\n")
    with pytest.raises(UserError, match="characters_per_token: expected `float` > 0"):
        read_assumptions(tmp_path)


# Records


def leave(
    folder: Path, digest: str, changes: dict | None = None, facts: dict | None = None, name: str = "x"
) -> Path:
    provenance = {
        "started": "2026-01-01T00:00:00+00:00",
        "device": "cpu",
        "cpus": 2,
        "wall_seconds": 10.0,
        "cpu_seconds": 9.0,
        "gpu_seconds": 0.0,
        "peak_memory": 5e8,
        "peak_gpu_memory": 0,
    } | (changes or {})
    record = {
        "stage": "subset",
        "digest": digest,
        "label": "some",
        "spec": {},
        "code": {"modules": {}},
        "inputs": {},
        "facts": facts or {},
        "provenance": provenance,
    }
    path = folder / f"subsets/{name}/all-{digest}/record.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    return path


@pytest.mark.parametrize(
    ("changes", "facts", "word"),
    [
        ({"wall_seconds": 0.0}, {}, "wall_seconds 0"),
        ({"wall_seconds": -4.0}, {}, "wall_seconds -4"),
        ({"wall_seconds": 1e12}, {}, "wall_seconds 1e+12"),
        ({"wall_seconds": None}, {}, "wall_seconds is None"),
        ({"wall_seconds": "long"}, {}, "wall_seconds is 'long'"),
        ({"cpu_seconds": -1.0}, {}, "cpu_seconds -1"),
        ({"cpu_seconds": 1e5}, {}, "cpu_seconds 100000"),
        ({"gpu_seconds": -1.0}, {}, "gpu_seconds -1"),
        ({"started": "yesterday"}, {}, "started is 'yesterday'"),
        ({}, {"seconds": 400.0}, "seconds 400"),
        ({}, {"seconds": -1}, "seconds -1"),
    ],
)
def test_a_record_with_nonsense_is_left_out_with_one_line(tmp_path, changes, facts, word):
    good = leave(tmp_path, "a" * 16)
    bad = leave(tmp_path, "b" * 16, changes, facts)
    found = read_measurements([tmp_path])
    assert [one.digest for one in found.all] == ["a" * 16] and good.exists()
    (line,) = found.problems
    assert line.startswith(str(bad)) and word in line and line.endswith("left out of the estimate")


@pytest.mark.parametrize("text", ["", "{", '{"stage": "subset"}', "[]", "\x00", '{"digest": NaN}'])
def test_a_half_written_record_is_left_out_with_one_line(tmp_path, text):
    leave(tmp_path, "a" * 16)
    bad = leave(tmp_path, "b" * 16)
    bad.write_text(text)
    found = read_measurements([tmp_path])
    assert len(found.all) == 1
    (line,) = found.problems
    assert line.startswith(f"{bad}: half written or no record (") and "\n" not in line


def test_a_record_under_another_name_is_left_out(tmp_path):
    path = leave(tmp_path, "a" * 16)
    path.parent.rename(path.parent.with_name("all-" + "c" * 16))
    found = read_measurements([tmp_path])
    assert not found.all and "its name another" in found.problems[0]


def test_two_records_of_one_digest_count_once_or_not_at_all(tmp_path):
    leave(tmp_path / "one", "a" * 16)
    leave(tmp_path / "two", "a" * 16)
    both = [tmp_path / "one", tmp_path / "two"]
    found = read_measurements(both)
    assert len(found.all) == 1 and not found.problems

    leave(tmp_path / "two", "a" * 16, {"wall_seconds": 20.0})  # of the same start
    found = read_measurements(both)
    assert not found.all
    assert (
        "say different times of one start" in found.problems[0]
        and "none of them is used" in found.problems[0]
    )

    again = {"wall_seconds": 20.0, "started": "2026-01-02T00:00:00+00:00"}  # made twice: two measurements
    leave(tmp_path / "two", "a" * 16, again)
    assert len(read_measurements(both).all) == 2

    leave(tmp_path / "two", "a" * 16, again, {"outputs": {"f": "1"}})
    leave(tmp_path / "one", "a" * 16, {}, {"outputs": {"f": "2"}})
    found = read_measurements(both)
    assert not found.all and "made different things" in found.problems[0]


# Fits


def points(count: int, seed: int, fixed: float, work: float, noise: float, methods=("a",)) -> list[Point]:
    draw = random.Random(seed)
    result = []
    for i in range(count):
        f, w = draw.uniform(1, 2), draw.uniform(1, 50)
        factor = math.exp(draw.gauss(0, noise)) * (1.3 if methods[i % len(methods)] == "slow" else 1.0)
        measured = (fixed * f + work * w) * factor
        result.append(Point(fixed=f, work=w, measured=measured, weight=1.0, method=methods[i % len(methods)]))
    return result


def test_a_fit_finds_the_factors_and_predicts_what_it_has_not_seen():
    found, guesses = fit(points(60, 1, fixed=8.0, work=2.0, noise=0.05))
    assert found.work == pytest.approx(2.0, rel=0.1) and found.fixed == pytest.approx(8.0, rel=0.5)
    new = points(30, 2, fixed=8.0, work=2.0, noise=0.0)
    errors = [abs(found.predict(p.fixed, p.work, p.method) / p.measured - 1) for p in new]
    assert max(errors) < 0.12 and sum(errors) / 30 < 0.06
    assert len(guesses) == 60


def test_a_few_records_are_scaled_and_one_has_no_error():
    found, guesses = fit(points(1, 1, fixed=3.0, work=3.0, noise=0.0))
    assert found.fixed == found.work == pytest.approx(3.0) and math.isnan(guesses[0])
    found, guesses = fit(points(4, 1, fixed=3.0, work=3.0, noise=0.0))
    assert found.work == pytest.approx(3.0) and not any(map(math.isnan, guesses))


def test_odd_records_do_not_move_the_fit_and_leave_one_out_is_honest():
    clean = points(30, 3, fixed=2.0, work=2.0, noise=0.02)
    odd = [Point(fixed=1.0, work=20.0, measured=4000.0, weight=1.0, method="a") for _ in range(3)]
    found, guesses = fit([*clean, *odd])
    assert found.work == pytest.approx(2.0, rel=0.2)
    # nothing of an odd record is in its own prediction
    assert all(guess < 100 for guess in guesses[-3:])
    alone = [Point(fixed=1.0, work=1.0, measured=m, weight=1.0, method="a") for m in (2.0, 200.0)]
    assert fit(alone)[1] == pytest.approx([200.0, 2.0])


def test_methods_differ_and_new_records_weigh_more():
    found, _ = fit(points(80, 5, fixed=2.0, work=2.0, noise=0.02, methods=("fast", "slow")))
    assert found.methods["slow"] / found.methods["fast"] == pytest.approx(1.3, rel=0.06)
    old = [Point(fixed=1.0, work=1.0, measured=4.0, weight=0.1, method="a") for _ in range(6)]
    new = [Point(fixed=1.0, work=1.0, measured=8.0, weight=1.0, method="a") for _ in range(1)]
    assert fit([*old, *new])[0].work == pytest.approx(4.0, rel=0.01)


# Schedules


def tasks(*rows: tuple[str, float, str]) -> dict[str, Task]:
    return {n: Task(name=n, seconds=s, pool="gpu", after=after.split()) for n, s, after in rows}


def test_the_critical_path_is_the_longest_chain():
    some = tasks(
        ("a", 1, ""), ("b", 5, "a"), ("c", 2, "a"), ("d", 1, "b c"), ("e", 6, ""), ("f", 1, "not-there")
    )
    longest = tails(some)
    assert longest == {"a": 7, "b": 6, "c": 3, "d": 1, "e": 6, "f": 1}
    assert critical_path(some, longest) == ["a", "b", "d"]
    assert list_schedule(some, {"gpu": 9}).seconds == 7
    assert list_schedule(some, {"gpu": 1}).seconds == 16
    assert critical_path({}, {}) == [] and list_schedule({}, {"gpu": 1}).seconds == 0


def test_tasks_that_wait_for_each_other_are_an_error():
    with pytest.raises(ValueError, match="wait for each other"):
        tails(tasks(("a", 1, "b"), ("b", 1, "a")))


@pytest.mark.parametrize("lanes", (1, 2, 3, 8))
def test_a_schedule_keeps_order_and_devices_and_is_no_worse_than_twice_the_best(lanes):
    draw = random.Random(lanes)
    rows = []
    for i in range(200):
        before = " ".join(f"t{draw.randrange(i)}" for _ in range(draw.randrange(3))) if i else ""
        rows.append((f"t{i}", draw.choice((0.0, 1.0, draw.uniform(1, 30))), before))
    some = tasks(*rows)
    schedule = list_schedule(some, {"gpu": lanes})
    slots = schedule.slots
    assert slots.keys() == some.keys()
    for task in some.values():
        assert slots[task.name].end - slots[task.name].start == pytest.approx(task.seconds)
        assert all(slots[before].end <= slots[task.name].start for before in task.after)
    for lane in range(lanes):
        mine = sorted((s.start, s.end) for s in slots.values() if s.lane == lane)
        assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(mine))
    best = max(max(tails(some).values()), sum(t.seconds for t in some.values()) / lanes)
    assert best - 1e-6 <= schedule.seconds <= 2 * best
