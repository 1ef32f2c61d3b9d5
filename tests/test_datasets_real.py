"""Every public data set of config/datasets, prepared from miniature repositories in the layouts of the real ones."""

import copy
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from hub_datasets import MMHAL_TYPES, coco_ids, flickr_split, picture, write_repos
from peftbench.config import Settings
from peftbench.data.example import Example
from peftbench.data.images import image_path, load_image
from peftbench.data.load import read_examples, read_subset
from peftbench.data.prepare import prepare_dataset
from peftbench.data.subset import draw_subset
from peftbench.data.tables.spec import parse
from peftbench.errors import UserError
from peftbench.metrics.base import load_metric
from peftbench.spec import PrepareSpec, SubsetSpec

ROOT = Path(__file__).parents[1]
SETTINGS = Settings.from_files(ROOT)
ROWS = 12
HALF = ROWS // 2
FLICKR = ROWS + HALF + 3
# data set -> rows of the miniature source (train, test) and rows prepared from them; samples to take
MINIATURE: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "scienceqa_img": ({"train": ROWS, "test": HALF}, {"train": HALF, "test": HALF // 2}),
    "scienceqa_all": ({"train": ROWS, "test": HALF}, {"train": ROWS, "test": HALF}),
    "vizwiz": ({"train": ROWS, "test": HALF}, {"train": ROWS, "test": HALF}),
    "iconqa_txt": ({"train": ROWS, "test": HALF}, {"train": ROWS, "test": HALF}),
    "iconqa_blank": ({"train": ROWS, "test": HALF}, {"train": ROWS, "test": HALF}),
    "flickr30k": ({"train": ROWS, "test": HALF}, {"train": ROWS, "test": HALF}),
    "flickr30k_paper": ({"train": FLICKR, "test": FLICKR}, {"train": 13, "test": 5}),
    "okvqa": ({"train": ROWS, "test": HALF}, {"train": ROWS, "test": HALF}),
    "ocrvqa": ({"train": ROWS, "test": HALF}, {"train": 20, "test": 7}),
    "vqav2": ({"train": 3 * ROWS, "test": 3 * HALF}, {"train": 20, "test": 5}),
    "mmhal_bench": ({"test": ROWS}, {"test": ROWS}),
    "pope": ({"test": 3 * ROWS}, {"test": 3 * ROWS}),
    "textvqa": ({"test": HALF}, {"test": HALF}),
    "gqa": ({"test": ROWS}, {"test": ROWS}),
    "coco_caption": ({"train": ROWS, "test": HALF}, {"train": ROWS, "test": HALF}),
    "aokvqa": ({"train": ROWS, "test": HALF}, {"train": ROWS, "test": HALF}),
}
TEN = ("vizwiz", "okvqa", "vqav2", "textvqa")


@pytest.fixture(scope="module")
def repos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repos")
    write_repos(root, ROWS)
    return root


def retrieved(repos: Path, origins: dict[str, Any], target: Path) -> dict[str, Path]:
    """Folders as the retrieve stage leaves them: only the files asked for, and a record."""
    folders = {}
    for name, origin in origins.items():
        folder = target / name
        if "hub" in origin:
            source = repos / "datasets" / origin["hub"]
            for path in sorted(p for p in source.rglob("*") if p.is_file()):
                relative = str(path.relative_to(source))
                if any(fnmatchcase(relative, pattern) for pattern in origin["files"]):
                    link(folder / relative, path)
        elif "url" in origin:
            address = urlsplit(origin["url"])
            link(
                folder / Path(address.path).name, repos / "files" / address.netloc / address.path.lstrip("/")
            )
        else:
            for path in sorted(p for p in Path(origin["path"]).rglob("*") if p.is_file()):
                link(folder / path.relative_to(origin["path"]), path)
        (folder / "record.json").write_text("{}")
        folders[name] = folder
    return folders


def link(place: Path, target: Path) -> None:
    assert target.is_file(), f"{target} is missing from the miniatures"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target.resolve())


