"""The embedded data sets: the same everywhere, honest splits, what each kind promises."""

import hashlib
from pathlib import Path
from random import Random

import msgspec
import pytest

from peftbench.data.draw import draw
from peftbench.data.embedded import pack
from peftbench.data.embedded.vizwiz import UNANSWERABLE
from peftbench.data.embedded.wording import majority, plural, with_article
from peftbench.data.example import Example
from peftbench.data.images import image_path, load_image, store_image
from peftbench.data.load import read_examples, read_subset
from peftbench.data.prepare import checked, prepare_dataset
from peftbench.data.subset import draw_subset, nested_draw
from peftbench.errors import UserError
from peftbench.spec import PrepareSpec, SubsetSpec

EIGHT = ("sqa_img", "vizwiz", "iconqa_txt", "iconqa_blank", "flickr30k", "okvqa", "ocrvqa", "vqav2")


@pytest.fixture(scope="module", params=EIGHT)
def rows(request: pytest.FixtureRequest) -> list[tuple[Example, bytes]]:
    return [draw(request.param, "train", i, seed=7) for i in range(120)]


def test_an_example_does_not_depend_on_what_was_drawn_before() -> None:
    for generator in EIGHT:
        later = draw(generator, "test", 5, seed=7)
        for i in range(5):
            draw(generator, "test", i, seed=7)
        assert draw(generator, "test", 5, seed=7) == later


def test_splits_and_seeds_give_other_examples() -> None:
    drawn = {draw("vqav2", split, 0, seed)[1] for split in ("train", "test", "exposure") for seed in (7, 8)}
    assert len(drawn) == 6


def test_pixels_are_the_same_on_every_machine() -> None:
    digest = hashlib.sha256()
    for generator in EIGHT:
        for split in ("train", "test"):
            for i in range(4):
                example, png = draw(generator, split, i, seed=7)
                digest.update(load_pixels(png))
                digest.update(
                    msgspec.json.encode([example.question, example.answers, example.choices, example.target])
                )
    assert digest.hexdigest() == PINNED


PINNED = "516d25f7a7aa376372f6ca1c8450ccc503ddaa7cbbad0f1f969eaf20d7348f84"


def load_pixels(png: bytes) -> bytes:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(png)).tobytes()


def test_train_and_test_share_no_artist_and_no_typeface() -> None:
    assert not set(pack.STYLES["train"]) & set(pack.STYLES["test"])
    assert not set(pack.TYPEFACES["train"]) & set(pack.TYPEFACES["test"])
    for concept in pack.concepts():
        assert len(set(concept.styles) & set(pack.STYLES["train"])) >= 4
        assert set(pack.STYLES["test"]) <= set(concept.styles)


def test_every_row_can_be_trained_on_and_scored(rows: list[tuple[Example, bytes]]) -> None:
    for example, png in rows:
        assert png.startswith(b"\x89PNG")
        assert example.image == hashlib.sha256(png).hexdigest()
        assert example.target and example.answers
        if example.choices:
            assert 0 <= example.answer_index < len(example.choices)
            assert len(set(example.choices)) == len(example.choices)
        assert len(example.answers) in (1, 5, 10)


def test_ten_annotators_five_references_one_answer() -> None:
    n = {g: {len(draw(g, "test", i, 7)[0].answers) for i in range(20)} for g in EIGHT}
    assert n == {
        g: {10 if g in ("vizwiz", "okvqa", "vqav2") else 5 if g == "flickr30k" else 1} for g in EIGHT
    }


def test_choices_name_the_right_answer() -> None:
    for i in range(60):
        letter = draw("sqa_img", "train", i, 7)[0]
        assert "ABC"[letter.answer_index] == letter.target
        text = draw("iconqa_txt", "train", i, 7)[0]
        assert text.choices[text.answer_index] == text.target


def test_vizwiz_has_unanswerable_pictures_in_a_real_share() -> None:
    targets = [draw("vizwiz", "test", i, 7)[0].target for i in range(400)]
    assert 0.15 < targets.count(UNANSWERABLE) / len(targets) < 0.4


def test_annotators_disagree_as_people_do() -> None:
    drawn = [draw("okvqa", "test", i, 7)[0] for i in range(200)]
    assert sum(len(set(e.answers)) > 1 for e in drawn) > 100
    assert all(e.target == majority(e.answers) for e in drawn)


def test_captions_differ_and_use_attested_names() -> None:
    drawn = [draw("flickr30k", "test", i, 7)[0] for i in range(100)]
    assert sum(len(set(e.answers)) >= 3 for e in drawn) > 70
    known = {n for c in pack.concepts() for n in (c.name, *c.synonyms)}
    for example in drawn:
        names = msgspec.json.decode(example.source)["names"]
        assert all(set(alternatives) <= known for alternatives in names.values())


