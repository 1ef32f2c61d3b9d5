"""Efficiency: parameters and FLOPs of real sizes without weights, checked by hand and against the paper."""

import csv
import json
from functools import cache
from pathlib import Path

import msgspec
import pytest
import torch
import torch.nn.functional as F

from peftbench.analysis.efficiency import Measured, write_efficiency
from peftbench.canonical import digest_of_text, identity_text
from peftbench.config import Settings
from peftbench.efficiency import flops
from peftbench.efficiency.architecture import image_shape, instantiate, read_architecture, read_config
from peftbench.efficiency.explain import amount, explain, fit_common
from peftbench.efficiency.formulas import common_tokens, implied_tokens, inference_flops, training_flops
from peftbench.efficiency.parameters import Counts, EfficiencyModel, Setting, attach_on_meta, count_parameters
from peftbench.efficiency.records import run_costs
from peftbench.efficiency.table import Cell, Workload, efficiency_rows, read_published, remark
from peftbench.errors import UserError
from peftbench.store import Record

ROOT = Path(__file__).parents[1]
SIZES = {"7b": (4096, 11008, 32), "13b": (5120, 13824, 40)}
VISION = 303_507_456
LENGTHS = Workload(title="a question", text=70, answer=5)
METHODS = ("adapter", "lora", "ia3", "prefix")
CELLS = [
    (size, method, connector) for size in SIZES for method in METHODS for connector in ("frozen", "tuned")
]


def settings() -> Settings:
    return Settings.from_files(ROOT)


def model(name: str, architecture: str = "", **changes) -> EfficiencyModel:
    config = settings().model(name, "a test")
    return EfficiencyModel(
        name=name,
        title=config.title,
        names=config.names,
        architecture=read_architecture(ROOT / f"config/architectures/{architecture or name}.json"),
        **changes,
    )


def llava(size: str) -> EfficiencyModel:
    return model(f"llava-1.5-{size}", vocabulary=32000)


@cache
def counted(size: str, method: str, connector: str) -> Counts:
    """A cell of Table 15, with the paper's vocabulary."""
    return count_parameters(llava(size), Setting(method=method, connector=connector), 32000)


def published():
    with (ROOT / "paper/tables/table15_efficiency.csv").open(newline="") as stream:
        return read_published(csv.DictReader(stream))


def by_hand(size: str, method: str, location: str, width: int) -> int:
    """Parameters that a method adds to a LLaMA: the formulas of ../README's sources, written out again."""
    d, f, layers = SIZES[size]
    attn, mlp = location in ("attn", "both"), location in ("mlp", "both")
    if method == "lora":
        return layers * width * (8 * d * attn + 3 * (d + f) * mlp)
    if method == "adapter":
        return layers * 2 * d * width * (4 * attn + 3 * mlp)
    if method == "ia3":
        return layers * (2 * d * attn + f * mlp)
    return width * 2 * layers * d


# Parameters


@pytest.mark.parametrize(("size", "method", "connector"), CELLS)
def test_percentages_of_table_15(size, method, connector):
    paper = published()[f"llava-1.5-{size}", method, connector]
    counts = counted(size, method, connector)
    d, f, layers = SIZES[size]
    base = 2 * 32000 * d + layers * (4 * d * d + 3 * d * f + 2 * d) + d + 1024 * d + d + d * d + d + VISION
    assert counts.total - counts.added == base
    assert counts.percent == pytest.approx(paper.percent, abs=1e-3)
    odd = (size, method, connector) == ("13b", "adapter", "frozen")
    assert (f"{counts.percent:.3f}" == f"{paper.percent:.3f}") is not odd
    assert ("cut off" in remark(counts.percent, paper.percent)) is odd


@pytest.mark.parametrize(("size", "total"), [("7b", 7_063_427_072), ("13b", 13_351_494_656)])
def test_counts_as_the_checkpoints_are(size, total):
    counts = count_parameters(llava(size), Setting(method="ia3", connector="tuned"))
    assert counts.total - counts.added == total
    assert total == sum(settings().model(f"llava-1.5-{size}", "a test").parameters.values())


def test_sharegpt4v_is_the_7b():
    ours = count_parameters(model("sharegpt4v-7b", "llava-1.5-7b"), Setting(method="lora"), 32000)
    assert ours == counted("7b", "lora", "frozen")
    assert ours.total - ours.added == 7_062_902_784