def miniature_spec(name: str, **changes: Any) -> PrepareSpec:
    """The data set's file with the counts of the miniature; ``changes`` go into its source."""
    config = SETTINGS.dataset(name, "test")
    source = copy.deepcopy(config.source)
    counts, prepared = MINIATURE[name]
    assert set(config.splits) == set(prepared)
    for split, block in source["splits"].items():
        assert block["expected"] > 90, "the real file states the count of the real source"
        block["expected"] = counts[split]
        if "sample" in block:
            assert block["sample"]["take"] == config.splits[split]
            block["sample"] |= {"take": prepared[split]}
            if block["sample"].get("skip"):
                block["sample"]["skip"] = prepared["test"]
    source |= changes
    source["from"] = sorted(source["from"])
    return PrepareSpec(dataset=name, source=msgspec.to_builtins(parse(source)), splits=prepared)


def files_of(name: str, repos: Path, target: Path) -> dict[str, Path]:
    return retrieved(repos, SETTINGS.dataset(name, "test").source["from"], target)


class Prepared:
    def __init__(self, name: str, repos: Path, folder: Path, store: Path) -> None:
        self.files = files_of(name, repos, folder / "files")
        self.data, self.images = folder / "data", store
        self.spec = miniature_spec(name)
        self.facts = prepare_dataset(self.spec, self.data, store, self.files)
        self.splits = {split: read_examples(self.data, split) for split in self.spec.splits}

    def bytes(self, example: Example) -> bytes:
        return image_path(self.images, example.image).read_bytes()


@pytest.fixture(scope="module")
def all_sets(repos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Prepared]:
    """All of them into one image store, as in the workflow."""
    root = tmp_path_factory.mktemp("prepared")
    return {name: Prepared(name, repos, root / name, root / "images") for name in MINIATURE}


def test_all_real_files_are_tested() -> None:
    real = [
        name for name in SETTINGS.names("dataset") if SETTINGS.dataset(name, "").source["kind"] == "table"
    ]
    assert sorted(MINIATURE) == real


@pytest.mark.parametrize("name", MINIATURE)
def test_what_holds_for_every_data_set(name: str, all_sets: dict[str, Prepared]) -> None:
    prepared = all_sets[name]
    config = SETTINGS.dataset(name, "test")
    for split, rows in prepared.splits.items():
        assert len(rows) == prepared.facts["splits"][split]["rows"] == MINIATURE[name][1][split]
        assert prepared.facts["splits"][split]["source_rows"] >= 1
        assert "bad_rows" not in prepared.facts["splits"][split]
        assert len({row.id for row in rows}) == len(rows)
        for row in rows:
            assert row.split == split
            assert row.target and row.target == row.target.strip()
            if name in TEN:
                assert len(row.answers) == 10
            if row.image:
                assert load_image(prepared.images, row.image).mode == "RGB"
                assert hashlib.sha256(prepared.bytes(row)).hexdigest() == row.image
            for template in config.prompt.templates:
                template.format(question=row.question, choices="", lettered="")
    if "train" in prepared.splits:
        train, test = ({row.image for row in prepared.splits[s]} - {""} for s in ("train", "test"))
        assert not train & test


@pytest.mark.parametrize("name", [n for n in MINIATURE if n != "mmhal_bench"])
def test_perfect_answers_get_a_perfect_score(name: str, all_sets: dict[str, Prepared]) -> None:
    """The metric of the file understands the prepared rows."""
    metric = SETTINGS.dataset(name, "test").metric
    rows = all_sets[name].splits["test"]
    value = load_metric(metric.name).score([row.target for row in rows], rows, metric.settings).value
    assert value > 99 or name in TEN or metric.name == "cider"
    assert value > 30
    wrong = load_metric(metric.name).score(["qwertz" for _ in rows], rows, metric.settings).value
    assert wrong < value


