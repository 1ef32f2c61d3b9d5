"""The paper's Figures 9 to 23: test examples with picture, prompt, references, and each method's output, marked.

A card per example. Its rows are the untuned model and the methods, its columns their variants (connector, epoch). The
study's ``gallery`` says how many examples and which; its page shows the same ones.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from peftbench.analysis.figures._runs import Study
from peftbench.analysis.figures._sheet import EDGE, Context, Sheet, cross, empty, wrapped
from peftbench.analysis.gallery import CHOICES, NEAREST, Answer, Card, gallery
from peftbench.analysis.lines import Line, first_seeds, read_lines
from peftbench.analysis.outcomes import read_outcomes
from peftbench.analysis.style import INK, MUTED, RULE
from peftbench.data.images import load_image
from peftbench.errors import UserError
from peftbench.views import TabulateSpec

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

WIDTH = 9.2
"""Of the body in inches: one wide card, or two beside each other where methods have two variants at most."""
GAP = 0.3
PICTURE = 1.15
METHOD = 0.92
"""Room for the names of the methods."""
SIZE = 6.9
"""Points of all text but headings."""
LINE = 0.128
"""Inches from line to line."""
PAD = 0.05
MARK = 0.14
LONGEST = 220
"""Characters of a text that are shown."""
MARKS = {"right": ("✓", "#1a7f4b"), "wrong": ("✗", "#b3261e"), "partial": ("◐", "#8a5a00")}


class Row(Struct, frozen=True, kw_only=True):
    """A row of a card: its name, and the lines and mark of each column."""

    name: str
    cells: list[tuple[list[str], Answer]]
    wide: bool = False
    """Whether its one cell goes over all columns: the untuned model."""

    @property
    def height(self) -> float:
        """In inches."""
        return max([len(lines) for lines, _ in self.cells] or [1]) * LINE + 2 * PAD


class Layout(Struct, frozen=True, kw_only=True):
    """A card with its text broken into lines."""

    card: Card
    title: str
    about: list[tuple[str, str, str]]
    """Lines beside the picture: text, weight, colour."""
    variants: list[str]
    rows: list[tuple[str, list[Row]]]
    """Title of the model where there are several, and its rows."""

    @property
    def height(self) -> float:
        """In inches, without the gap after it."""
        head = 0.2 + max(PICTURE, len(self.about) * LINE) + 0.08
        heads = (LINE + PAD) * (len(self.variants) > 1) + sum(LINE + PAD for title, _ in self.rows if title)
        return head + heads + sum(row.height for _, rows in self.rows for row in rows)


def draw(frame: "pl.DataFrame", context: Context) -> "Figure":
    """The figure of a study's runs; the long table serves for what is missing."""
    spec = context.spec
    if spec is None or spec.runs is None:
        return empty(context, "the study names no examples to show (gallery)")
    lines = first_seeds(read_lines(spec.runs, read_outcomes(spec.runs, context.results), context.results))
    titles = {model.name: model.title for model in spec.runs.models}
    variants = list(dict.fromkeys(line.variant for line in lines if not line.untuned))
    across = 1 if len(variants) > 2 else 2
    width = (WIDTH - GAP * (across - 1)) / across
    layouts: list[Layout] = []
    for dataset in spec.runs.datasets:
        mine = [line for line in lines if line.outcome.cell.target == dataset.name]
        cards = gallery(mine, titles, context.results, spec.gallery, spec.choose)
        layouts += [_layout(card, _title(dataset.label, mine, spec.runs), variants, width) for card in cards]
    notes = Study(frame).gaps
    if not layouts:
        return empty(context, "no run has answered yet", notes)
    notes = [CHOICES[spec.choose], *notes]
    if not all(layout.card.as_asked for layout in layouts):
        notes.insert(1, NEAREST)
    places, height = _place(layouts, across)
    sheet = Sheet(context.title, WIDTH + 2 * EDGE, height, _legend(layouts), notes)
    for layout, (column, y) in zip(layouts, places, strict=True):
        _draw(sheet, layout, EDGE + column * (width + GAP), y, width, context)
    return sheet.figure


def _place(layouts: Sequence[Layout], across: int) -> tuple[list[tuple[int, float]], float]:
    """Column and top of each card, row by row; cards of one row begin at one height."""
    places = []
    y = 0.05
    for start in range(0, len(layouts), across):
        row = layouts[start : start + across]
        places += [(column, y) for column in range(len(row))]
        y += max(layout.height for layout in row) + GAP
    return places, y - GAP


def _title(label: str, lines: Sequence[Line], runs: TabulateSpec) -> str:
    """The data set, and what the runs were tuned on where that is another one."""
    labels = {dataset.name: dataset.label for dataset in runs.datasets}
    others = {
        labels[line.outcome.cell.dataset]
        for line in lines
        if not line.untuned and line.outcome.cell.dataset != line.outcome.cell.target
    }
    return f"{label}, tuned on {', '.join(sorted(others))}" if others else label