@pytest.mark.parametrize(
    ("method", "added", "percent"),
    [
        ("lora", 224_395_264, 2.271),
        ("adapter", 201_326_592, 2.042),
        ("ia3", 483_328, 0.005),
        ("prefix", 5_242_880, 0.054),
    ],
)
def test_qwen_vl_chat(method, added, percent):
    name = "qwen-vl-chat"
    own = settings().model(name, "a test").methods.get(method, {})
    counts = count_parameters(model(name), Setting(method=method, settings=own))
    assert counts.total - counts.added == 9_656_935_168
    assert counts.added == added
    assert counts.percent == pytest.approx(percent, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "connector"), [("qwen-vl-chat", 75_005_952), ("qwen-vl-chat-as_coded", 1_244_659_712)]
)
def test_connectors_of_qwen_vl_chat(name, connector):
    counts = count_parameters(model(name, "qwen-vl-chat"), Setting(method="ia3", connector="tuned"))
    assert counts.connector == connector
    assert counts.percent == pytest.approx(100 * (connector + 483_328) / (9_656_935_168 + 483_328), rel=1e-12)


VARIANTS = [
    *(
        (m, loc, {}, w)
        for m, w in (("adapter", 256), ("lora", 128), ("ia3", 0))
        for loc in ("attn", "mlp", "both")
    ),
    *(("adapter", "mlp", {"bottleneck": w}, w) for w in (32, 64, 128, 256)),
    *(("lora", "both", {"rank": w}, w) for w in (16, 32, 64, 128)),
    *(("prefix", "default", {"tokens": w}, w) for w in (10, 20, 30, 40)),
]


@pytest.mark.parametrize(("method", "location", "values", "width"), VARIANTS)
def test_locations_and_sizes(method, location, values, width):
    setting = Setting(method=method, settings=values, location=location)
    assert count_parameters(llava("7b"), setting).added == by_hand("7b", method, location, width)


# FLOPs by formula


@pytest.mark.parametrize(("size", "method", "connector"), CELLS)
def test_published_flops_follow_from_implied_tokens(size, method, connector):
    paper = published()[f"llava-1.5-{size}", method, connector]
    d, _, layers = SIZES[size]
    counts = counted(size, method, connector)
    frozen = counts.total - counts.trainable
    tokens = implied_tokens(paper.train_flops, frozen, counts.trainable)
    assert 88_000 < tokens < 107_200
    assert training_flops(frozen, counts.trainable, tokens) == pytest.approx(paper.train_flops)
    assert counts.embedding == 32000 * d
    found = inference_flops(counts.total - counts.embedding, layers, d, tokens)
    # Two numbers printed with four digits: half a unit of the last one in each.
    assert found == pytest.approx(paper.inference_flops, rel=3e-4)


def test_common_tokens_are_the_least_squares():
    pairs = [(10.0, 1.0), (12.0, 1.0), (30.0, 2.0)]

    def error(n):
        return sum((n * per / total - 1) ** 2 for total, per in pairs)

    best = common_tokens(pairs)
    assert error(best) < min(error(best * 1.001), error(best * 0.999))
    assert common_tokens([(50.0, 2.0), (100.0, 4.0)]) == pytest.approx(25)


# FLOPs counted


def hand_training(
    size: str, added_per_token: int, first: int, n: int, s: int, prefix: int = 0
) -> tuple[int, int]:
    """Language model and head of one training step, connector frozen.

    ``added_per_token``: parameters of a method's matrices. ``first``: weights of the first layer whose input
    needs no gradient.
    """
    d, f, layers = SIZES[size]
    weights = layers * (4 * d * d + 3 * d * f)
    attention = 4 * n * (n + prefix) * d * layers
    forward = 2 * n * (weights + added_per_token) + attention
    backward = 2 * n * (weights - first) + 4 * n * added_per_token + 2 * attention
    return forward + backward, 2 * (2 * s * 32064 * d)