def test_scienceqa(all_sets: dict[str, Prepared]) -> None:
    prepared = all_sets["scienceqa_all"]
    by_question = {row.question: row for row in prepared.splits["train"]}
    for i in range(ROWS):
        row = by_question[f"Which property do these {i} train objects have in common?"]
        assert row.choices == ["opaque", "salty", "slippery", "hard"][: 2 + i % 3]
        assert (row.answer_index, row.target, row.answers) == (i % 2, "AB"[i % 2], ["AB"[i % 2]])
        assert bool(row.image) == (i % 2 == 0)
        assert not row.image or prepared.bytes(row) == picture(f"sqa-train-{i}", "PNG")
        assert json.loads(row.source)["grade"] == f"grade{1 + i % 12}"
        assert json.loads(row.source)["hint"] == ("Select the best answer." if i % 3 == 0 else "")
    pictured = {row.question for row in all_sets["scienceqa_img"].splits["train"]}
    assert pictured == {q for q, row in by_question.items() if row.image}
    same = {row.id: row.question for row in prepared.splits["train"]}
    assert all(same[row.id] == row.question for row in all_sets["scienceqa_img"].splits["train"])


def test_vizwiz(all_sets: dict[str, Prepared]) -> None:
    prepared = all_sets["vizwiz"]
    for split, official in (("train", "train"), ("test", "val")):
        for i, row in enumerate(prepared.splits[split]):
            assert row.id == f"VizWiz_{official}_{i:08d}"
            assert row.question == f"What is this? {i}"
            assert prepared.bytes(row) == picture(f"VizWiz_{official}_{i:08d}.jpg")
            assert row.answer_type == ("unanswerable" if i % 3 == 0 else "other")
            assert json.loads(row.source) == {"answerable": int(i % 3 != 0)}
            assert row.answers.count(row.target) == max(row.answers.count(a) for a in row.answers)


def test_iconqa(all_sets: dict[str, Prepared]) -> None:
    for i, row in enumerate(all_sets["iconqa_txt"].splits["train"], start=10000):
        assert row.id == str(i)
        assert row.question == f"How likely is it that you will pick number {i}?"
        assert row.choices == ["certain", "unlikely", "impossible", "probable"]
        assert row.target == row.choices[i % 4] == row.answers[0]
        place = f"iconqa_data/iconqa/train/choose_txt/{i}"
        assert all_sets["iconqa_txt"].bytes(row) == picture(place, "PNG")
    for i, row in enumerate(all_sets["iconqa_blank"].splits["test"], start=22000):
        assert (row.id, row.target, row.answers, row.choices) == (str(i), str(i % 7), [str(i % 7)], [])


def test_flickr30k(all_sets: dict[str, Prepared]) -> None:
    prepared = all_sets["flickr30k"]
    assert {int(r.id) - 1000092 for r in prepared.splits["train"]} == set(range(ROWS))
    assert {int(r.id) - 1000092 for r in prepared.splits["test"]} == set(range(ROWS, ROWS + HALF))
    for row in prepared.splits["train"] + prepared.splits["test"]:
        i = int(row.id) - 1000092
        assert row.answers == [f'Caption {k} of picture {i}, with "quotes", commas and é.' for k in range(5)]
        assert row.target == row.answers[0] and row.question == ""
        assert prepared.bytes(row) == picture(f"flickr-{i}")
    paper = all_sets["flickr30k_paper"].splits
    assert not {row.id for row in paper["train"]} & {row.id for row in paper["test"]}
    splits = {flickr_split(int(row.id) - 1000092, ROWS) for row in paper["train"]}
    assert splits == {"train", "test", "val"}, "drawn from all images"


def test_one_training_row_per_caption(repos: Path, tmp_path: Path) -> None:
    spec = miniature_spec("flickr30k")
    source = {**spec.source, "row": {**spec.source["row"], "target": "each"}}
    each = PrepareSpec(dataset="captions", source=source, splits={"train": 5 * ROWS, "test": HALF})
    prepare_dataset(
        each, tmp_path / "data", tmp_path / "images", files_of("flickr30k", repos, tmp_path / "f")
    )
    rows = read_examples(tmp_path / "data", "train")
    assert len({row.id for row in rows}) == 5 * ROWS
    assert all(row.target == row.answers[int(row.id.partition("#")[2])] for row in rows)


