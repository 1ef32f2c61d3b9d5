"""What methods cost that train the base model's own weights: counts on real architectures, operations, plans."""

import pytest

from peftbench.efficiency.architecture import image_shape, instantiate, read_architecture
from peftbench.efficiency.flops import image_costs, measure
from peftbench.efficiency.parameters import Setting, attach_on_meta, count_parameters
from peftbench.efficiency.table import Cell, Workload, efficiency_rows
from peftbench.errors import UserError
from peftbench.planning.operations import Example, training, training_memory
from peftbench.planning.sizes import method_on
from test_efficiency import llava, model
from test_planning import ROOT, SETTINGS, sizes

BLOCK = 202_383_360
CONNECTOR = 20_979_712
IN_PLACE = ["selected", "spider", "half_ft", "full_lm", "bitfit"]


@pytest.mark.parametrize("method", ["selected", "spider", "magnitude_mask", "dare", "l2_to_pretrained"])
def test_two_blocks_and_the_connector_of_llava_7b(method):
    counts = count_parameters(llava("7b"), Setting(method=method, connector="tuned"), 32000)
    assert (counts.added, counts.in_place, counts.connector) == (0, 2 * BLOCK, CONNECTOR)
    assert counts.trainable == 425_746_432
    assert round(counts.percent, 2) == 6.03
    assert counts.total == 7_062_902_784


@pytest.mark.parametrize(
    ("method", "settings", "trainable"),
    [
        ("half_ft", {}, BLOCK),
        ("full_lm", {}, 6_738_415_616),
        ("bitfit", {}, 1_359_872),
        ("linear_probe", {}, CONNECTOR),
    ],
)
def test_reference_points_on_llava_7b(method, settings, trainable):
    connector = "tuned" if method == "linear_probe" else "frozen"
    counts = count_parameters(
        llava("7b"), Setting(method=method, settings=settings, connector=connector), 32000
    )
    assert counts.trainable == trainable
    assert counts.total == 7_062_902_784 + counts.added


@pytest.mark.parametrize("connector", ["tuned", "frozen"])
@pytest.mark.parametrize("method", IN_PLACE)
def test_planned_operations_are_those_counted(method, connector):
    config, ours = SETTINGS.model("tiny-llava", "a test"), sizes("tiny-llava")
    settings = {"blocks": 1} if method in ("selected", "spider") else {}
    real = instantiate(read_architecture(ROOT / "config/architectures/tiny-llava.json"), config.names.code)
    setting = Setting(method=method, settings=settings, connector=connector)
    tuned, _ = attach_on_meta(real, config.names, setting)
    image = image_costs(real, config.names, image_shape(real.config))
    counted = measure(real, config.names, image, 50, 10, whole=True)
    planned = method_on(ours, method, settings, "default")
    assert planned.in_place == sum(tuned.trainable[c] for c in ("language", "embeddings", "method"))
    example = Example(prompt=image.tokens + 50, answer=10)
    plain = training(ours, planned, example, connector == "tuned")
    assert plain.forward == pytest.approx(counted.forward.total, rel=0.002)
    assert plain.total == pytest.approx(counted.training.total, rel=0.06), (
        plain.total / counted.training.total
    )


def test_fewer_blocks_cost_less_to_train():
    ours, example = sizes("llava-1.5-7b"), Example(prompt=640, answer=10)

    def of(method, connector, **settings):
        planned = method_on(ours, method, settings, "both")
        flops = training(ours, planned, example, connector)
        memory = training_memory(ours, planned, example, "bf16", connector, False, False)
        return flops.backward, memory.trainable, memory.per_example

    assert of("selected", False)[0] < 0.1 * of("full_lm", False)[0]
    assert of("selected", False)[2] < 0.2 * of("selected", True)[2]
    assert of("selected", True, blocks=1)[1] < of("selected", True)[1]
    # copies in bf16 and fp32 sums of gradients: six bytes a parameter
    spider, plain = of("spider", True), of("selected", True)
    assert spider[1] - plain[1] == 6 * (2 * BLOCK + CONNECTOR)
    assert spider[0] == plain[0]


def test_settings_that_do_not_fit_the_model_in_a_plan():
    with pytest.raises(UserError, match="method spider: blocks: 99: the model has 32 decoder layers"):
        method_on(sizes("llava-1.5-7b"), "spider", {"blocks": 99}, "both")


def test_efficiency_counts_all_layers_of_such_methods():
    tiny = model("tiny-llava")
    cells = [
        Cell(model=tiny, setting=Setting(method=method, settings=settings, connector="frozen"))
        for method, settings in (
            ("selected", {"blocks": 1}),
            ("selected", {"blocks": 2}),
            ("spider", {"blocks": 1}),
        )
    ]
    one, two, spider = efficiency_rows(cells, Workload(title="x", text=50, answer=10))
    assert one.trainable < two.trainable and one.added == 0
    assert one.backward < two.backward
    assert spider.train_measured == one.train_measured
    assert one.token_merged == one.token_measured


def test_planning_stays_light():
    import subprocess
    import sys

    code = (
        "import sys, importlib; from peftbench.config import module_names;"
        "[importlib.import_module(f'peftbench.methods.{name}') for name in module_names('method')];"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'polars', 'numpy'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