@pytest.mark.parametrize("method", ["lora", "adapter", "ia3", "prefix"])
def test_training_step_by_hand(method):
    d, _, _ = SIZES["7b"]
    setting = Setting(method=method)
    [row] = efficiency_rows([Cell(model=llava("7b"), setting=setting)], LENGTHS)
    n, s = 576 + 70 + 5, 5
    matrices = {"lora": 319_815_680, "adapter": 201_326_592, "ia3": 0, "prefix": 0}[method]
    # Query, key and value of the first layer see embeddings, which need no gradient; with LoRA their A too. What
    # precedes the first trainable parameter needs none either: with adapters, the whole first attention.
    first = {"lora": 3 * d * d, "adapter": 4 * d * d, "ia3": 3 * d * d, "prefix": 3 * d * d}[method]
    language, head = hand_training("7b", matrices, first, n, s, prefix=20 if method == "prefix" else 0)
    attention = 3 * 4 * n * (n + (20 if method == "prefix" else 0)) * d * 32
    if method == "lora":
        language -= 2 * n * 3 * d * 128
    if method == "adapter":
        language -= 2 * 4 * n * n * d + 2 * n * 2 * d * 256
        attention -= 2 * 4 * n * n * d
    if method == "ia3":
        # The first queries meet keys that need a gradient, but need none themselves: one of the four products
        # of the attention's backward pass.
        language -= 2 * n * n * d
        attention -= 2 * n * n * d
    if method == "prefix":
        language -= 2 * n * (n + 20) * d
        attention -= 2 * n * (n + 20) * d
    assert (row.language, row.head, row.attention) == (language, head, attention)
    vision = 2 * 576 * 1024 * 3 * 14 * 14 + 24 * (2 * 577 * 12 * 1024**2 + 4 * 577**2 * 1024)
    assert (row.vision, row.connector_flops) == (vision, 2 * 576 * (1024 * d + d * d))


def test_generation_by_hand():
    d, f, layers = SIZES["7b"]
    bare = instantiate(llava("7b").architecture)
    names = llava("7b").names
    image = flops.image_costs(bare, names, image_shape(bare.config))
    assert image.tokens == 576 and image.forward == image.training and not image.differentiable
    costs = flops.measure(bare, names, image, 70, 4)
    weights, prompt = layers * (4 * d * d + 3 * d * f), 646
    passes = [prompt + k for k in (1, 2, 3)]  # keys that each pass sees
    expected = sum(2 * (weights + 32064 * d) + 4 * d * layers * k for k in passes)
    assert costs.decoding.total == expected
    assert costs.per_token == pytest.approx(expected / 3)
    assert costs.training == costs.forward


def test_two_layers_stand_for_all():
    wide = llava("7b")
    architecture = wide.architecture | {
        "text_config": wide.architecture["text_config"] | {"num_hidden_layers": 5}
    }
    results = []
    for whole in (False, True):
        bare = instantiate(architecture)
        attach_on_meta(bare, wide.names, Setting(method="lora", connector="tuned"))
        image = flops.ImageCosts(tokens=576, differentiable=True)
        results.append(flops.measure(bare, wide.names, image, 70, 5, whole=whole))
    assert results[0] == results[1]


def tiny_llava_config() -> dict:
    return json.loads((ROOT / "src/peftbench/models/shipped/tiny-llava/config.json").read_text())


def tiny_qwen_config() -> dict:
    vision = {"image_size": 112, "patch_size": 14, "width": 64, "layers": 2, "heads": 4}
    vision |= {"output_dim": 128, "n_queries": 16, "image_start_id": 509}
    sizes = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "kv_channels": 32}
    return {"model_type": "qwen", "vocab_size": 512, "intermediate_size": 688, **sizes, "visual": vision}


TINY = {"tiny-llava": (tiny_llava_config(), 4), "qwen-vl-chat": (tiny_qwen_config(), 511)}


@pytest.mark.parametrize(
    ("name", "method", "connector"),
    [
        ("tiny-llava", "lora", "tuned"),
        ("tiny-llava", "adapter", "frozen"),
        ("tiny-llava", "ia3", "tuned"),
        ("qwen-vl-chat", "prefix", "tuned"),
        ("qwen-vl-chat", "lora", "frozen"),
    ],
)
def test_sum_of_parts_is_the_whole_graph_with_values(name, method, connector):
    """Image and text counted apart on the meta device, against one run with real numbers on the CPU."""
    from transformers import AutoModelForImageTextToText

    architecture, image_id = TINY[name]
    config = settings().model(name, "a test")
    setting = Setting(method=method, connector=connector)
    bare = instantiate(architecture, config.names.code)
    attach_on_meta(bare, config.names, setting)
    shape = image_shape(bare.config)
    image = flops.image_costs(bare, config.names, shape)
    costs = flops.measure(bare, config.names, image, 9, 4)

    loaded = AutoModelForImageTextToText.from_config(
        read_config(architecture, config.names.code), dtype=torch.float32, attn_implementation="sdpa"
    )
    loaded.requires_grad_(False)
    attach_on_cpu(loaded, config.names, setting)
    ids = torch.full((1, costs.prompt + costs.answer), 7)
    ids[0, 2 : 2 + image.tokens] = image_id
    keep = torch.arange(ids.shape[1])[-costs.answer :]

    def train():
        pixels = torch.randn(shape)
        out = loaded(input_ids=ids, pixel_values=pixels, logits_to_keep=keep, use_cache=False)
        out.logits.logsumexp(-1).sum().backward()

    loaded.train()
    whole = flops.count(loaded, config.names, train)
    assert whole == costs.training
    trained = {n for n, p in loaded.named_parameters() if p.grad is not None}
    assert trained == {n for n, p in loaded.named_parameters() if p.requires_grad}
    with torch.no_grad():
        steps = flops.generation(loaded.eval(), config.names, costs.prompt, 3)
    assert flops.weighted([(1, step) for step in steps[1:]]) == costs.decoding
    assert steps[0] + image.forward == costs.prefill


