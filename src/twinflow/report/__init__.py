"""Reports of evaluations: a self-contained page, a Markdown table, a table for the terminal.

>>> files = write_report(folder, EvaluationTable.load(folder / "table.json"))     # doctest: +SKIP
>>> files.html, files.markdown                                                    # doctest: +SKIP
"""

from twinflow.report.comparison import write_comparison
from twinflow.report.files import ReportFiles, write_report
from twinflow.report.markdown import to_markdown
from twinflow.report.summary import Summary, summarise
from twinflow.report.terminal import print_table

__all__ = [
    "ReportFiles",
    "Summary",
    "print_table",
    "summarise",
    "to_markdown",
    "write_comparison",
    "write_report",
]
