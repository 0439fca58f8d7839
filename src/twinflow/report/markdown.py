"""The report as Markdown: a headline, one table, the protocol."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

from twinflow.evaluation.results import EvaluationTable
from twinflow.report.columns import cells, score_columns
from twinflow.report.summary import summarise
from twinflow.report.text import kid_note, nfe_text, protocol_name, row_name

_SPECIAL = re.compile(r"([\\`*_\[\]|#~$])")


def escape(text: Any) -> str:
    """``text`` as plain words on one line of Markdown."""
    return _SPECIAL.sub(r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def to_markdown(table: EvaluationTable) -> str:
    """All rows of ``table`` as one Markdown table. The best of each score column is bold."""
    columns = score_columns(table)
    lines = [
        "| Model | NFE | " + " | ".join(escape(column.title) for column in columns) + " |",
        "|---|---:|" + "---:|" * len(columns),
    ]
    for row in table.rows:
        texts = []
        for cell in cells(columns, row, table.rows):
            text = f"**{cell.text}**" if cell.best else cell.text
            texts.append(f"{text} ± {cell.error}" if cell.error else text)
        lines.append(f"| {escape(row.model)} | {nfe_text(row)} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def markdown_report(table: EvaluationTable, *, title: str, facts: Mapping[str, Any]) -> str:
    summary = summarise(table)
    lines = [
        f"# {escape(title)}",
        "",
        f"**{escape(summary.headline)}** {escape(summary.details)}",
        "",
        to_markdown(table),
        *(f"> **{escape(note)}**\n" for note in table.notes),
        f"± is half of the 95 % interval{kid_note(table.rows)}. Speed-up is against {escape(row_name(summary.base))}.",
        "",
    ]
    for name, values in (("This run", facts), ("Protocol", table.protocol)):
        if values:
            lines += [f"## {name}", ""]
            lines += [
                f"- {escape(protocol_name(str(key)))}: {escape(value)}" for key, value in values.items()
            ]
            lines.append("")
    return "\n".join(lines)
