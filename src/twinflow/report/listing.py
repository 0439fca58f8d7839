"""What can be measured, and what it needs: the answer of ``twinflow eval --list``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

if TYPE_CHECKING:
    from twinflow.evaluation.registry import Entry


def print_entries(entries: Mapping[str, Entry], *, console: Console | None = None) -> None:
    """Print each benchmark and measure: what it is, its options, and what must be there before it runs."""
    console = console or Console()
    for kind, title in (
        ("benchmark", "Benchmarks: prompts with a score"),
        ("measure", "Measures: taken on the pictures of the benchmarks beside them, or of --prompts FILE"),
    ):
        chosen = [entry for entry in entries.values() if entry.kind == kind]
        if chosen:
            console.print(f"[bold]{title}[/]\n")
        for entry in chosen:
            console.print(f"  [bold cyan]{entry.name}[/]  {escape(entry.summary)}", highlight=False)
            grid = Table.grid(padding=(0, 2))
            for _ in range(4):
                grid.add_column(overflow="fold")  # an address is of use only as a whole
            for need in entry.requires:
                where = escape(need.source + (f"; a local copy: {need.option}" if need.option else ""))
                grid.add_row("[dim]needs[/]", escape(need.what), f"{need.size}, {need.licence}", where)
            for name, what in entry.options.items():
                grid.add_row("[dim]option[/]", escape(name), "", escape(what))
            console.print(Padding(grid, (0, 0, 1, 4)))
    console.print(
        "Nothing is fetched by this list. Every need can be a local path, and then nothing ever is."
    )
