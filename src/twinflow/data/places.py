"""What a batch consists of, as an order of the data says it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Places:
    """Rows of the data set, each in its epoch."""

    rows: list[int]
    epochs: list[int]