def _layout(card: Card, title: str, variants: list[str], width: float) -> Layout:
    beside = width - PICTURE - 0.12
    about = [(text, "bold", INK) for text in _lines(card.question or card.prompt, beside, bold=True)]
    if card.choices:
        listed = " · ".join(text + (" (right)" if right else "") for text, right in card.choices)
        about += [(text, "normal", INK) for text in _lines(f"Choices: {listed}", beside)]
    given = " · ".join(text + (f" ×{times}" if times > 1 else "") for text, times in card.references)
    about += [(text, "normal", MUTED) for text in _lines(f"Reference: {given}", beside)]
    column = (width - METHOD) / max(1, len(variants))
    groups = []
    for model, methods in card.answers.items():
        rows = []
        for name, answers in methods.items():
            if answers[0].untuned:
                cells = [(_lines(_text(answers[0]), width - METHOD - MARK), answers[0])]
                rows.append(Row(name=name, cells=cells, wide=True))
                continue
            found = {answer.variant: answer for answer in answers}
            there = [found.get(variant) for variant in variants]
            cells = [(_lines(_text(a), column - MARK - 0.06), a) for a in there if a is not None]
            rows.append(Row(name=name, cells=cells))
        groups.append((model if len(card.answers) > 1 else "", rows))
    return Layout(card=card, title=title, about=about, variants=variants, rows=groups)


def _lines(text: str, width: float, bold: bool = False) -> list[str]:
    """Lines of text that fit into a width in inches."""
    text = " ".join(text.split())
    if len(text) > LONGEST:
        text = text[: LONGEST - 2].rstrip() + " …"
    return wrapped(text, width + 2 * EDGE, SIZE * (1.12 if bold else 1.0))


def _text(answer: Answer) -> str:
    if answer.text is None:
        return f"× {answer.status}"
    return (answer.text.strip() or "(empty)") + ("" if answer.finished else " […]")


def _draw(sheet: Sheet, layout: Layout, x: float, y: float, width: float, context: Context) -> None:
    sheet.text(x, y, layout.title, fontsize=8.5, color=INK)
    y += 0.2
    _picture(sheet, layout.card, x, y, context)
    for place, (text, weight, colour) in enumerate(layout.about):
        _say(sheet, x + PICTURE + 0.12, y + place * LINE, text, colour, weight)
    y += max(PICTURE, len(layout.about) * LINE) + 0.08
    column = (width - METHOD) / max(1, len(layout.variants))
    if len(layout.variants) > 1:
        for place, variant in enumerate(layout.variants):
            _say(sheet, x + METHOD + place * column + MARK, y, variant, MUTED)
        y += LINE + PAD
    for model, rows in layout.rows:
        if model:
            _say(sheet, x, y + PAD, model, INK, "bold")
            y += LINE + PAD
        for row in rows:
            _rule(sheet, x, y, width)
            _say(sheet, x, y + PAD, row.name, INK)
            for place, (lines, answer) in enumerate(row.cells):
                left = x + METHOD + (0 if row.wide else place * column)
                _answer(sheet, left, y + PAD, lines, answer)
            y += row.height


def _answer(sheet: Sheet, x: float, y: float, lines: Sequence[str], answer: Answer) -> None:
    sign, colour = MARKS.get(answer.verdict, ("", MUTED))
    if answer.verdict == "graded" and answer.score is not None:
        lines = [*lines[:-1], f"{lines[-1]}  [{answer.score:.0f}]"]
    if sign:
        sheet.text(x, y, sign, fontsize=SIZE + 0.5, color=colour)
    for place, text in enumerate(lines):
        _say(sheet, x + MARK, y + place * LINE, text, MUTED if answer.text is None else INK)


def _say(sheet: Sheet, x: float, y: float, text: str, colour: str, weight: str = "normal") -> None:
    # A dollar sign is no formula here.
    sheet.text(x, y, text, fontsize=SIZE, color=colour, fontweight=weight, parse_math=False)


def _rule(sheet: Sheet, x: float, y: float, width: float) -> None:
    from matplotlib.lines import Line2D

    (left, level), (right, _) = sheet.place(x, y), sheet.place(x + width, y)
    sheet.figure.add_artist(Line2D([left, right], [level, level], color=RULE, linewidth=0.6))


def _picture(sheet: Sheet, card: Card, x: float, y: float, context: Context) -> None:
    axes = sheet.axes(x, y, PICTURE, PICTURE)
    picture: Any = None
    if card.image:
        try:
            picture = load_image(context.results / "images", card.image)
        except UserError:
            cross(axes, "picture missing")
            return
    if picture is None:
        cross(axes, "no picture")
        return
    picture.thumbnail((480, 480))
    axes.imshow(picture, interpolation="none" if min(picture.size) > 100 else "nearest")
    axes.set_anchor("NW")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)


def _legend(layouts: Sequence[Layout]) -> list[Any]:
    """The marks that stand on the figure."""
    from matplotlib.lines import Line2D

    verdicts = {
        answer.verdict
        for layout in layouts
        for _, rows in layout.rows
        for row in rows
        for _, answer in row.cells
    }
    words = {"right": "right", "wrong": "wrong", "partial": "partly right"}
    entries = [
        Line2D([], [], linestyle="none", marker=f"${sign}$", color=colour, markersize=6, label=words[name])
        for name, (sign, colour) in MARKS.items()
        if name in verdicts
    ]
    if "graded" in verdicts:
        entries.append(
            Line2D([], [], linestyle="none", label="[42]  score of an answer, where the metric grades")
        )
    return entries
