from pathlib import Path

import pytest
import yaml

from peftbench import schema
from peftbench.config import Settings, read_yaml
from peftbench.errors import UserError
from peftbench.study import Expander
from workflow_project import MAIN, NAMES, STUDY, dataset

ROOT = Path(__file__).parent.parent


@pytest.fixture
def root(tmp_path):
    for folder in ("models", "datasets", "studies"):
        (tmp_path / "config" / folder).mkdir(parents=True)
    write(tmp_path, "models/tiny", {"title": "Tiny", "source": {"kind": "tiny"}, "names": NAMES})
    for name in ("first", "second"):
        write(tmp_path, f"datasets/{name}", dataset("sqa_img"))
    write(tmp_path, "studies/small", STUDY)
    return tmp_path


def write(root, name, content):
    (root / "config" / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def changed(content, path, value):
    """The content with one value set; None removes the key."""
    content = yaml.safe_load(yaml.safe_dump(content))
    *parents, last = path.split(".")
    inner = content
    for key in parents:
        inner = inner.setdefault(key, {})
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return content


@pytest.mark.parametrize(
    "path, value, said",
    [
        ("lineup.modles", [], "lineup: unknown key 'modles'; did you mean 'models'?"),
        ("lineup.models", None, "lineup: key 'models' is missing"),
        ("lineup.models", ["tyni"], "lineup.models: unknown model 'tyni'; did you mean 'tiny'?"),
        ("lineup.models", ["tiny", "tiny"], "lineup.models: 'tiny' stands there twice"),
        ("lineup.datasets", ["frist"], "lineup.datasets: unknown data set 'frist'; did you mean 'first'?"),
        ("studies", ["smal"], "studies: unknown study 'smal'; did you mean 'small'?"),
        ("traning", {}, "unknown key 'traning'; did you mean 'training'?"),
        ("training.epochs", 0, "training.epochs: expected `int` >= 1"),
        ("training.epochs", "many", "training.epochs: expected `int`, got `str`"),
        ("training.schedule", "cosin", "training.schedule: invalid enum value 'cosin'"),
        ("training", [1], "training: expected keys with values, got list"),
        ("methods.lorra", {}, "methods: unknown method 'lorra'; did you mean 'lora'?"),
        ("execution.devise", "cpu", "execution: unknown key 'devise'; did you mean 'device'?"),
        ("seeds", [], "seeds: expected `array` of length >= 1"),
        ("seeds", [1, 1], "seeds: 1 stands there twice"),
    ],
)
def test_a_mistake_in_the_main_file_is_one_line(root, path, value, said):
    with pytest.raises(UserError) as caught:
        Settings(changed(MAIN, path, value), root)
    text = str(caught.value)
    assert said in text and "config/config.yaml" in text and "\n" not in text


@pytest.mark.parametrize(
    "path, value, said",
    [
        ("axes.model", ["tniy"], "axes.model: unknown model 'tniy'; did you mean 'tiny'?"),
        ("axes.dataset", ["thrid"], "axes.dataset: unknown data set 'thrid'"),
        ("axes.method", ["lorra"], "axes.method: unknown method 'lorra'; did you mean 'lora'?"),
        ("axes.method", ["base"], "set include_base: true"),
        ("axes.method", None, "axes: key 'method' is missing"),
        ("axes.method", [], "axes.method: no value"),
        ("axes.connector", ["tunde"], "axes.connector: 'tunde' is not possible; did you mean 'tuned'?"),
        ("axes.connector", ["tuned", "tuned"], "axes.connector: 'tuned' stands there twice"),
        ("axes.train_size", ["all"], "axes.train_size: 'all' is not possible"),
        ("axes.train_size", [0], "axes.train_size: 0 is not possible"),
        ("axes.seed", ["one"], "axes.seed: 'one' is not possible; expected int"),
        ("axes.rank", [8], "axes.rank: neither an axis, nor a training setting, nor a setting of adapter"),
        ("axes", {**STUDY["axes"], "lora.rnak": [8]}, "nor a setting of lora; did you mean 'rank'?"),
        ("axes", {**STUDY["axes"], "prefix.tokens": [8]}, "'prefix' is no method of this study"),
        ("axes.epohcs", [1], "axes.epohcs: neither an axis"),
        ("axes.epochs", [0], "axes.epochs: expected `int` >= 1"),
        ("methods", {"lora": {"rnak": 3}}, "methods.lora: unknown key 'rnak'; did you mean 'rank'?"),
        ("methods", {"lora": {"rank": 0}}, "methods.lora.rank: expected `int` >= 1"),
        ("methods", {"lorra": {}}, "unknown method 'lorra'"),
        ("training", {"epoch": 1}, "training: unknown key 'epoch'; did you mean 'epochs'?"),
        ("columns", "datset", "unknown axis 'datset'; did you mean 'dataset'?"),
        (
            "exclude",
            [{"methd": "lora"}],
            "exclude[0]: 'methd' is no axis of this study; did you mean 'method'?",
        ),
        ("averages", ["sen"], "averages[0]: invalid enum value 'sen'"),
        ("titel", "x", "unknown key 'titel'; did you mean 'title'?"),
        (
            "axes",
            {**STUDY["axes"], "method": ["prefix"], "location": ["mlp"]},
            "prefix cannot stand at 'mlp'",
        ),
    ],
)
def test_a_mistake_in_a_study_is_one_line(root, path, value, said):
    write(root, "studies/small", changed(STUDY, path, value))
    with pytest.raises(UserError) as caught:
        list(Expander("small", Settings(MAIN, root)).runs())
    text = str(caught.value)
    assert said in text and text.startswith("config/studies/small.yaml") and "\n" not in text


@pytest.mark.parametrize(
    "path, value, said",
    [
        ("metric.name", "vqa_scroe", "metric.name: unknown metric 'vqa_scroe'; did you mean 'vqa_score'?"),
        ("splits", {"train": 1}, "splits: key 'test' is missing"),
        ("splits", {"train": -1, "test": 1}, "splits"),
        ("prompt", {"templates": []}, "prompt.templates: expected `array` of length >= 1"),
        ("prompt", {"template": "x"}, "prompt: unknown key 'template'; did you mean 'templates'?"),
        ("seen", "maybe", "seen: expected `bool`"),
        ("decoding", None, "key 'decoding' is missing"),
    ],
)
def test_a_mistake_in_a_data_set_is_one_line(root, path, value, said):
    write(root, "datasets/first", changed(dataset("sqa_img"), path, value))
    with pytest.raises(UserError) as caught:
        Settings(MAIN, root).dataset("first", "a study")
    text = str(caught.value)
    assert said in text and text.startswith("config/datasets/first.yaml") and "\n" not in text


@pytest.mark.parametrize(
    "text, said",
    [
        ("a: [1\n", "line 2: not valid YAML"),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "line 4: not valid YAML: key 'c' twice"),
        ("a: \t- x\n", "not valid YAML"),
    ],
)
def test_a_yaml_mistake_names_file_and_line(tmp_path, text, said):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        read_yaml(tmp_path / "x.yaml")
    assert said in str(caught.value) and "x.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_floats_without_a_point_are_numbers(tmp_path):
    (tmp_path / "x.yaml").write_text("[2e-4, 1E3, -5e+2, 1.5e-1, e5, 2e]")
    assert read_yaml(tmp_path / "x.yaml") == [2e-4, 1e3, -500.0, 0.15, "e5", "2e"]


