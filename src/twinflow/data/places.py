"""What a batch consists of, as an order of the data says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Places:
    """Rows of the data set, each in its epoch."""

    rows: list[int]
    epochs: list[int]


def check_length(state: Mapping[str, int], length: int) -> None:
    """``ValueError`` if an order's ``state`` is of data of another ``length``: its place would mean other rows."""
    former = int(state.get("length", length))  # earlier checkpoints don't have it
    if former != length:
        raise ValueError(
            f"it was written when the data had {former} rows, and now it has {length}: put the data back, or start a "
            "new run"
        )