@pytest.mark.parametrize("name", ["okvqa", "vqav2"])
def test_vqa_questions_meet_their_own_answers(name: str, all_sets: dict[str, Prepared], repos: Path) -> None:
    """Compared with a join done by hand; the annotations are in another order than the questions."""
    prepared = all_sets[name]
    for split, coco in (("train", "train2014"), ("test", "val2014")):
        tables = []
        for kind in ("questions", "annotations"):
            origin = f"{'questions' if kind == 'questions' else 'answers'}_{coco.removesuffix('2014')}"
            [path] = prepared.files[origin].glob("*.zip")
            with zipfile.ZipFile(path) as archive:
                tables.append(json.loads(archive.read(archive.namelist()[0]))[kind])
        questions = {str(q["question_id"]): q for q in tables[0]}
        answers = {str(a["question_id"]): a for a in tables[1]}
        assert [q["question_id"] for q in tables[0]] != [a["question_id"] for a in tables[1]]
        for row in prepared.splits[split]:
            question, annotation = questions[row.id], answers[row.id]
            assert row.question == question["question"]
            assert row.answers == [a["answer"] for a in annotation["answers"]]
            assert row.question_type == annotation["question_type"]
            assert row.answer_type == "other"
            key = f"{coco}/COCO_{coco}_{question['image_id']:012d}"
            assert prepared.bytes(row) == picture(key)


def test_ocrvqa(all_sets: dict[str, Prepared]) -> None:
    prepared = all_sets["ocrvqa"]
    kinds = set()
    for split in ("train", "test"):
        for row in prepared.splits[split]:
            book, item = row.id.split("-")
            i = int(book[1:])
            answer = [f"Ann Author {i}", f"Tales of {split} {i}", "No"][int(item)]
            assert row.answers == [answer] and row.target == answer
            assert prepared.bytes(row) == picture(f"ocr-{split}-{i}")
            kinds.add(row.question)
    assert len(kinds) == 3


def test_evaluation_sets(all_sets: dict[str, Prepared]) -> None:
    for i, row in enumerate(all_sets["mmhal_bench"].splits["test"]):
        assert row.question_type == MMHAL_TYPES[i % 8], "the metric goes by position"
        assert row.question == f"What colour is the fire hydrant cap number {i}?"
        assert row.answers == ["The cap of the fire hydrant is yellow."]
        assert json.loads(row.source)["image_content"] == ["Fire hydrant", "Tree"]
        assert all_sets["mmhal_bench"].bytes(row) == picture(f"mmhal-{i}")
    pope = all_sets["pope"].splits["test"]
    assert [row.question_type for row in pope] == [
        c for c in ("adversarial", "popular", "random") for _ in range(ROWS)
    ]
    assert all(row.answers == [("yes", "no")[int(row.id.rpartition("-")[2]) % 2 ^ 1]] for row in pope)
    for i, row in enumerate(all_sets["textvqa"].splits["test"]):
        assert (row.id, row.question) == (str(34602 + i), f"what is the brand of camera {i}?")
        assert all_sets["textvqa"].bytes(row) == picture(f"textvqa-validation-{i}")
    for i, row in enumerate(all_sets["gqa"].splits["test"]):
        assert (row.id, row.target) == (f"2011{i:05d}", ("yes", "no")[i % 2])
        assert row.question_type == ("verify", "query")[i % 2]
        assert all_sets["gqa"].bytes(row) == picture(f"gqa-{i // 3}")
    for image, row in zip(
        coco_ids("val2014", ROWS)[::2], all_sets["coco_caption"].splits["test"], strict=True
    ):
        assert row.id == str(image)
        assert row.answers == [f"A man with oven {image}, caption {k}." for k in range(5)]
        assert all_sets["coco_caption"].bytes(row) == picture(f"val2014/COCO_val2014_{image:012d}")
    for number, (image, row) in enumerate(
        zip(coco_ids("train2014", ROWS), all_sets["coco_caption"].splits["train"], strict=True)
    ):
        assert row.target == f"A man with oven {image}, caption 0." and len(row.answers) == 5 + number % 2
        assert all_sets["coco_caption"].bytes(row) == picture(f"train2014/COCO_train2014_{image:012d}")


