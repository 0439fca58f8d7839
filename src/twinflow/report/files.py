"""Write the report of an evaluation into its folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twinflow.errors import TwinflowError
from twinflow.evaluation.protocols import join_tables
from twinflow.evaluation.results import EvaluationRow, EvaluationTable
from twinflow.report.losses import Curve, read_losses
from twinflow.report.markdown import markdown_report
from twinflow.report.page import render_page

DEFAULT_TITLE = "One step against many"
TABLE = "table.json"


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
    pictures: Path | None = None,
) -> ReportFiles:
    """Write ``report.html`` and ``report.md`` into ``folder``.

    Pictures named by the table's rows are looked for relative to ``pictures``, which is ``folder`` unless said; one
    that is missing leaves a gap. ``losses``: a run's name -> its ``metrics.jsonl``. ``facts``: what else a reader
    should know, such as the training time, by name. Raises ``ValueError`` for a table without rows.
    """
    folder = Path(folder)
    curves: dict[str, dict[str, Curve]] = {name: read_losses(path) for name, path in (losses or {}).items()}
    facts = dict(facts or {})
    page = render_page(Path(pictures or folder), table, title=title, losses=curves, facts=facts)
    text = markdown_report(table, title=title, facts=facts)
    files = ReportFiles(html=folder / "report.html", markdown=folder / "report.md")
    folder.mkdir(parents=True, exist_ok=True)
    files.html.write_text(page, encoding="utf-8")
    files.markdown.write_text(text, encoding="utf-8")
    return files


def joined(folders: Sequence[Path], *, mixed: bool = False) -> tuple[EvaluationTable, Path]:
    """The tables of evaluations as one, and the folder that its pictures are relative to. A folder counts once.

    ``TwinflowError`` for a folder without a table, and for tables of different protocols unless ``mixed``.
    """
    folders = list({folder.resolve(): folder for folder in folders}.values())
    tables = []
    for folder in folders:
        file = folder / TABLE
        if not file.is_file():
            inside = sorted(path.parent.name for path in folder.glob(f"*/{TABLE}"))
            hint = f"; there is one in {', '.join(inside)} inside it" if inside else ""
            raise TwinflowError(
                f"there is no evaluation in {folder}: {TABLE} is missing; run `twinflow eval` first{hint}"
            )
        tables.append(EvaluationTable.load(file))
    if len(folders) == 1:
        return tables[0], folders[0]
    home = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    moved = [
        replace(
            table, rows=[_moved(row, folder.resolve().relative_to(home).as_posix()) for row in table.rows]
        )
        for table, folder in zip(tables, folders)
    ]
    return join_tables(moved, mixed=mixed), home


def _moved(row: EvaluationRow, prefix: str) -> EvaluationRow:
    """The row with its pictures named from a folder further up."""

    def entries(found: list[dict]) -> list[dict]:
        return [entry | {"file": f"{prefix}/{entry['file']}", "home": prefix} for entry in found]

    return replace(row, samples=entries(row.samples), failures=entries(row.failures))
