"""The next batch's files are read and decoded in a thread while the present batch is in use."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from twinflow.data.encoding import Item


class ReadAhead:
    """Items of a map-style data set, all read by one thread.

    An item is a function of its number, so it makes no difference when it is read: what is expected is a guess that
    costs nothing but time if it is wrong. An item that can't be read raises its error where it is asked for.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        self._coming: dict[int, Future[Item]] = {}

    def items(self, rows: Sequence[int]) -> list[Item]:
        """The items of ``rows``, each of its own, those that come twice too."""
        asked = [
            self._coming.pop(row) if row in self._coming else self._reader.submit(self._read, row)
            for row in rows
        ]
        self._forget()
        return [item.result() for item in asked]

    def expect(self, rows: Sequence[int]) -> None:
        """Begin to read ``rows``, which will be asked for next; what was expected before is given up."""
        self._forget()
        self._coming = {row: self._reader.submit(self._read, row) for row in rows}

    def _forget(self) -> None:
        for item in self._coming.values():
            item.cancel()
        self._coming = {}

    def _read(self, row: int) -> Item:
        item: Item = self._dataset[row]
        return item
