"""Overlap of test and training data: made-up pictures and questions with known answers."""

import io
import time
from pathlib import Path
from random import Random

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFilter

from fake_store import FakeStore
from peftbench.analysis.descriptions import contamination
from peftbench.analysis.plain import PlainTable, write_plain
from peftbench.data.embedded.scene import Scene
from peftbench.data.embedded.wording import pick
from peftbench.data.example import Example
from peftbench.data.images import store_image
from peftbench.data.overlap import NEAR_BITS, GramSearch, Split, grams, near_pairs, normalise, overlap
from peftbench.data.pictures import hash_pictures, picture_hash
from peftbench.data.prepare import write_examples
from peftbench.errors import UserError
from peftbench.views import DescribedDataset, DescribeSpec


def drawn(seed: int) -> Image.Image:
    """A picture with several things in it."""
    rng = Random(seed)
    scene = Scene(rng, "train")
    for cell in rng.sample(range(9), 4):
        scene.place_in_cell(pick(rng), cell)
    return scene.image


def photo(seed: int) -> Image.Image:
    """Smooth noise of 300 x 200 pixels, as little like a drawing as can be."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    return small.resize((300, 200), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(3))


def saved(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def bits_between(a: Image.Image, b: Image.Image) -> int:
    x, y = picture_hash(a), picture_hash(b)
    assert x is not None and y is not None
    return (x ^ y).bit_count()


@pytest.mark.parametrize("make", [drawn, photo])
def test_hash_outlives_compression_and_scaling_but_not_mirroring(make) -> None:
    changes = {"jpeg": [], "small": [], "large": [], "grey": [], "mirror": [], "other": []}
    for seed in range(30):
        image = make(seed)
        half = image.resize((image.width // 2, image.height // 2))
        changes["jpeg"].append(bits_between(image, opened(saved(image, "JPEG", quality=60))))
        changes["small"].append(bits_between(image, opened(saved(half, "JPEG", quality=80))))
        changes["large"].append(bits_between(image, image.resize((image.width * 2, image.height * 2))))
        changes["grey"].append(bits_between(image, image.convert("L").convert("RGB")))
        changes["mirror"].append(bits_between(image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
        changes["other"].append(bits_between(image, make(seed + 1000)))
    for kind in ("jpeg", "small", "large", "grey"):
        near = sum(bits <= NEAR_BITS for bits in changes[kind])
        assert near >= 28, (kind, sorted(changes[kind]))
    assert min(changes["mirror"]) > NEAR_BITS, "a mirrored copy is another picture here"
    assert min(changes["other"]) > NEAR_BITS


def test_pictures_without_contrast_have_no_hash() -> None:
    noise = np.random.default_rng(0).integers(126, 130, (50, 60, 3), dtype=np.uint8)
    assert picture_hash(Image.new("RGB", (40, 40), (9, 9, 9))) is None
    assert picture_hash(Image.fromarray(noise)) is None
    assert picture_hash(drawn(1)) is not None


def brute(left: np.ndarray, right: np.ndarray, bits: int) -> list[tuple[int, int]]:
    return list(
        zip(
            *map(np.ndarray.tolist, np.nonzero(np.bitwise_count(left[:, None] ^ right[None]) <= bits)),
            strict=True,
        )
    )


def planted(rng: np.random.Generator, left: np.ndarray, n: int, most: int) -> np.ndarray:
    """``n`` hashes, each one of ``left`` with 0 to ``most`` bits turned."""
    out = rng.choice(left, n)
    for at in range(n):
        for bit in rng.choice(64, rng.integers(0, most + 1), replace=False):
            out[at] ^= np.uint64(1) << np.uint64(bit)
    return out


@pytest.mark.parametrize("bits", [0, 1, 4, 10, 20])
def test_near_pairs_are_those_of_comparing_all(bits: int) -> None:
    rng = np.random.default_rng(bits)
    left = rng.integers(0, 2**64, 300, dtype=np.uint64)
    right = np.concatenate([rng.integers(0, 2**64, 200, dtype=np.uint64), planted(rng, left, 300, bits + 3)])
    found = list(zip(*(places.tolist() for places in near_pairs(left, right, bits)), strict=True))
    assert found == brute(left, right, bits)
    assert len(found) >= 50


def test_near_pairs_of_nothing() -> None:
    none, some = np.empty(0, dtype=np.uint64), np.arange(3, dtype=np.uint64)
    for a, b in ((none, some), (some, none), (none, none)):
        assert [len(places) for places in near_pairs(a, b)] == [0, 0]


def test_near_pairs_in_more_than_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    left = rng.integers(0, 64, 100, dtype=np.uint64)  # all agree in most bands
    expected = brute(left, left, 4)
    monkeypatch.setattr("peftbench.data.overlap._CHUNK", 37)
    assert list(zip(*(p.tolist() for p in near_pairs(left, left)), strict=True)) == expected


@pytest.mark.parametrize("skewed", [False, True])
def test_twenty_thousand_against_twenty_thousand_take_seconds(skewed: bool) -> None:
    rng = np.random.default_rng(1)
    left = rng.integers(0, 2**64, 20_000, dtype=np.uint64)
    if skewed:  # the upper bands take few values, as with pictures that are alike
        left = (left & np.uint64(0xFFFFFFFF)) | (
            rng.integers(0, 16, 20_000, dtype=np.uint64) << np.uint64(60)
        )
    right = np.concatenate(
        [planted(rng, left, 1000, NEAR_BITS), rng.integers(0, 2**64, 19_000, dtype=np.uint64)]
    )
    start = time.process_time()
    i, j = near_pairs(left, right)
    assert time.process_time() - start < 8
    assert set(range(1000)) <= set(j.tolist())
    assert (np.bitwise_count(left[i] ^ right[j]) <= NEAR_BITS).all()


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("What's in the picture?", "WHATS IN THE  PICTURE", True),
        ("What’s this?", "what's this", True),
        ("Is it  a dog-house?!", "is it a dog house", True),
        ("ＡＢＣ？", "abc", True),
        ("Straße", "STRASSE", True),
        ("Is it red?", "Is it read?", False),
        ("how many dogs", "how many dog s", False),
        ("???", "", True),
    ],
)
def test_questions_are_the_same_without_case_and_punctuation(a: str, b: str, same: bool) -> None:
    assert (normalise(a) == normalise(b)) is same


def test_grams() -> None:
    words = " ".join(map(str, range(15)))
    assert grams(words) == [" ".join(map(str, range(at, at + 13))) for at in range(3)]
    assert grams("what is this") == ["what is this"]
    assert grams("") == []
    search = GramSearch(["is this", "what is this thing", "this", "b c"])
    assert search.found(["what is this", "a b", "c"]) == {"is this", "this"}


LONG = "please look very closely at this picture and then tell me exactly how many dogs there are"


def counted(test: list[tuple[str, str]], train: list[tuple[str, str]], hashes: dict[str, int | None]):
    a, b = Split(test), Split(train)
    search = GramSearch(g for question in a.grams for g in question)
    return overlap(a, b, hashes, search.found(b.questions))


def test_counts_are_exact() -> None:
    hashes: dict[str, int | None] = {
        "same": 0b1111 << 40,
        "near": 0b0111 << 40,
        "edge": (0b1111 << 40) | 0b1111,
        "far": (0b1111 << 40) | 0b11111,
        "flat": None,
        "flat too": None,
        "alone": 2**63 + 12345,
    }
    train = [
        ("same", "What is this?"),
        ("flat", "Who is it?"),
        ("", "Only text?"),
        ("same", f"So, {LONG} here?"),
    ]
    test = [
        ("same", "WHAT IS THIS"),  # exact picture and question: a pair
        ("near", "what is this?!"),  # near picture: a pair
        ("near", "Who is it?"),  # near, but asked of another picture
        ("edge", "Is this new?"),  # at the threshold
        ("far", "What is this?"),  # one bit too far
        ("flat", "who is it"),  # the same bytes: a pair though it has no hash
        ("flat too", "who is it"),  # no hash, other bytes
        ("alone", "is this"),  # within a longer question
        ("", "only text"),  # no picture: no pair
        ("alone", LONG + " in total"),  # 13 words in a row
        ("alone", ""),  # no question
    ]
    found = counted(test, train, hashes)
    assert (found.pictures, found.exact_pictures, found.near_pictures) == (7, 2, 4)
    assert (found.questions, found.exact_questions, found.ngram_questions) == (10, 7, 9)
    assert (found.rows, found.pairs) == (10, 3)


def test_captions_of_the_same_picture_are_pairs() -> None:
    found = counted(
        [("a", ""), ("b", "")], [("a", ""), ("b", "What is it?")], {"a": 0xFF << 50, "b": 0xFF << 20}
    )
    assert (found.near_pictures, found.questions, found.rows, found.pairs) == (2, 0, 2, 1)


def test_disjoint_sets_and_empty_ones_have_no_overlap() -> None:
    hashes: dict[str, int | None] = {"a": 0xF0F0, "b": 0x0F0F << 32}
    for test, train in [
        ([("a", "what?")], [("b", "who?")]),
        ([], [("b", "x")]),
        ([("a", "x")], []),
        ([("", "x")], [("", "")]),
    ]:
        found = counted(test, train, hashes)
        assert (found.near_pictures, found.exact_questions, found.ngram_questions, found.pairs) == (
            0,
            0,
            0,
            0,
        )


def test_a_long_question_of_twelve_words_is_not_thirteen() -> None:
    twelve = " ".join(LONG.split()[:12])
    shorter = counted([("", twelve)], [("", LONG)], {})
    assert shorter.ngram_questions == 1  # all of the question
    broken = counted([("", f"{twelve} other words that follow it")], [("", LONG)], {})
    assert broken.ngram_questions == 0  # 12 words in a row of a longer one


def test_each_picture_is_hashed_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [store_image(tmp_path / "images", saved(drawn(seed))) for seed in range(4)]
    blank = store_image(tmp_path / "images", saved(Image.new("RGB", (9, 9))))
    cache = tmp_path / "cache/hashes.parquet"
    steps: list[tuple[int, int]] = []
    first = hash_pictures(tmp_path / "images", [*names, names[0], blank], cache, lambda *at: steps.append(at))
    assert steps == [(at, 5) for at in range(1, 6)]
    assert first[blank] is None and first[names[2]] == picture_hash(drawn(2))
    again = hash_pictures(tmp_path / "none", [names[1], blank], cache)  # nothing is read
    assert again == first
    assert list(cache.parent.iterdir()) == [cache]
    monkeypatch.setattr("peftbench.data.pictures.FLAT", 3.5)  # another rule: nothing of the old is used
    with pytest.raises(UserError, match="image is missing"):
        hash_pictures(tmp_path / "none", [names[1]], cache)
    monkeypatch.undo()
    cache.write_bytes(cache.read_bytes()[:50])
    assert hash_pictures(tmp_path / "images", names, cache) == {name: first[name] for name in names}
    assert pq.read_table(cache).num_rows == 4


class World:
    """Data sets as the prepare stage leaves them."""

    def __init__(self, root: Path) -> None:
        self.store = FakeStore(root)
        self.root = root
        self.datasets: list[DescribedDataset] = []

    def add(self, name: str, seen: bool, **splits: list[tuple[bytes, str]]) -> None:
        facts = {"splits": {split: {"rows": len(rows)} for split, rows in splits.items()}}
        folder = self.store.record(f"data/{name}-{{digest}}", "prepare", {"dataset": name}, {}, facts)
        for split, rows in splits.items():
            write_examples(
                [self.example(split, i, *row) for i, row in enumerate(rows)], folder / f"{split}.parquet"
            )
        self.datasets.append(
            DescribedDataset(
                name=name,
                label=name.upper(),
                stands_for=name,
                seen=seen,
                metric="vqa_score",
                templates=["{question}"],
                max_new_tokens=5,
                data=str(folder.relative_to(self.root)),
            )
        )

    def example(self, split: str, i: int, picture: bytes, question: str) -> Example:
        return Example(
            id=f"{split}{i}",
            image=store_image(self.root / "images", picture) if picture else "",
            question=question,
            choices=[],
            answer_index=-1,
            answers=["a"],
            target="a",
            question_type="",
            answer_type="",
            split=split,
            source="",
        )

    def table(self) -> PlainTable:
        spec = DescribeSpec(
            study="contamination",
            title="Overlap",
            kind="contamination",
            note="A note.",
            models=[],
            datasets=self.datasets,
            published_rows=[],
        )
        return contamination.describe(spec, self.root)


def cells(table: PlainTable, test: str, train: str) -> dict[str, str]:
    (row,) = [row for row in table.rows if (row[0], row[2]) == (test, train)]
    return dict(zip(table.head, row, strict=True))


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "results")
    image, mirrored = photo(1), photo(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    jpeg = saved(image, "JPEG", quality=70)
    small = saved(image.resize((150, 100)), "JPEG", quality=85)
    others = [saved(photo(seed)) for seed in range(10, 20)]
    world.add(
        "known",
        True,
        train=[(jpeg, "What is this?"), (others[0], "Is it a dog?"), (others[1], "How many are there?")],
        test=[(others[2], "IS IT A DOG"), (others[3], "Where was it made?")],
    )
    world.add(
        "new",
        False,
        train=[(others[4], "Why?")],
        test=[
            (small, "what is this"),
            (saved(mirrored), "What is this?"),
            (jpeg, "Who?"),
            (others[5], "When?"),
        ],
    )
    world.add("strange", True, train=[(others[6], "Quo vadis?")], test=[(others[7], "Cui bono?")])
    world.add("clean", False, test=[(others[8], "Warum denn nicht?"), (b"", "Wie bitte?")])
    return world


def test_table_of_overlap(world: World) -> None:
    table = world.table()
    assert [(row[0], row[2]) for row in table.rows] == [
        (test, train)
        for test in ("KNOWN", "NEW", "STRANGE", "CLEAN")
        for train in ("KNOWN", "NEW", "STRANGE")
    ]
    leak = cells(table, "NEW", "KNOWN")
    assert leak["Pictures"] == "4"
    assert (leak["Pictures exact %"], leak["Pictures near %"]) == (
        "25.0",
        "50.0",
    )  # the mirrored one is not found
    assert (leak["Questions"], leak["Questions exact %"], leak["Pairs %"]) == ("4", "50.0", "25.0")
    assert (leak["Test declared"], leak["Training declared"]) == ("unseen", "seen")
    assert leak["Flag"] == contamination.LEAK
    fine = cells(table, "KNOWN", "KNOWN")
    assert (fine["Pictures near %"], fine["Questions exact %"], fine["Pairs %"]) == ("0", "50.0", "0")
    assert fine["Flag"] == "", "questions in common are a trace"
    assert cells(table, "STRANGE", "KNOWN")["Flag"] == contamination.NO_TRACE
    assert cells(table, "STRANGE", "STRANGE")["Flag"] == contamination.NO_TRACE
    assert cells(table, "STRANGE", "NEW")["Flag"] == ""
    assert cells(table, "CLEAN", "KNOWN")["Flag"] == ""
    assert cells(table, "CLEAN", "KNOWN")["Pictures"] == "1"
    notes = " ".join(table.notes)
    assert "mirrored" in notes and "Without a training split: CLEAN." in notes and notes.endswith("A note.")
    assert "known only as far as this pipeline prepares them" in notes


def test_table_is_written_and_its_second_making_reads_no_picture(world: World, tmp_path: Path) -> None:
    first = world.table()
    for path in (world.root / "images").rglob("*"):
        if path.is_file():
            path.unlink()
    assert world.table() == first
    assert set(write_plain(first, tmp_path / "out", "contamination")) == {
        f"contamination.{s}" for s in ("csv", "md", "tex", "html")
    }


def test_flags_need_a_seen_set_and_more_than_the_threshold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path / "results")
    shared = saved(photo(1))
    world.add("a", False, train=[(shared, "What?")], test=[(shared, "What?")])
    table = world.table()
    assert cells(table, "A", "A")["Pairs %"] == "100"
    assert cells(table, "A", "A")["Flag"] == ""
    assert "nothing can be flagged" in " ".join(table.notes)
    world.add("b", True, train=[(shared, "Who?")], test=[(saved(photo(2)), "Who?")])
    assert cells(world.table(), "A", "B")["Flag"] == contamination.LEAK
    monkeypatch.setattr(contamination, "FLAG_PICTURES", 100.0)
    assert cells(world.table(), "A", "B")["Flag"] == ""


def test_a_missing_split_is_one_line(world: World) -> None:
    (world.root / world.datasets[1].data / "test.parquet").unlink()
    with pytest.raises(UserError, match=r"test\.parquet: cannot be read .*: delete the folder and run again"):
        world.table()


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 0, "–"), (0, 9, "0"), (9, 9, "100"), (1, 10_000, "<0.1"), (9_999, 10_000, ">99.9"), (1, 3, "33.3")],
)
def test_percent(part: int, whole: int, text: str) -> None:
    assert contamination.percent(part, whole) == text