def attach_on_cpu(model, names, setting):
    from types import SimpleNamespace

    from peftbench.spec import Decoding, PredictSpec, Prompt
    from peftbench.training.adapt import attach

    spec = PredictSpec(
        model=names,
        prompt=Prompt(templates=["{question}"]),
        decoding=Decoding(max_new_tokens=1, batch_size=1),
        precision="fp32",
        **msgspec.structs.asdict(setting),
    )
    return attach(SimpleNamespace(model=model), spec)


@pytest.fixture(scope="module")
def rows():
    cells = [
        Cell(model=llava("7b"), setting=Setting(method=method, connector="tuned", settings=values))
        for method, values in (("lora", {}), ("lora", {"rank": 16}), ("prefix", {}))
    ]
    return efficiency_rows(cells, LENGTHS, published())


def test_checkpointing_runs_the_layers_twice_and_not_the_tower(rows):
    row = rows[0]
    forward_of_layers = row.forward - 381_918_216_192 - 24_159_191_040 - row.head // 2
    # Recomputation stops where nothing more is needed: the last product of a layer, B of down_proj, is not.
    last = 32 * 2 * 651 * 128 * 4096
    assert row.train_recomputed - row.train_measured == forward_of_layers - last
    assert row.vision == 381_918_216_192
    # The connector's weight gradients, and the gradient of its second layer's input.
    assert row.connector_flops == 2 * 576 * (2 * 1024 * 4096 + 3 * 4096**2)


def test_kernels_that_torch_does_not_count_are_refused():
    q = torch.randn(1, 2, 8, 16)
    with flops._Guards(), pytest.raises(RuntimeError, match="flash_attention_for_cpu"):
        F.scaled_dot_product_attention(q, q, q)


def test_questions_about_values_other_than_guards_are_refused():
    with flops._Guards(), pytest.raises(RuntimeError, match="meta device"):
        int(torch.zeros(3, device="meta", dtype=torch.long).sum())


# The table


