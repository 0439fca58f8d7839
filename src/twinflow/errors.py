"""Errors that speak to users."""

from __future__ import annotations

import os
from pathlib import Path


class TwinflowError(Exception):
    """Something the user can put right; the message names the value and the remedy.

    The command line prints the message alone and exits with status 2.
    """


def check_place(path: str | Path, *, name: str) -> None:
    """:class:`TwinflowError` if ``path`` can be no folder to write to; ``name`` is what the user calls it."""
    wanted = Path(path)
    existing = next(place for place in (wanted, *wanted.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise TwinflowError(f"{name} {str(path)!r}: {existing} is a file. Name another folder")
    if not os.access(existing, os.W_OK):
        raise TwinflowError(
            f"{name} {str(path)!r}: {existing} can't be written to. Name another folder, or see to its permissions"
        )