def test_a_float_that_snakemake_left_as_text_is_a_number(root):
    """Snakemake reads config.yaml by YAML 1.1, where 2e-4 is a string."""
    settings = Settings(changed(MAIN, "training.connector_learning_rate", "2e-4"), root)
    assert settings.main.training.connector_learning_rate == 2e-4


def test_the_committed_files_are_valid():
    settings = Settings.from_files(ROOT)
    for name in settings.names("model"):
        settings.model(name, "test")
    for name in settings.names("dataset"):
        settings.dataset(name, "test")
    for name in settings.names("study"):
        expander = Expander(name, settings)
        assert bool(list(expander.runs())) == (expander.study.kind == "table")


def test_generated_files_are_up_to_date():
    assert schema.drifted(ROOT) == [], "run 'peftbench schema --write'"


def test_every_key_is_explained():
    for name in schema.FILES:
        for key, _, text in schema._rows(schema.FILES[name], ""):
            assert text, f"{name}: {key} has no text below its field"


def test_the_drift_test_sees_drift(tmp_path):
    (tmp_path / "config").mkdir()
    text = (ROOT / "config/README.md").read_text(encoding="utf-8")
    (tmp_path / "config/README.md").write_text(
        text.replace("| `training.epochs` | `3` |", "| `training.epochs` | `4` |")
    )
    assert {path.name for path in schema.drifted(tmp_path)} == {
        "README.md",
        *(f"{name}.schema.json" for name in schema.FILES),
    }
    schema.write(tmp_path)
    assert (tmp_path / "config/README.md").read_text(encoding="utf-8") == text


def extended(root, **changes):
    """The settings with a model ``other`` that extends ``tiny``."""
    write(root, "models/other", {"title": "Other", "extends": "tiny", **changes})
    return Settings(MAIN, root)


def test_a_model_may_extend_another(root):
    settings = extended(root, names={"connector": ["lm_head"], "embeddings": []}, precision="fp32")
    other, tiny = settings.model("other", "a test"), settings.model("tiny", "a test")
    assert other.names.connector == ["lm_head"] and other.names.layers == tiny.names.layers
    assert (other.title, other.precision, tiny.precision) == ("Other", "fp32", "bf16")
    assert settings.base_of("other") == "tiny"


def test_a_model_with_a_source_of_its_own_is_its_own_base(root):
    settings = extended(root, source={"kind": "hub"})
    assert settings.base_of("other") == "other"
    assert settings.model("other", "a test").source == {"kind": "hub"}


def test_models_that_extend_each_other_are_refused(root):
    write(root, "models/tiny", {"title": "Tiny", "extends": "other", "names": NAMES})
    with pytest.raises(UserError, match="other extends tiny extends other: break the circle"):
        extended(root).model("other", "a test")


def test_a_model_that_extends_nothing_known_is_refused(root):
    with pytest.raises(
        UserError, match=r"config/models/other.yaml: extends: unknown model 'tinny'; did you mean 'tiny'"
    ):
        extended(root, extends="tinny").model("other", "a test")


def test_a_data_set_for_evaluation_only_is_not_trained_on(root):
    content = dataset("sqa_img") | {"evaluation_only": True, "splits": {"test": 10}}
    write(root, "datasets/second", content)
    with pytest.raises(UserError, match=r"axes.dataset: second is for evaluation only"):
        Expander("small", Settings(MAIN, root))
    write(root, "datasets/second", content | {"splits": {"test": 10, "train": 5}})
    with pytest.raises(UserError, match="evaluation_only, and yet it has a split 'train'"):
        Settings(MAIN, root).dataset("second", "a test")
