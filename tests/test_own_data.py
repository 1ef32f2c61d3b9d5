"""docs/own_data.md, run as it stands: its files are written, its data sets prepared and drawn."""

import re
import tempfile
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hub_datasets import HUB_IMAGE, picture
from peftbench.config import read_yaml, typed
from peftbench.config_types import DatasetConfig
from peftbench.data.example import Example
from peftbench.data.images import load_image
from peftbench.data.load import read_examples, read_subset
from peftbench.data.prepare import prepare_dataset
from peftbench.data.subset import draw_subset
from peftbench.data.tables.spec import parse
from peftbench.errors import UserError
from peftbench.metrics.base import load_metric
from peftbench.retrieve.origin import parse_origins
from peftbench.spec import PrepareSpec, SubsetSpec
from test_datasets_real import retrieved

PAGE = Path(__file__).parents[1] / "docs/own_data.md"
FLOWERS = ("rose_1", "tulip_1", "daisy_1", "rose_2", "tulip_2")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the page, and what it says lies beside them."""
    for name, text in re.findall(r"<!-- file: (\S+) -->\n```\w*\n(.*?)```", PAGE.read_text(), re.DOTALL):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for folder in ("my_data/pictures", "my_data_jsonl/some/where"):
        (tmp_path / folder).mkdir(parents=True)
        for flower in FLOWERS:
            (tmp_path / folder / f"{flower}.jpg").write_bytes(picture(flower))
    kinds = ["rose", "tulip", "daisy"]
    rows = [
        {
            "number": i,
            "image": {"bytes": picture(f"flower {i}"), "path": None},
            "question": f"What flower is number {i}?",
            "choices": kinds,
            "right": kinds[i % 3] if i != 7 else "orchid",
        }
        for i in range(64)
    ]
    text = pa.string()
    schema = pa.schema(
        [
            ("number", pa.int64()),
            ("image", HUB_IMAGE),
            ("question", text),
            ("choices", pa.list_(text)),
            ("right", text),
        ]
    )
    (tmp_path / "my_data_parquet").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "my_data_parquet/flowers.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepare(project: Path, name: str) -> dict[str, list[Example]]:
    """As the workflow does it: read the file, fetch what it names, prepare."""
    path = project / f"config/datasets/{name}.yaml"
    config = typed(read_yaml(path), DatasetConfig, path.name)
    assert parse_origins(config.source["from"])["own"].content
    source = msgspec.to_builtins(parse(config.source))
    spec = PrepareSpec(dataset=name, source=source, splits=config.splits)
    files = retrieved(project, config.source["from"], Path(tempfile.mkdtemp(dir=project)))
    prepare_dataset(spec, project / f"out/{name}", project / "images", files)
    splits = {split: read_examples(project / f"out/{name}", split) for split in config.splits}
    right = [row.target for row in splits["test"]]
    assert load_metric(config.metric.name).score(right, splits["test"], config.metric.settings).value == 100
    assert all(load_image(project / "images", row.image) for rows in splits.values() for row in rows)
    return splits


def test_csv(project: Path) -> None:
    splits = prepare(project, "flowers")
    train = splits["train"]
    assert [row.id for row in train] == ["rose_1-0", "rose_1-1", "tulip_1-2", "daisy_1-3"]
    assert train[1].answers == ["red", "dark red"] and train[1].target == "red"
    assert train[3].question == "White petals, yellow centre: which flower is it?"
    assert train[0].image == train[1].image != train[2].image
    draw_subset(SubsetSpec(size=3, seed=42), project / "out/flowers", project / "drawn")
    assert set(read_subset(project / "drawn")) < {row.id for row in train}


def test_json_lines(project: Path) -> None:
    splits = prepare(project, "flowers_jsonl")
    assert [row.answers for row in splits["train"]] == [["rose"], ["daisy", "marguerite"]]
    path = project / "my_data_jsonl/questions.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    again = prepare(project, "flowers_jsonl")  # other order, other content: the same ids
    assert {row.id for row in again["train"]} == {row.id for row in splits["train"]}


def test_parquet(project: Path) -> None:
    splits = prepare(project, "flowers_parquet")
    numbers = {split: {int(row.id) for row in rows} for split, rows in splits.items()}
    assert not numbers["train"] & numbers["test"]
    assert 7 not in numbers["train"] | numbers["test"], "its answer is none of its choices"
    for row in splits["train"]:
        assert row.target == "ABC"[int(row.id) % 3]


def test_the_page_tells_the_truth_about_errors(project: Path) -> None:
    table = project / "my_data/flowers.csv"
    good = table.read_text()
    table.write_text(good.replace("question,", "frage,"))
    with pytest.raises(UserError, match="no column 'question'"):
        prepare(project, "flowers")
    table.write_text(good.replace("rose_2.jpg", "rose_1.jpg"))
    with pytest.raises(UserError, match=r"its image pictures/rose_1.jpg is also in split test"):
        prepare(project, "flowers")
    table.write_text(good.rpartition("test,")[0])
    with pytest.raises(UserError, match="split test has 1 rows, its file says 2"):
        prepare(project, "flowers")


def test_every_yaml_of_the_page_that_is_a_file_is_used() -> None:
    named = re.findall(r"<!-- file: config/datasets/(\w+).yaml -->", PAGE.read_text())
    assert named == ["flowers", "flowers_jsonl", "flowers_parquet"]