def test_wording() -> None:
    assert [plural(n) for n in ("dog", "mouse", "bus", "cherry", "sheep", "tornado")] == [
        "dogs",
        "mice",
        "buses",
        "cherries",
        "sheep",
        "tornadoes",
    ]
    assert with_article("apple") == "an apple"
    assert with_article("apple", "red") == "a red apple"
    assert with_article("jeans", "blue") == "blue jeans"


def test_majority_breaks_ties_by_first_occurrence() -> None:
    assert majority(["b", "a", "a", "b"]) == "b"


def test_colours_are_what_the_eye_says() -> None:
    by_name = {c.name: c.hex for c in pack.concepts()}
    assert pack.colour(by_name["lemon"], "twemoji") == "yellow"
    assert pack.colour(by_name["strawberry"], "noto") == "red"
    assert pack.colour(by_name["frog"] if "frog" in by_name else by_name["cactus"], "noto") == "green"


def test_nested_draws_do_not_depend_on_the_order_of_rows() -> None:
    ids = [f"x{i}" for i in range(500)]
    shuffled = ids.copy()
    Random(0).shuffle(shuffled)
    small, middle, large = (nested_draw(shuffled, n, 42) for n in (50, 200, "full"))
    assert small == nested_draw(ids, 50, 42)
    assert set(small) < set(middle) < set(large)
    assert large[:50] == small
    assert nested_draw(ids, 50, 43) != small


def spec(train: int = 6, test: int = 3) -> PrepareSpec:
    source = {"kind": "embedded", "generator": "vizwiz", "seed": 7}
    return PrepareSpec(dataset="vizwiz_mini", source=source, splits={"train": train, "test": test})


def test_prepare_subset_and_read_back(tmp_path: Path) -> None:
    facts = prepare_dataset(spec(), tmp_path / "data", tmp_path / "images")
    assert facts["splits"]["train"]["rows"] == 6
    examples = read_examples(tmp_path / "data", "test")
    assert [e.id for e in examples] == [f"vizwiz-test-{i:06d}" for i in range(3)]
    assert load_image(tmp_path / "images", examples[0].image).size == (96, 96)
    assert draw_subset(SubsetSpec(size=4, seed=1), tmp_path / "data", tmp_path / "subset") == {
        "rows": 4,
        "of": 6,
    }
    ids = read_subset(tmp_path / "subset")
    assert [e.id for e in read_examples(tmp_path / "data", "train", ids)] == ids
    again = prepare_dataset(spec(), tmp_path / "again", tmp_path / "images")
    assert again == facts
    assert (tmp_path / "again/train.parquet").read_bytes() == (tmp_path / "data/train.parquet").read_bytes()


def test_a_subset_larger_than_its_data_is_refused(tmp_path: Path) -> None:
    prepare_dataset(spec(), tmp_path / "data", tmp_path / "images")
    with pytest.raises(UserError, match="has 6 training rows, the study asks for 7"):
        draw_subset(SubsetSpec(size=7, seed=1), tmp_path / "data", tmp_path / "subset")


def test_missing_changed_and_broken_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image is missing"):
        load_image(tmp_path, "ab" * 32)
    sha = store_image(tmp_path, b"not a picture")
    with pytest.raises(UserError, match="not a readable image"):
        load_image(tmp_path, sha)
    image_path(tmp_path, sha).write_bytes(b"changed")
    with pytest.raises(UserError, match="corrupt"):
        load_image(tmp_path, sha)


def row(**changes: object) -> Example:
    fields = {
        "id": "q1",
        "image": "",
        "question": "?",
        "choices": [],
        "answer_index": -1,
        "answers": ["a"],
        "target": "a",
        "question_type": "",
        "answer_type": "",
        "split": "train",
        "source": "{}",
    }
    return Example(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(), row()], "row 'q1': its id occurs twice"),
        ([row(answers=[])], "no answers"),
        ([row(target="")], "nothing to train on"),
        ([row(choices=["a", "b"], answer_index=2)], "choice 2 of 2"),
    ],
)
def test_bad_rows_are_named(rows: list[Example], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(checked("mine", rows))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"kind": "nowhere"}, "unknown kind of source 'nowhere'"),
        ({"kind": "embedded", "generator": "nothing"}, "no embedded data set is drawn by 'nothing'"),
        ({"kind": "embedded", "generator": "vizwiz", "sede": 1}, "sede"),
    ],
)
def test_bad_sources_are_one_line(tmp_path: Path, source: dict[str, object], message: str) -> None:
    bad = PrepareSpec(dataset="x", source=source, splits={"train": 1})
    with pytest.raises(UserError, match=message) as error:
        prepare_dataset(bad, tmp_path / "d", tmp_path / "i")
    assert "\n" not in str(error.value)
