"""Pieces of the page that every section is made of."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from twinflow import __version__
from twinflow.report.style import STYLE
from twinflow.report.text import protocol_name

# The page may show what it carries, and nothing else: no script, no font, no request.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, body: str) -> str:
    """The page around ``body``, which is HTML."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{body}</main>
<footer>Written by twinflow {escape(__version__)}</footer>
</body>
</html>
"""


def section(title: str, body: str, *, note: str = "", name: str = "") -> str:
    note = f'<p class="note">{note}</p>\n' if note else ""
    return f'<section class="{name}">\n<h2>{escape(title)}</h2>\n{note}{body}</section>\n'


def figure(title: str, svg: str) -> str:
    return f'<figure class="plot"><figcaption>{escape(title)}</figcaption>\n{svg}</figure>\n'


def definitions(values: Mapping[str, Any]) -> str:
    items = "".join(
        f"<div><dt>{escape(protocol_name(str(key)))}</dt><dd>{_value(str(key), value)}</dd></div>\n"
        for key, value in values.items()
    )
    return f"<dl>\n{items}</dl>\n"


def _value(key: str, value: Any) -> str:
    text = escape(str(value))
    return f"<code>{text}</code>" if key == "command" else text
