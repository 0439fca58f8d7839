"""Write the report of an evaluation into its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinflow.evaluation.results import EvaluationTable
from twinflow.report.losses import Curve, read_losses
from twinflow.report.markdown import markdown_report
from twinflow.report.page import render_page

DEFAULT_TITLE = "One step against many"


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    html: Path  # self-contained: pictures, plots and style are inside
    markdown: Path


def write_report(
    folder: Path,
    table: EvaluationTable,
    *,
    losses: Mapping[str, Path] | None = None,
    title: str = DEFAULT_TITLE,
    facts: Mapping[str, Any] | None = None,
) -> ReportFiles:
    """Write ``report.html`` and ``report.md`` into ``folder``.

    Pictures named by the table's rows are looked for relative to ``folder``; one that is missing leaves a gap.
    ``losses``: a run's name -> its ``metrics.jsonl``. ``facts``: what else a reader should know, such as the
    training time, by name. Raises ``ValueError`` for a table without rows.
    """
    folder = Path(folder)
    curves: dict[str, dict[str, Curve]] = {name: read_losses(path) for name, path in (losses or {}).items()}
    facts = dict(facts or {})
    page = render_page(folder, table, title=title, losses=curves, facts=facts)
    text = markdown_report(table, title=title, facts=facts)
    files = ReportFiles(html=folder / "report.html", markdown=folder / "report.md")
    folder.mkdir(parents=True, exist_ok=True)
    files.html.write_text(page, encoding="utf-8")
    files.markdown.write_text(text, encoding="utf-8")
    return files
