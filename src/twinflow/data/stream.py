"""Data that is read from its shards in turn, never held as a whole: order, split over processes, exact resume."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twinflow.data.buckets import Buckets
from twinflow.data.encoding import Item
from twinflow.data.folder import OnError
from twinflow.data.places import Places
from twinflow.data.shards import Table
from twinflow.data.table import Columns, RowReader
from twinflow.errors import TwinflowError

OWN_STATE_BYTES = 65536  # the state of one process, of the same length in all
logger = logging.getLogger(__name__)


class StreamDataset:
    """A streamed table. It has no length, and its rows come in the order of :class:`StreamOrder` alone.

    ``window``: how many successive rows are shuffled among themselves; they are held as they are stored.
    """

    def __init__(
        self,
        table: Table,
        *,
        size: int | tuple[int, int],
        columns: Columns | None = None,
        on_error: OnError = "raise",
        pictures: bool = True,
        window: int = 1000,
    ) -> None:
        self.table, self.on_error, self.window = table, on_error, window
        self.reader = RowReader.of(
            table, columns=columns or Columns(), buckets=Buckets.fixed(size), pictures=pictures
        )
        self.drawn: dict[int, Item] = {}  # by number: what the order has drawn last

    def __getitem__(self, index: int) -> Item:
        return self.drawn[index]


class StreamOrder:
    """An endless stream of the rows of a :class:`StreamDataset`, in one process of ``world_size``.

    In every epoch the shards come in another order. Their number is a multiple of that of the processes: each
    process reads shards of its own; otherwise each reads all and takes every ``world_size``-th row. Blocks of
    ``window`` successive rows of a process are shuffled by (seed, epoch, rank, block). So every row comes once an
    epoch; processes whose shards are shorter begin their next epoch sooner.

    The state is the place where the present block begins, as ``datasets`` says it, and how much of the block is
    used: a resume reads the block again, and goes on as if nothing had been. Each process has its own, so their
    number must stay the same.
    """

    def __init__(
        self, dataset: StreamDataset, *, batch: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.dataset, self.batch, self.seed = dataset, batch, seed
        self.rank, self.world_size = rank, world_size
        self.shards: int = dataset.table.rows.num_shards
        self.epoch, self._block = 0, 0  # of the rows in self._rows
        self._start: dict[str, Any] = {"turn": 0, "state": None, "read": 0}  # where the block begins
        self._rows: list[Any] | None = None  # the block, shuffled
        self._used = 0  # of its rows
        self.taken = 0  # rows that this process has drawn so far
        self._reader: Iterator[Any] | None = None
        self._at: dict[str, Any] = dict(self._start)  # where the reader stands
        self._shard: Any = None

    def next_places(self) -> Places:
        """This process's next ``batch`` rows, numbered in the order of their coming."""
        drawn: dict[int, Item] = {}
        epochs: list[int] = []
        begun = self.epoch
        while len(drawn) < self.batch:
            epoch, row = self._next_row()
            if epoch > (epochs[-1] if epochs else begun) + 1:
                raise TwinflowError(f"{self.dataset.table.name} has no usable row in a whole epoch")
            try:
                item = self.dataset.reader.item(row)
            except ValueError as error:
                self._refuse_or_log(error)
                continue
            drawn[self.taken] = item
            epochs.append(epoch)
            self.taken += 1
        self.dataset.drawn = drawn
        return Places(rows=list(drawn), epochs=epochs)

    def check(self) -> None:
        """:class:`TwinflowError` if there is no row for this process; reads the first one alone."""
        if next(self._read(), None) is None:
            raise TwinflowError(self._nothing_here())
        self._shard, self._at = None, dict(self._start)

    def _nothing_here(self) -> str:
        return (
            f"{self.dataset.table.name} has no row for process {self.rank} of {self.world_size}: it has fewer rows "
            "than there are processes, or a shard without any. Start fewer (--nproc-per-node), or set "
            "data.streaming to false"
        )

    def next_rows(self) -> list[int]:
        return self.next_places().rows

    def _refuse_or_log(self, error: ValueError) -> None:
        name = self.dataset.table.name
        if self.dataset.on_error == "raise":
            raise TwinflowError(
                f'{name}: a row cannot be used: {error}. Put it right, or leave such rows out with on_error="skip".'
            ) from error
        logger.warning("%s: left out a row: %s", name, error)

    def _next_row(self) -> tuple[int, Any]:
        if self._rows is None:
            self._fill()
        empty_epochs = 0
        while self._rows is not None and self._used >= len(self._rows):
            last_of_epoch, was_empty = (
                len(self._rows) < self.dataset.window,
                not self._rows and self._block == 0,
            )
            if last_of_epoch:
                empty_epochs += was_empty
                if empty_epochs > 1:
                    raise TwinflowError(self._nothing_here())
                self.epoch, self._block = self.epoch + 1, 0
                self._reader, self._at = None, {"turn": 0, "state": None, "read": 0}
            else:
                self._block += 1
            self._start, self._used = self._position(), 0
            self._fill()
        assert self._rows is not None
        self._used += 1
        return self.epoch, self._rows[self._used - 1]

    def _fill(self) -> None:
        """Read the block that begins where the reader stands, and shuffle it."""
        if self._reader is None:
            self._reader = self._read()
        rows = []
        try:
            for row in self._reader:
                rows.append(row)
                if len(rows) == self.dataset.window:
                    break
        except Exception as error:  # readers raise whatever a broken shard leads them to
            place, reason = self._where(), f"{type(error).__name__}: {error}"
            if isinstance(place, Path):
                reason = self.dataset.table.why_unreadable(place, error)
            raise TwinflowError(
                f"{self.dataset.table.name}: {place} cannot be read ({reason}): "
                "replace it, or read the table with streaming: false and on_error: skip, which leaves it out"
            ) from error
        rng = np.random.default_rng([self.seed, self.epoch, self.rank, self._block])
        self._rows = [rows[i] for i in rng.permutation(len(rows))]

    def _shard_order(self) -> list[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.shards).tolist()
        return order[self.rank :: self.world_size] if self._by_shards else order

    @property
    def _by_shards(self) -> bool:
        return self.shards % self.world_size == 0

    def _where(self) -> Path | str:
        """The shard that is being read."""
        order, files = self._shard_order(), self.dataset.table.files
        number = order[min(self._at["turn"], len(order) - 1)]
        return files[number] if len(files) == self.shards else f"shard {number}"

    def _read(self) -> Iterator[Any]:
        """This process's rows of the epoch, from ``self._at`` on."""
        order = self._shard_order()
        for turn in range(self._at["turn"], len(order)):
            self._shard = self.dataset.table.rows.shard(num_shards=self.shards, index=order[turn])
            if self._at["state"] is not None:
                self._shard.load_state_dict(self._at["state"])
            self._at = {**self._at, "turn": turn, "state": None}
            for row in self._shard:
                number = self._at["read"]
                self._at["read"] = number + 1
                if self._by_shards or number % self.world_size == self.rank:
                    yield row
            self._shard = None
        self._at = {**self._at, "turn": len(order), "state": None}

    def _position(self) -> dict[str, Any]:
        """Where the reader stands."""
        state = None if self._shard is None or self._reader is None else self._shard.state_dict()
        return {**self._at, "state": state}

    # State: what is the same in all processes, and what is each one's own

    def state_dict(self) -> dict[str, int]:
        return {"world_size": self.world_size, "shards": self.shards}

    def load_state_dict(self, state: dict[str, int]) -> None:
        for key, own in self.state_dict().items():
            if state[key] != own:
                raise ValueError(
                    f"streamed data goes on with the {key} that it was stopped with, {state[key]}, got {own}"
                )

    def own_state(self) -> Tensor:
        """This process's place, as bytes of JSON."""
        state = {
            "epoch": self.epoch,
            "block": self._block,
            "start": self._start,
            "used": self._used,
            "taken": self.taken,
        }
        text = json.dumps(state).encode().ljust(OWN_STATE_BYTES)
        if len(text) > OWN_STATE_BYTES:
            raise ValueError(f"the state of the stream has {len(text)} bytes, more than {OWN_STATE_BYTES}")
        return torch.frombuffer(bytearray(text), dtype=torch.uint8)

    def load_own_state(self, own: Tensor) -> None:
        state = json.loads(bytes(own.cpu().tolist()))
        self.epoch, self._block, self.taken = state["epoch"], state["block"], state["taken"]
        self._start = self._at = state["start"]
        self._at = dict(self._start)
        self._reader, self._shard, self._rows = None, None, None
        self._fill()
        self._used = state["used"]