def test_table_explanation_and_files(rows, tmp_path):
    assert [row.published_percent for row in rows] == [4.616, None, 0.371]
    assert rows[1].settings == '{"rank": 16}'
    assert rows[0].train_ratio == pytest.approx(rows[0].train_measured / rows[0].train_formula)
    assert 1.9 < rows[0].train_ratio < 1.95
    assert rows[0].forward + rows[0].backward == rows[0].train_measured
    assert rows[2].token_merged is None and rows[0].token_merged == rows[1].token_merged
    assert rows[0].token_merged < rows[0].token_measured
    assert len(fit_common(rows)) == 2
    text = " ".join(explain(rows, LENGTHS))
    assert "2 of 2 published values" in text and f"{rows[0].train_measured / 1e12:.2f}" not in text
    assert f"{rows[0].backward / 1e12:.2f} TFLOPs counted" in text and "651 tokens" in text

    costs = run_costs([fake_run(tmp_path / "run")])
    measured = Measured(costs=costs, score=71.25, stderr=0.5, published_score=76.7)
    runs = {("llava-1.5-7b", "lora", "tuned", "default"): measured}
    outputs = write_efficiency(rows, LENGTHS, tmp_path, "efficiency", runs, "Table 1")
    assert sorted(outputs) == ["efficiency.csv", "efficiency.html", "efficiency.md"]
    with (tmp_path / "efficiency.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert int(lines[0]["trainable"]) == 340_795_392 and lines[0]["peak_memory"] == str(3 * 2**30)
    assert lines[2]["step_seconds"] == ""
    assert "4.616 (4.616)" in (tmp_path / "efficiency.md").read_text()
    assert (lines[0]["score"], lines[0]["published_score"], lines[2]["score"]) == ("71.25", "76.7", "")
    page = (tmp_path / "efficiency.html").read_text()
    assert "<td>0.50</td>" in page and "<td>71.2 (76.7)</td>" in page and "the runs of Table 1" in page
    assert "GPU A" in page


def fake_run(folder: Path, device: str = "GPU A", seconds: float = 5.0) -> Path:
    record = Record(
        stage="train",
        digest=digest_of_text(identity_text("train", *["{}"] * 3)),
        label="",
        spec={},
        code={},
        inputs={},
        facts={"steps": 10, "seconds": seconds, "throughput": {"samples_per_s": 32.0, "tokens_per_s": 9.0}},
        provenance={"device": device, "peak_memory": 2**30, "peak_gpu_memory": 3 * 2**30},
    )
    folder.mkdir()
    (folder / "record.json").write_bytes(msgspec.json.encode(record))
    return folder


def test_costs_of_runs(tmp_path):
    runs = [fake_run(tmp_path / "a"), fake_run(tmp_path / "b", seconds=15.0), tmp_path / "missing"]
    found = run_costs(runs)
    assert (found.runs, found.step_seconds, found.memory, found.on_gpu) == (2, 1.0, 3 * 2**30, True)
    assert run_costs([tmp_path / "missing"]) is None
    mixed = run_costs([*runs, fake_run(tmp_path / "c", device="GPU B", seconds=90.0)])
    assert (mixed.devices, mixed.runs, mixed.left_out, mixed.step_seconds) == (["GPU A"], 2, 1, 1.0)
    assert run_costs([runs[0]], [runs[1]]).answers_per_second == 32.0


def test_units_fit_small_models_and_large_ones():
    assert [amount(value) for value in (9.75e12, 4.1e10, 3.2e8, 2.5e6, 0.0)] == [
        "9.75 TFLOPs",
        "41.00 GFLOPs",
        "0.32 GFLOPs",
        "2.50 MFLOPs",
        "0.00 MFLOPs",
    ]


def test_remarks():
    assert remark(2.77148, 2.771) == ""
    assert "cut off" in remark(2.30196, 2.301)
    assert remark(2.5, 2.6).endswith("published is 2.600")


# Bad input


def test_bad_architectures(tmp_path):
    with pytest.raises(UserError, match="model_type is missing"):
        instantiate({"hidden_size": 8})
    with pytest.raises(UserError, match="architecture nonsense"):
        instantiate({"model_type": "nonsense"})
    with pytest.raises(UserError, match="architecture llava"):
        instantiate({"model_type": "llava", "text_config": {"model_type": "llama", "hidden_size": "wide"}})
    with pytest.raises(UserError, match="no fixed image size"):
        image_shape(read_config({"model_type": "qwen2_5_vl"}))
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(UserError, match="no model_type"):
        read_architecture(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"b\.json"):
        read_architecture(tmp_path / "b.json")


def test_bad_settings_and_published_rows():
    with pytest.raises(UserError, match="rank"):
        count_parameters(llava("7b"), Setting(method="lora", settings={"rank": 0}))
    with pytest.raises(UserError, match="train_flops"):
        read_published([{"model": "m", "method": "lora", "connector": "tuned", "trainable_percent": "1"}])


def test_the_study_of_places_and_sizes(tmp_path):
    """Its numbers are those by hand; 21 rows per model of known sizes."""
    from peftbench.analysis.descriptions.parameters import describe
    from peftbench.graph import Plan
    from peftbench.views import DescribeSpec

    settings = Settings.from_files(ROOT, [ROOT / "config/paper.yaml"])
    settings.main.lineup.models[:] = ["llava-1.5-7b"]
    job = Plan(settings).study("table15_parameters").describe
    table = describe(msgspec.convert(json.loads(job.spec), DescribeSpec), tmp_path)
    assert len(table.rows) == 9 + 3 * 4
    found = {(row[1], "" if row[1] == "Prefix-Tuning" else row[2], row[3]): row for row in table.rows}
    for method, title, place, size, width in (
        ("lora", "LoRA", "attn", "default", 128),
        ("lora", "LoRA", "both", "rank 16", 16),
        ("adapter", "Adapter", "mlp", "bottleneck 32", 32),
        ("ia3", "IA3", "mlp", "default", 0),
        ("prefix", "Prefix-Tuning", "", "tokens 40", 40),
    ):
        row = found[title, place, size]
        assert row[4] == f"{by_hand('7b', method, place, width):,}"
    assert found["LoRA", "both", "default"][6:] == ["4.332", "4.616"], "the published ones"