def test_a_ninth_data_set_is_one_file(all_sets: dict[str, Prepared]) -> None:
    for i, row in enumerate(all_sets["aokvqa"].splits["train"]):
        assert row.choices == ["skateboarder", "train", "delivery", "cab"]
        assert row.target == "ABCD"[i % 4] and row.answer_index == i % 4
        assert row.question == f"What is the man by the {i} bags awaiting?"


def test_coco_pictures_are_stored_once_for_all_data_sets(all_sets: dict[str, Prepared]) -> None:
    shared = {r.image for r in all_sets["okvqa"].splits["test"]} & {
        r.image for r in all_sets["coco_caption"].splits["test"]
    }
    assert shared
    stored = [p.name for p in all_sets["okvqa"].images.rglob("*") if p.is_file()]
    used = {r.image for p in all_sets.values() for rows in p.splits.values() for r in rows} - {""}
    assert len(stored) == len(set(stored)) and used <= set(stored)


# ---- Counts, bad rows, samples, failures ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vqav2", "gqa", "flickr30k", "iconqa_txt"])
def test_another_number_of_rows_is_an_error_with_both(name: str, repos: Path, tmp_path: Path) -> None:
    spec = miniature_spec(name)
    real = SETTINGS.dataset(name, "").source["splits"]["test"]["expected"]
    spec.source["splits"]["test"]["expected"] = real
    found = MINIATURE[name][0]["test"]
    with pytest.raises(UserError, match=f"split test: the source has {found} rows, expected {real}") as error:
        prepare_dataset(spec, tmp_path / "data", tmp_path / "images", files_of(name, repos, tmp_path / "f"))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "data").iterdir())


