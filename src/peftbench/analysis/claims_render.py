"""Verdicts as Markdown and HTML, with the look of the tables."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from peftbench.analysis.claims_result import Comparison, Finding
from peftbench.analysis.render import FOLDER, md_text, table_css
from peftbench.claims_types import Claims

FINGERPRINT_FILES = ("claims.html.jinja", "claims.css", "table.css")
SOURCES = {"ours": "our runs", "paper": "the paper's tables"}
LEGEND = (
    "Supported, refuted: the numbers say so beyond their error (two-sided test at the claim's level, "
    "Holm-corrected where there are several comparisons). Undecided: they do not say, however they look. As "
    "printed: whether the bare numbers agree with the sentence, or in how many of the comparisons they do. Effect, "
    "95 % interval and p are those of the comparison that speaks least for the claim. Tests are over blocks (data "
    "sets, models: would it hold on others like these?) or over test items (does it hold on these?); items are "
    "resampled in pairs, images as clusters; a corpus score such as CIDEr by its values per image, with the "
    "document frequencies of the whole reference set. Nothing is corrected for the number of claims. With one "
    "seed, what another seed would change is unknown: it is no part of any interval."
)


def figure(value: float | None) -> str:
    """A number with three digits and a true minus sign; empty for None."""
    if value is None:
        return ""
    text = f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"
    if abs(value) >= 10000 or (value != 0 and abs(value) < 0.005):
        text = f"{value:.2g}"
    return text.replace("-", "−")


def effect(comparison: Comparison | None) -> str:
    """Effect with its interval."""
    if comparison is None or comparison.effect is None:
        return ""
    text = f"{figure(comparison.effect)} {comparison.unit}"
    if comparison.low is not None and comparison.high is not None:
        text += f" [{figure(comparison.low)}, {figure(comparison.high)}]"
    return text


def p_value(comparison: Comparison | None) -> str:
    """p with two digits."""
    if comparison is None or comparison.p is None:
        return ""
    return "< 0.001" if comparison.p < 0.001 else f"{comparison.p:.2g}"


def printed(finding: Finding) -> str:
    """Whether the bare numbers agree with the sentence."""
    known = [c for c in finding.comparisons if c.holds is not None]
    if not known:
        return ""
    if len(known) == 1:
        return "yes" if known[0].holds else "no"
    return f"{finding.holding} of {len(known)}"


def note(finding: Finding) -> str:
    """Why there is no verdict, or what stands behind it."""
    shown = finding.decisive
    parts = [finding.reason]
    if shown is not None:
        parts += [shown.name, shown.reason, shown.settle]
        if shown.dropped:
            parts.append(f"{shown.dropped} incomplete block{'s' if shown.dropped > 1 else ''} left out")
    elif not finding.reason:
        parts.append(next((c.reason for c in finding.comparisons if c.reason), ""))
    if finding.on_items not in ("", "not run"):
        parts.append(f"on these test items: {finding.on_items}")
    if finding.missing and not finding.reason:
        parts.append(f"{finding.missing} of {finding.runs} runs missing")
    return "; ".join(part for part in parts if part)


def counts(findings: Sequence[Finding], source: str) -> str:
    """How many claims have which verdict."""
    mine = [finding.verdict for finding in findings if finding.source == source]
    words = ("supported", "refuted", "undecided", "not run")
    return ", ".join(f"{mine.count(word)} {word}" for word in words if mine.count(word))  # type: ignore[arg-type]


def claims_markdown(claims: Claims, findings: Sequence[Finding]) -> str:
    """A table per source of numbers, with the legend below."""
    lines = [f"# {md_text(claims.title)}", ""]
    for source, title in SOURCES.items():
        mine = [finding for finding in findings if finding.source == source]
        if not mine:
            continue
        lines += [f"## On {title}: {counts(findings, source)}", ""]
        lines.append(
            _row(["Claim", "Place", "Verdict", "As printed", "Effect [95 %]", "p", "Blocks", "Note"])
        )
        lines.append(_row([":--", ":--", ":--", ":--", "--:", "--:", "--:", ":--"]))
        for finding in mine:
            claim, shown = claims.claims[finding.claim], finding.decisive
            cells = [f"“{claim.quote}” ({finding.claim})", claim.place, finding.verdict, printed(finding)]
            cells += [effect(shown), p_value(shown), str(shown.blocks) if shown else "", note(finding)]
            row = [md_text(cell) for cell in cells]
            row[2] = f"**{row[2]}**" if finding.verdict in ("supported", "refuted") else row[2]
            lines.append(_row(row))
        lines.append("")
    return "\n".join([*lines, LEGEND, ""])


def claims_html(
    claims: Claims, findings: Sequence[Finding], figures: Mapping[tuple[str, str, str], str]
) -> str:
    """A page of its own that opens from disk; ``figures``: SVG by claim, source and comparison."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        effect=effect, p_value=p_value, printed=printed, note=note, figure=figure, counts=counts
    )
    by_claim: dict[str, dict[str, Finding]] = {}
    for finding in findings:
        by_claim.setdefault(finding.claim, {})[finding.source] = finding
    css = table_css() + (FOLDER / "claims.css").read_text(encoding="utf-8")
    drawn = {key: Markup(_inline(svg)) for key, svg in figures.items()}
    text: str = environment.get_template("claims.html.jinja").render(
        claims=claims,
        by_claim=by_claim,
        findings=findings,
        figures=drawn,
        sources=SOURCES,
        legend=LEGEND,
        css=Markup(css),
    )
    return text


def _inline(svg: str) -> str:
    """An SVG file without its prologue, to stand in a page; ids made unique by matplotlib's hash salt."""
    return svg[svg.index("<svg") :]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
