"""The verdict on each claim of the paper, on our runs and on the published tables: CSV, Markdown, HTML, figures."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from peftbench.analysis.claims_data import Data, our_data, published_data
from peftbench.analysis.claims_render import claims_html, claims_markdown, printed
from peftbench.analysis.claims_result import Finding
from peftbench.analysis.claims_tests import evaluate
from peftbench.analysis.statistics.diagram import save_ranks
from peftbench.analysis.statistics.result import NotComputable
from peftbench.analysis.style import method_title
from peftbench.canonical import file_sha256
from peftbench.claims_file import test_of
from peftbench.claims_types import Best, Claim, Claims, Difference, Test, Trend
from peftbench.store import atomic_text, atomic_write
from peftbench.views import ClaimsSpec, TabulateSpec

if TYPE_CHECKING:
    import polars as pl

STEM = "claims"
BY_ITEMS = (Difference, Best, Trend)
"""Tests that can take test items as their sample."""
VERDICTS = ("supported", "refuted", "undecided", "not run")


def test_claims(spec: ClaimsSpec, results: Path, out_dir: Path) -> dict[str, Any]:
    """Write ``claims.csv``, ``claims_comparisons.csv``, ``claims.md``, ``claims.html`` and the diagrams to ``out_dir``.

    Returns facts for the marker. Missing runs make claims "not run" and never an error; ``UserError`` where the
    claims do not fit the published tables.
    """
    findings = find(spec, results)
    files: dict[str, Path] = {}
    figures: dict[tuple[str, str, str], str] = {}
    for finding in findings:
        claim = spec.claims.claims[finding.claim]
        test = test_of(finding.claim, claim)
        if not isinstance(test, Best) or not test.figure:
            continue
        for place, comparison in enumerate(finding.comparisons):
            if comparison.ranking is None:
                continue
            stem = f"{STEM}-{finding.claim}-{finding.source}" + (f"-{place + 1}" if comparison.name else "")
            title = f"{'Our runs' if finding.source == 'ours' else 'The paper'}: {', '.join(test.over)}"
            title += f" ({comparison.name})" if comparison.name else ""
            labels = (
                {name: method_title(name) for name in comparison.ranking.methods}
                if test.over == ["method"]
                else {}
            )
            for kind, path in save_ranks(comparison.ranking, title, out_dir, stem, labels).items():
                files[f"{stem}.{kind}"] = path
                if kind == "svg":
                    figures[finding.claim, finding.source, comparison.name] = path.read_text(encoding="utf-8")
    tables = {
        f"{STEM}.csv": summary_frame(spec, findings),
        f"{STEM}_comparisons.csv": comparison_frame(findings),
    }
    for name, frame in tables.items():
        files[name] = out_dir / name
        atomic_write(files[name], frame.write_csv)
    for name, text in (
        (f"{STEM}.md", claims_markdown(spec.claims, findings)),
        (f"{STEM}.html", claims_html(spec.claims, findings, figures)),
    ):
        files[name] = out_dir / name
        atomic_text(files[name], text)
    return {
        "verdicts": {
            source: {v: sum(f.source == source and f.verdict == v for f in findings) for v in VERDICTS}
            for source in ("ours", "paper")
        },
        "outputs": {name: file_sha256(path) for name, path in sorted(files.items())},
    }


test_claims.__test__ = False  # type: ignore[attr-defined]


def find(spec: ClaimsSpec, results: Path) -> list[Finding]:
    """Every claim on our runs, then on the published table where it has one, in the order of the file."""
    studies: dict[str, TabulateSpec] = {study.study: study for study in spec.studies}
    found = []
    for name, claim in spec.claims.claims.items():
        test = test_of(name, claim)
        if claim.study in studies:
            data = our_data(claim, spec.claims, studies[claim.study], results, test.where)
            if isinstance(data, NotComputable):
                found.append(Finding(claim=name, source="ours", verdict="not run", reason=data.reason))
            else:
                found.append(_on_ours(name, claim, test, data, spec.claims))
        else:
            reason = f"there is no study {claim.study}" if claim.study else "our runs do not measure this"
            found.append(Finding(claim=name, source="ours", verdict="not run", reason=reason))
        if claim.published is not None:
            rows = spec.published.get(claim.published.table, [])
            published = published_data(name, claim, spec.claims, rows)
            found.append(evaluate(name, claim, test, published, spec.claims))
    return found


def _on_ours(name: str, claim: Claim, test: Test, data: Data, claims: Claims) -> Finding:
    """The verdict on our runs; where blocks are the sample, with that on these test items beside it."""
    finding = evaluate(name, claim, test, data, claims)
    if test.by == "blocks" and data.items is not None and isinstance(test, BY_ITEMS):
        again = evaluate(name, claim, replace(test, by="items"), data, claims)
        finding = replace(finding, on_items=again.verdict)
    return finding


def summary_frame(spec: ClaimsSpec, findings: Sequence[Finding]) -> "pl.DataFrame":
    """One row per claim and source; effect, interval and p are those of the comparison that speaks least for it."""
    import polars as pl

    rows = []
    for finding in findings:
        claim = spec.claims.claims[finding.claim]
        shown = finding.decisive
        rows.append(
            {
                "claim": finding.claim,
                "place": claim.place,
                "quote": claim.quote,
                "source": finding.source,
                "verdict": finding.verdict,
                "as_printed": printed(finding),
                "on_these_items": finding.on_items,
                "comparison": shown.name if shown else "",
                "effect": shown.effect if shown else None,
                "unit": shown.unit if shown else "",
                "low": shown.low if shown else None,
                "high": shown.high if shown else None,
                "p": shown.p if shown else None,
                "blocks": shown.blocks if shown else None,
                "dropped": shown.dropped if shown else None,
                "runs": finding.runs,
                "missing": finding.missing,
                "scope": finding.scope,
                "reason": finding.reason or (shown.reason if shown else _first_reason(finding)),
                "settle": shown.settle if shown else "",
            }
        )
    return _frame(pl, rows)


def _first_reason(finding: Finding) -> str:
    return next((comparison.reason for comparison in finding.comparisons if comparison.reason), "")


def comparison_frame(findings: Sequence[Finding]) -> "pl.DataFrame":
    """One row per comparison of every claim."""
    import polars as pl

    rows = []
    for finding in findings:
        for c in finding.comparisons:
            row: dict[str, Any] = {"claim": finding.claim, "source": finding.source, "comparison": c.name}
            row |= {"outcome": c.outcome, "holds": None if c.holds is None else str(c.holds).lower()}
            row |= {"effect": c.effect, "unit": c.unit, "low": c.low, "high": c.high, "p": c.p}
            row |= {"blocks": c.blocks, "dropped": c.dropped, "reason": c.reason, "settle": c.settle}
            ranks = (
                ""
                if c.ranking is None
                else "; ".join(
                    f"{m}: {r:.3f}" for m, r in zip(c.ranking.methods, c.ranking.mean_ranks, strict=True)
                )
            )
            rows.append(row | {"mean_ranks": ranks})
    return _frame(pl, rows)


_NUMBERS = ("effect", "low", "high", "p")
_COUNTS = ("blocks", "dropped", "runs", "missing")


def _frame(pl: Any, rows: Sequence[dict[str, Any]]) -> Any:
    if not rows:
        return pl.read_csv(io.StringIO("claim\n"))
    schema = {
        name: pl.Float64 if name in _NUMBERS else pl.Int64 if name in _COUNTS else pl.String
        for name in rows[0]
    }
    return pl.DataFrame(rows, schema=schema, orient="row")
