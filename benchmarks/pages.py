"""Tables of results in the pages of the documentation, between ``<!-- name -->`` and ``<!-- /name -->``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, one text for each cell."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fill(page: Path, **texts: str) -> None:
    """Put each text where ``page`` has its marks, in the place of what is there."""
    content = page.read_text(encoding="utf-8")
    for name, text in texts.items():
        before, rest = content.split(f"<!-- {name} -->", 1)
        _, after = rest.split(f"<!-- /{name} -->", 1)
        content = f"{before}<!-- {name} -->\n{text}\n<!-- /{name} -->{after}"
    page.write_text(content, encoding="utf-8")