def test_a_wrong_size_of_a_prepared_split_is_an_error(repos: Path, tmp_path: Path) -> None:
    spec = miniature_spec("scienceqa_img")
    wrong = PrepareSpec(dataset="sqa", source=spec.source, splits={"train": HALF + 1, "test": HALF // 2})
    with pytest.raises(UserError, match=f"split train has {HALF} rows, its file says {HALF + 1}"):
        prepare_dataset(
            wrong, tmp_path / "d", tmp_path / "i", files_of("scienceqa_img", repos, tmp_path / "f")
        )
    assert not list((tmp_path / "d").iterdir()), "the good split does not stay either"


def rezip(path: Path, change: Any) -> None:
    """Rewrite an archive (a link into the miniatures) with some members changed (None: left out)."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    path.unlink()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            new = change(name, data)
            if new is not None:
                archive.writestr(name, new)


def spoil_vizwiz(files: dict[str, Path]) -> None:
    """Five bad training rows: no picture, broken picture, empty picture, nine answers, no answers."""

    def annotations(name: str, data: bytes) -> bytes:
        rows = json.loads(data)
        if name == "train.json":
            rows[3]["answers"].pop()
            rows[4]["answers"] = []
        return json.dumps(rows).encode()

    def pictures(name: str, data: bytes) -> bytes | None:
        if name.endswith("00000000.jpg"):
            return None
        if name.endswith("00000001.jpg"):
            return data[: len(data) // 2]
        return b"" if name.endswith("00000002.jpg") else data

    rezip(files["annotations"] / "Annotations.zip", annotations)
    rezip(files["images_train"] / "train.zip", pictures)


def test_bad_rows_are_named_and_counted(repos: Path, tmp_path: Path) -> None:
    files = files_of("vizwiz", repos, tmp_path / "f")
    spoil_vizwiz(files)
    with pytest.raises(UserError) as error:
        prepare_dataset(miniature_spec("vizwiz"), tmp_path / "d", tmp_path / "i", files)
    text = str(error.value)
    assert "split train: 5 bad rows, 0 tolerated" in text and "\n" not in text
    assert "row 'VizWiz_train_00000000': image VizWiz_train_00000000.jpg is not there" in text
    assert "row 'VizWiz_train_00000001': image VizWiz_train_00000001.jpg: not a readable image" in text
    assert not list((tmp_path / "d").iterdir())
    tolerant = miniature_spec("vizwiz", tolerate=5)
    tolerant.splits["train"] = ROWS - 5
    facts = prepare_dataset(tolerant, tmp_path / "d", tmp_path / "i", files)
    tolerant.splits["train"] = ROWS
    bad = facts["splits"]["train"]["bad_rows"]
    assert bad["count"] == 5
    assert bad["rows"][2].endswith("not a readable image (the file is empty)")
    assert "it has 9 answers, not 10" in bad["rows"][3] and "it has no answers" in bad["rows"][4]
    assert {r.id[-1] for r in read_examples(tmp_path / "d", "train")}.isdisjoint("234")


def test_bad_rows_of_a_sample_are_replaced(
    repos: Path, tmp_path: Path, all_sets: dict[str, Prepared]
) -> None:
    """The sample keeps its size; all of it that is sound stays."""
    files = files_of("vqav2", repos, tmp_path / "f")
    before = {row.id for row in all_sets["vqav2"].splits["train"]}
    gone = sorted(before)[:2]

    def without(name: str, data: bytes) -> bytes:
        table = json.loads(data)
        table["annotations"] = [a for a in table["annotations"] if str(a["question_id"]) not in gone]
        return json.dumps(table).encode()

    rezip(next(files["answers_train"].glob("*.zip")), without)
    with pytest.raises(UserError, match=f"2 bad rows, 0 tolerated: row '{gone[0]}': no row with question_id"):
        prepare_dataset(miniature_spec("vqav2"), tmp_path / "d", tmp_path / "i", files)
    prepare_dataset(miniature_spec("vqav2", tolerate=3), tmp_path / "d", tmp_path / "i", files)
    after = {row.id for row in read_examples(tmp_path / "d", "train")}
    assert len(after) == len(before) == 20
    assert before - after == set(gone)


def test_samples_and_draws_do_not_depend_on_the_order_of_rows(
    repos: Path, tmp_path: Path, all_sets: dict[str, Prepared]
) -> None:
    files = files_of("vqav2", repos, tmp_path / "f")

    def reversed_rows(name: str, data: bytes) -> bytes:
        table = json.loads(data)
        for field in ("questions", "annotations"):
            table[field] = table.get(field, [])[::-1]
        return json.dumps(table).encode()

    for origin in ("questions_train", "answers_train"):
        rezip(next(files[origin].glob("*.zip")), reversed_rows)
    prepare_dataset(miniature_spec("vqav2"), tmp_path / "d", tmp_path / "i", files)
    turned = read_examples(tmp_path / "d", "train")
    same = all_sets["vqav2"].splits["train"]
    assert [row.id for row in turned] != [row.id for row in same]
    assert {row.id: row for row in turned} == {row.id: row for row in same}
    drawn = {}
    for size in (3, 8, 15):
        for place, data in (("a", tmp_path / "d"), ("b", all_sets["vqav2"].data)):
            draw_subset(SubsetSpec(size=size, seed=1), data, tmp_path / f"{place}{size}")
        drawn[size] = read_subset(tmp_path / f"a{size}")
        assert drawn[size] == read_subset(tmp_path / f"b{size}")
    assert drawn[15][:8] == drawn[8] and drawn[8][:3] == drawn[3]


def test_another_process_prepares_the_same_bytes(tmp_path: Path, all_sets: dict[str, Prepared]) -> None:
    ocr = all_sets["ocrvqa"]
    (tmp_path / "spec.json").write_bytes(msgspec.json.encode(ocr.spec))
    code = (
        "import sys, msgspec; from pathlib import Path; from peftbench.spec import PrepareSpec;"
        "from peftbench.data.prepare import prepare_dataset; t = Path(sys.argv[1]);"
        "spec = msgspec.json.decode((t / 'spec.json').read_bytes(), type=PrepareSpec);"
        "prepare_dataset(spec, t / 'data', t / 'images', {'data': Path(sys.argv[2])})"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(tmp_path), str(ocr.files["data"])]
    subprocess.run(command, check=True, env=environment)
    for split in ("train", "test"):
        assert (tmp_path / f"data/{split}.parquet").read_bytes() == (
            ocr.data / f"{split}.parquet"
        ).read_bytes()


def test_an_image_in_both_splits_is_found_by_its_content(repos: Path, tmp_path: Path) -> None:
    files = files_of("vizwiz", repos, tmp_path / "f")
    with zipfile.ZipFile(files["images_val"] / "val.zip") as archive:
        other = archive.read("val/VizWiz_val_00000001.jpg")
    rezip(files["images_train"] / "train.zip", lambda n, data: other if n.endswith("7.jpg") else data)
    with pytest.raises(UserError, match=r"row 'VizWiz_train_00000007': its image .* is also in split test"):
        prepare_dataset(miniature_spec("vizwiz"), tmp_path / "d", tmp_path / "i", files)


def test_an_image_in_both_splits_is_found_by_its_name(repos: Path, tmp_path: Path) -> None:
    spec = miniature_spec("flickr30k")
    for split in ("train", "test"):
        spec.source["splits"][split] |= {"where": {}, "expected": FLICKR}
    spec = PrepareSpec(dataset="overlap", source=spec.source, splits={"train": FLICKR, "test": FLICKR})
    with pytest.raises(UserError, match=f"{FLICKR} bad rows.*is also in split test"):
        prepare_dataset(spec, tmp_path / "d", tmp_path / "i", files_of("flickr30k", repos, tmp_path / "f"))


def test_samples_by_image_take_all_rows_of_an_image(repos: Path, tmp_path: Path) -> None:
    spec = miniature_spec("ocrvqa")
    for split, take in (("train", 4), ("test", 2)):
        spec.source["splits"][split]["sample"] |= {"take": take, "unit": "image"}
    by_image = PrepareSpec(dataset="ocr", source=spec.source, splits={"train": 12, "test": 6})
    facts = prepare_dataset(
        by_image, tmp_path / "d", tmp_path / "i", files_of("ocrvqa", repos, tmp_path / "f")
    )
    assert facts["splits"]["train"]["images"] == 4


@pytest.mark.parametrize("name", ["vqav2", "okvqa", "vizwiz", "flickr30k", "ocrvqa"])
def test_a_damaged_download_leaves_one_line_and_nothing_else(name: str, repos: Path, tmp_path: Path) -> None:
    """Each file in turn is cut in half."""
    reference = files_of(name, repos, tmp_path / "reference")
    for origin, folder in reference.items():
        for path in sorted(
            p for p in folder.rglob("*") if p.is_file() and p.name not in ("record.json", "README.md")
        ):
            case = tmp_path / f"{origin}-{path.name}"
            files = files_of(name, repos, case)
            broken = files[origin] / path.relative_to(folder)
            data = broken.read_bytes()
            broken.unlink()
            broken.write_bytes(data[: len(data) // 2])
            with pytest.raises(UserError) as error:
                prepare_dataset(miniature_spec(name), case / "out", case / "images", files)
            assert "\n" not in str(error.value)
            assert not list((case / "out").iterdir())


def test_a_missing_split_names_what_to_check(repos: Path, tmp_path: Path) -> None:
    files = files_of("textvqa", repos, tmp_path / "f")
    for path in (files["data"] / "data").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"validation-.*not retrieved: check 'files' of the origin"):
        prepare_dataset(miniature_spec("textvqa"), tmp_path / "d", tmp_path / "i", files)
    spec = miniature_spec("gqa")
    spec.source["splits"]["test"]["rows"]["config"] = "testdev_balanced_instruction"
    with pytest.raises(UserError, match="did you mean 'testdev_balanced_instructions'"):
        prepare_dataset(spec, tmp_path / "d", tmp_path / "i", files_of("gqa", repos, tmp_path / "g"))


def test_column_names_are_checked_at_the_first_row(repos: Path, tmp_path: Path) -> None:
    spec = miniature_spec("vizwiz")
    spec.source["row"]["question"] = "qestion"
    with pytest.raises(UserError, match="no column 'qestion'; did you mean 'question'"):
        prepare_dataset(spec, tmp_path / "d", tmp_path / "i", files_of("vizwiz", repos, tmp_path / "f"))


def test_jpegs_stay_jpegs(all_sets: dict[str, Prepared]) -> None:
    row = all_sets["okvqa"].splits["train"][0]
    from PIL import Image

    assert Image.open(io.BytesIO(all_sets["okvqa"].bytes(row))).format == "JPEG"
