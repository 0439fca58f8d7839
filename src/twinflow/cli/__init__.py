"""The ``twinflow`` command. It parses and prints; the work is done by one function below each command."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point: user errors print their message alone and exit with status 2."""
    from twinflow.cli.app import app
    from twinflow.errors import TwinflowError

    try:
        app()
    except TwinflowError as error:
        from rich.console import Console

        Console(stderr=True).print(
            f"[bold red]error:[/] {_escape(str(error))}", soft_wrap=True, highlight=False
        )
        sys.exit(2)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
