"""The page: self-contained, safe with any answer, and honest about what is missing."""

import html.parser
import re
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from PIL import Image

from fake_store import FakeStore, coin, example, picture, table_spec
from peftbench.analysis.gallery import draw_examples, gallery, is_graded, verdict
from peftbench.analysis.grid import build_grid
from peftbench.analysis.lines import first_seeds, read_lines
from peftbench.analysis.outcomes import read_outcomes
from peftbench.analysis.plot import plot_study
from peftbench.analysis.table import tabulate_study
from peftbench.data.images import image_path, store_image
from peftbench.errors import UserError
from peftbench.report.build import amount, build_report, headline, visible
from peftbench.report.curves import POINTS, curve_panel, read_curve
from peftbench.views import BlessedCode, Cell, PlotSpec, ReportSpec, TabulateSpec

N = 12
VOID = {"meta", "img", "br", "path", "circle", "polyline", "use", "rect"}


class Outline(html.parser.HTMLParser):
    """Checks that tags close in order; keeps addresses, scripts and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def read_page(path: Path) -> Outline:
    outline = Outline()
    outline.feed(path.read_text(encoding="utf-8"))
    outline.close()
    assert outline.open == []
    return outline


def draw_figure(store: FakeStore, table: TabulateSpec) -> None:
    """The real figure of a study."""
    tabulate_study(table, store.root, store.root / "tables")
    csv = store.root / f"tables/{table.study}.csv"
    plot_study(PlotSpec(study=table.study, title=table.title), csv, store.root / "figures")


def build(store: FakeStore, table: TabulateSpec, **changes: Any) -> Path:
    """The page of a study; its figure is a blank one unless it has been drawn before."""
    figure = store.root / f"figures/{table.study}.svg"
    if not figure.exists():
        figure.parent.mkdir()
        figure.write_text('<?xml version="1.0"?><svg width="9pt" height="9pt" viewBox="0 0 9 9"></svg>')
    fields: dict[str, Any] = {"study": table.study, "title": table.title, "note": "Says <little>."}
    fields |= {"gallery": 3, "blessed": []}
    spec = ReportSpec(**(fields | changes), table=table)
    build_report(spec, store.root, store.root / "report")
    return store.root / f"report/{table.study}.html"


@pytest.fixture
def store(tmp_path: Path) -> FakeStore:
    made = FakeStore(tmp_path / "results")
    made.dataset("alpha", [example(made, "alpha", i) for i in range(N)])
    return made


def scored(
    store: FakeStore, method: str, connector: str = "tuned", dataset: str = "alpha", **more: Any
) -> Cell:
    more = {"answers": ["red"] * N, "scores": coin(0.5, N, len(method)), "losses": [3.0, 2.0, 1.0]} | more
    return store.run(dataset, method, connector, **more)


@pytest.fixture
def full(store: FakeStore) -> TabulateSpec:
    store.dataset("beta", [example(store, "beta", i) for i in range(N)])
    cells = []
    for dataset in ("alpha", "beta"):
        for method in ("lora", "ia3"):
            for connector in ("tuned", "frozen"):
                cells.append(scored(store, method, connector, dataset))
        cells.append(scored(store, "base", "frozen", dataset, losses=[]))
    return table_spec(cells)


def test_a_page_needs_nothing_but_itself(store: FakeStore, full: TabulateSpec) -> None:
    draw_figure(store, full)
    path = build(store, full)
    outline = read_page(path)
    assert "script" not in outline.tags and "link" not in outline.tags and "iframe" not in outline.tags
    remote = [a for a in outline.addresses if not a.startswith(("#", "data:image/"))]
    assert remote == []
    text = path.read_text()
    assert not re.search(r"url\((?!#)|@import", text)
    assert path.stat().st_size < 3_000_000
    assert outline.tags.count("img") == 6
    for part in ("table", "figure", "methods", "curves", "gallery", "origin"):
        assert f'<section id="{part}">' in text
    figure = text.partition('<section id="figure">')[2].partition("</section>")[0]
    assert "var(--m0)" in figure and "var(--ink)" in figure and "#0072b2" not in figure.lower()
    # ids that the figure refers to are in the page
    assert {a[1:] for a in outline.addresses if a.startswith("#")} <= set(re.findall(r'id="([^"]+)"', text))


def test_two_times_the_same_bytes(store: FakeStore, full: TabulateSpec) -> None:
    first = build(store, full).read_bytes()
    assert build(store, full).read_bytes() == first


NASTY = [
    "<script>alert('x')</script>",
    "\"><img src=x onerror=alert(1)>",
    "</td></table></section><h1>owned",
    "&amp; {{ 7*7 }} {% raw %}",
    "naïve café 东京 🦎 العربية \u202eevil",
    "a\x00b\x1b[31mred\x7f",
    "",
    "   ",
    "long " * 400,
    "nobreak" * 200,
    "two\nlines",
    "-->]]></style>",
]  # fmt: skip


def test_no_answer_breaks_the_page(store: FakeStore) -> None:
    rows = [
        example(store, "gamma", i, question=text, answers=[text, "x"], choices=[text, "y"], answer_index=0)
        for i, text in enumerate(NASTY)
    ]
    store.dataset("gamma", rows)
    cell = scored(store, "lora", dataset="gamma", answers=NASTY)
    path = build(store, table_spec([cell]), gallery=len(NASTY), note=NASTY[0], title=NASTY[2])
    outline = read_page(path)
    assert outline.tags.count("h1") == 1 and "script" not in outline.tags
    assert outline.tags.count("img") == len(NASTY)
    said = "".join(outline.text)
    for text in (NASTY[0], NASTY[1], NASTY[2], NASTY[3], NASTY[4], NASTY[8], NASTY[9], NASTY[11]):
        assert said.count(text) >= 2, text
    assert "a\ufffdb\ufffd[31mred\ufffd" in said
    assert "(empty)" in said
    assert not any(c in path.read_text() for c in "\x00\x1b\x7f")


def test_long_answers_fold_and_are_still_there(store: FakeStore) -> None:
    answer = "word " * 300
    path = build(store, table_spec([scored(store, "lora", answers=[answer] * N)]))
    text = path.read_text()
    assert text.count('<details class="long">') == 3
    assert text.count(answer) == 3


def test_answers_are_marked(store: FakeStore) -> None:
    scores = [100.0] * 4 + [0.0] * 4 + [30.0] * 4
    cells = [scored(store, "lora", scores=scores, answers=[f"answer {i}" for i in range(N)])]
    table = table_spec(cells)
    lines = read_lines(table, read_outcomes(table, store.root), store.root)
    cards = gallery(lines, {"tiny": "T"}, store.root, N)
    found = {card.id: card.answers["T"]["LoRA"][0] for card in cards}
    for i, score in enumerate(scores):
        answer = found[f"alpha-{i}"]
        assert answer.text == f"answer {i}"
        assert answer.verdict == {100.0: "right", 0.0: "wrong", 30.0: "partial"}[score]
    text = build(store, table, gallery=N).read_text()
    gallery_part = text[text.index('<section id="gallery">') : text.index('<section id="origin">')]
    cards_part = gallery_part[gallery_part.index('<div class="cards">') :]
    assert cards_part.count('class="mark right"') == 4
    assert cards_part.count('class="mark wrong"') == 4
    assert cards_part.count("◐<small>30</small>") == 4


def test_metrics_that_grade_show_their_score(store: FakeStore) -> None:
    text = build(
        store, table_spec([scored(store, "lora", scores=[10.0 * i + 1.5 for i in range(N)])]), gallery=N
    ).read_text()
    cards = text[text.index('<div class="cards">') :]
    assert cards.count('class="mark graded"') == N and "◐" not in cards and "✗" not in cards


def test_what_grades_and_what_judges() -> None:
    assert not is_graded({0.0, 30.0, 60.0, 90.0, 100.0})
    assert is_graded({0.0, 132.0})
    assert is_graded({float(i) for i in range(1, 40)})
    assert [verdict(score, False) for score in (None, 0.0, 30.0, 100.0)] == [
        "none",
        "wrong",
        "partial",
        "right",
    ]


def test_examples_are_drawn_by_their_ids_alone(store: FakeStore) -> None:
    digest, examples = store.data["alpha"]
    path = store.root / f"data/alpha-{digest}/test.parquet"
    drawn = [e.id for e in draw_examples(path, 4)]
    pl.read_parquet(path).reverse().write_parquet(path)
    assert [e.id for e in draw_examples(path, 4)] == drawn
    assert len(draw_examples(path, 100)) == len(examples)
    assert draw_examples(path, 0) == []


def test_failed_and_missing_runs_are_said_so(store: FakeStore) -> None:
    cells = [
        scored(store, "lora"),
        scored(store, "lora", "frozen", until="train", failed={"train": "loss <nan> at step 3"}),
        scored(store, "ia3", until="none"),
        scored(store, "ia3", "frozen", until="train", losses=[]),
    ]
    path = build(store, table_spec(cells))
    said = " ".join("".join(read_page(path).text).split())
    assert "training failed: loss <nan> at step 3" in said
    assert "no result of training" in said and "no result of prediction" in said
    assert "Without a log: IA3, connector tuned; IA3, connector frozen." in said
    cards = path.read_text().partition('<div class="cards">')[2]
    assert cards.count('class="none failed"') == 3 and cards.count('class="none missing"') == 6


def test_a_study_without_any_result_still_has_a_page(store: FakeStore) -> None:
    path = build(store, table_spec([scored(store, "lora", until="none")]))
    outline = read_page(path)
    assert "img" not in outline.tags
    assert '<section id="gallery">' not in path.read_text()


def test_pictures_that_are_not_there_leave_a_place(store: FakeStore) -> None:
    rows = [
        example(store, "delta", 0),
        example(store, "delta", 1, image=store_image(store.images, b"not a picture")),
        example(store, "delta", 2, image=store_image(store.images, picture((1, 2, 3)))),
        example(store, "delta", 3, image=""),
    ]
    image_path(store.images, rows[0].image).write_bytes(b"changed")
    image_path(store.images, rows[2].image).unlink()
    store.dataset("delta", rows)
    cell = store.run("delta", "lora", answers=["a"] * 4, scores=[100.0] * 4)
    path = build(store, table_spec([cell]), gallery=4)
    said = "".join(read_page(path).text)
    assert said.count("picture missing or damaged") == 3 and said.count("no picture") == 1


def test_large_pictures_are_made_small(store: FakeStore) -> None:
    source = Image.effect_noise((1500, 1000), 80).convert("RGB")
    path = store.root / "noise.png"
    source.save(path)
    rows = [example(store, "delta", i, image=store_image(store.images, path.read_bytes())) for i in range(8)]
    store.dataset("delta", rows)
    cell = store.run("delta", "lora", answers=["a"] * 8, scores=[100.0] * 8)
    page = build(store, table_spec([cell]), gallery=8)
    assert page.read_text().count("data:image/webp") == 8
    assert page.stat().st_size < 1_000_000


def test_damaged_answers_are_one_line(store: FakeStore) -> None:
    cell = scored(store, "lora")
    (store.root / cell.scores).parent.joinpath("predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"predictions\.parquet: cannot be read .*run snakemake again"):
        build(store, table_spec([cell]))


def test_a_missing_figure_is_one_line(store: FakeStore) -> None:
    table = table_spec([scored(store, "lora")])
    spec = ReportSpec(study="trial", title="T", note="", gallery=0, table=table, blessed=[])
    with pytest.raises(UserError, match=r"figures/trial\.svg: No such file.*run snakemake"):
        build_report(spec, store.root, store.root / "report")


def test_a_damaged_log_is_named_and_the_page_goes_on(store: FakeStore) -> None:
    cells = [scored(store, "lora"), scored(store, "ia3"), scored(store, "prefix")]
    (store.root / cells[0].scores).parent.parent.joinpath("log.csv").write_text("step,epoch\n1,1\n")
    (store.root / cells[1].scores).parent.parent.joinpath("log.csv").write_text("step,loss\n1,high\n")
    table = table_spec(cells)
    lines = read_lines(table, read_outcomes(table, store.root), store.root)
    panel = curve_panel("A", lines)
    assert panel.without == ["LoRA (log damaged)", "IA3 (log damaged)"]
    assert panel.svg.count("<polyline") == 1


def test_curves_are_thinned_and_hold_what_was_logged(store: FakeStore) -> None:
    losses = [5.0 / (i + 1) for i in range(1000)]
    table = table_spec([scored(store, "lora", losses=losses, eval_losses=[2.0, 1.0])])
    line = read_lines(table, read_outcomes(table, store.root), store.root)[0]
    curve = read_curve(line)
    assert curve is not None
    assert len(curve.train) <= POINTS
    assert curve.train[0] == (pytest.approx(5.0), pytest.approx(sum(losses[:9]) / 9))
    assert curve.evaluation == [(500.0, 2.0), (1000.0, 1.0)]
    svg = curve_panel("A <b>", [line]).svg
    assert svg.count("<circle") == 2 and "A &lt;b&gt;" in svg
    points = [tuple(map(float, p.split(","))) for p in re.findall(r'points="([^"]*)"', svg)[0].split()]
    assert all(34 <= x <= 320 and 0 <= y <= 200 for x, y in points)
    assert points[-1][1] > points[0][1]  # a falling loss goes down the page


@pytest.mark.parametrize("losses", [[0.0], [0.0, 0.0], [1e-9, 4.0], [2.0, 2.0, 2.0], [7.5]])
def test_odd_losses_stay_on_the_panel(store: FakeStore, losses: list[float]) -> None:
    table = table_spec([scored(store, "lora", losses=losses)])
    svg = curve_panel("A", read_lines(table, read_outcomes(table, store.root), store.root)).svg
    points = [tuple(map(float, p.split(","))) for p in re.findall(r'points="([^"]*)"', svg)[0].split()]
    assert len(points) == len(losses)
    assert all(0 <= x <= 320 and 0 <= y <= 200 for x, y in points)


def test_the_first_seed_stands_for_all(store: FakeStore) -> None:
    cells = [
        scored(store, "lora", seed=1, until="train", failed={"train": "diverged"}),
        scored(store, "lora", seed=2),
        scored(store, "lora", seed=3),
    ]
    table = table_spec(cells)
    lines = read_lines(table, read_outcomes(table, store.root), store.root)
    assert [line.outcome.cell.seed for line in first_seeds(lines)] == [2]


def test_the_headline_names_the_best_and_its_ties(store: FakeStore, full: TabulateSpec) -> None:
    grid = build_grid(full, read_outcomes(full, store.root))
    line = headline(grid, grid.blocks[0])
    assert line is not None
    means = {row.name: row.averages[0].estimate.value for row in grid.rows if row.averages[0].estimate}
    assert means[line["best"]] == max(means.values())
    assert line["columns"] == 2 and line["left_out"] == 0
    alone = msgspec.structs.replace(full, averages=[])
    grid = build_grid(alone, read_outcomes(alone, store.root))
    assert headline(grid, grid.blocks[0]) is None


def test_costs_come_from_the_records(store: FakeStore, full: TabulateSpec) -> None:
    said = "".join(read_page(build(store, full)).text)
    assert "50\u202f000" in said and "321" in said and "31.5" in said
    assert "node<1>" in said and "torch (version)" in said and "2.13.0" in said
    assert full.cells[0].scores[-16:] in said


def test_amounts_and_control_characters() -> None:
    assert [amount(v) for v in (None, 0, 1234567, 9.5, 321.4, 0.8382)] == [
        "–",
        "0",
        "1\u202f234\u202f567",
        "9.5",
        "321",
        "0.838",
    ]
    assert visible("a\tb\nc\x07") == "a\tb\nc\ufffd"


def test_blessed_code_is_shown(store: FakeStore) -> None:
    table = table_spec([scored(store, "lora")])
    assert "Blessed code" not in build(store, table).read_text()
    blessed = BlessedCode(
        stage="train", date="2026-11-28T08:00:00Z", changes=["training.loop"], proofs=["bit-equal: lora <1>"]
    )
    path = build(store, table, blessed=[blessed])
    text = " ".join("".join(read_page(path).text).split())
    assert "2026-11-28, train: training.loop changed; bit-equal: lora <1>" in text
