"""Order of the training data: shuffled anew every epoch, split over processes, exactly resumable."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twinflow.conditions import concat_rows, take_rows, to_device
from twinflow.data.buckets import BucketedOrder
from twinflow.data.encoding import EncodedBatch, Encoder, ItemEncoder, choose_caption, collate
from twinflow.data.places import Places, check_length
from twinflow.data.read_ahead import ReadAhead
from twinflow.data.rows import CachedExamples, MemoryRows, encode_rows
from twinflow.data.stream import StreamDataset, StreamOrder
from twinflow.data.team import Alone, Team, in_turns


class ShuffledOrder:
    """An endless stream of row numbers: one permutation of the data set after another.

    The permutation is a function of (seed, epoch). All processes read the same stream; in a step they take
    adjoining slices of it, so no row is seen twice in an epoch and none is dropped, whatever the batch size. A
    batch may span two epochs. The position is one number, so the number of processes may change on resume.
    """

    def __init__(self, length: int, *, batch: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if length < 1 or batch < 1:
            raise ValueError(f"length and batch must be at least 1, got {length} and {batch}")
        self.length, self.batch, self.seed = length, batch, seed
        self.rank, self.world_size = rank, world_size
        self.rows = 0  # taken so far, by all processes together
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    @property
    def epoch(self) -> int:
        return self.rows // self.length

    def next_places(self) -> Places:
        """This process's next ``batch`` rows."""
        start = self.rows + self.rank * self.batch
        self.rows += self.world_size * self.batch
        places = range(start, start + self.batch)
        return Places(rows=[self._row(i) for i in places], epochs=[i // self.length for i in places])

    def next_rows(self) -> list[int]:
        """Their numbers alone."""
        return self.next_places().rows

    def _row(self, place: int) -> int:
        epoch, position = divmod(place, self.length)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._epoch, self._permutation = epoch, rng.permutation(self.length)
        return int(self._permutation[position])

    def state_dict(self) -> dict[str, int]:
        return {"rows": self.rows, "length": self.length}

    def load_state_dict(self, state: dict[str, int]) -> None:
        check_length(state, self.length)
        self.rows = int(state["rows"])


class Loader:
    """Batches of a map-style data set in the order of :class:`ShuffledOrder`: dicts of stacked tensors and lists."""

    def __init__(self, dataset: Any, order: ShuffledOrder) -> None:
        self.dataset, self.order = dataset, order

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> dict[str, Any]:
        return collate([self.dataset[row] for row in self.order.next_rows()])


class OnlineExamples:
    """Examples that are read and encoded each time they are used, ``together`` at a time (all, if ``None``).

    Those that :meth:`expect` names are read, but not encoded, in a thread.
    """

    def __init__(
        self,
        dataset: Any,
        encoder: Encoder,
        *,
        unconditional: str | None = None,
        seed: int = 0,
        together: int | None = None,
        guided: bool = True,
    ) -> None:
        self.dataset, self.seed, self.unconditional = dataset, seed, unconditional
        self.guided = guided  # whether batches need unconditional conditions
        self._encoder = ItemEncoder(encoder, unconditional=unconditional, together=together or sys.maxsize)
        self._ahead = None if isinstance(dataset, StreamDataset) else ReadAhead(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def captions(self, rows: Sequence[int]) -> list[str]:
        return [self.dataset[row]["caption"] for row in rows]

    @torch.no_grad()
    def batch(
        self, rows: Sequence[int], dropped: Tensor | None = None, *, epochs: Sequence[int] | None = None
    ) -> EncodedBatch:
        """Rows of the data set, each in its epoch; where ``dropped`` (B,) is true with the unconditional prompt."""
        items = [self.dataset[row] for row in rows] if self._ahead is None else self._ahead.items(rows)
        captions = [
            choose_caption(item, seed=self.seed, epoch=epoch, row=row)
            for item, row, epoch in zip(items, rows, epochs or [0] * len(items), strict=True)
        ]
        if dropped is not None:
            captions = [
                str(self.unconditional) if drop else caption
                for caption, drop in zip(captions, dropped.tolist(), strict=True)
            ]
        return self._encoder.batch(items, captions, guided=self.guided)

    def expect(self, order: Order) -> None:
        """Begin to read what ``order`` gives next. Streamed rows are read by their order, not here."""
        if self._ahead is not None and not isinstance(order, StreamOrder):
            self._ahead.expect(coming_rows(order))


class LatentCache:
    """Examples of which every picture, and every distinct caption, was encoded once; kept in memory, of the host.

    For data of one picture size and one caption a picture, without source pictures.
    """

    def __init__(
        self,
        latents: Tensor,
        caption_ids: Tensor,
        captions: list[str],
        conditions: Any,
        *,
        unconditional: str | None = None,
    ) -> None:
        self.unconditional = unconditional
        self.latents = latents  # (N, …)
        self.caption_ids = caption_ids  # (N,) int64: rows of captions and conditions
        self._captions = captions  # distinct; the last is the unconditional prompt, where there is one
        self.conditions = conditions

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        dataset: Any,
        encoder: Encoder,
        *,
        unconditional: str | None = None,
        batch: int = 64,
        progress: Callable[[int, int], None] | None = None,
        team: Team | None = None,
    ) -> LatentCache:
        """Encode all of ``dataset``, ``batch`` examples at a time; ``progress(done, total)`` after each. The processes
        of ``team`` encode a part each."""
        total, team = len(dataset), team or Alone()
        items_of = ItemEncoder(encoder, unconditional=unconditional, together=batch)
        latents: Tensor | None = None
        ids: dict[str, int] = {}
        caption_ids = torch.empty(total, dtype=torch.int64)

        def encoded(start: int) -> tuple[Tensor, list[str]]:
            items = [dataset[row] for row in range(start, min(start + batch, total))]
            return items_of.latents(items).cpu(), [item["caption"] for item in items]

        done = 0
        for some, said in in_turns(range(0, total, batch), encoded, team):
            if latents is None:  # filled in place: joining a list would need twice the memory
                latents = some.new_empty((total, *some.shape[1:]))
            latents[done : done + len(some)] = some
            caption_ids[done : done + len(some)] = torch.tensor([ids.setdefault(c, len(ids)) for c in said])
            done += len(some)
            if progress is not None:
                progress(done, total)
        if latents is None:
            raise ValueError("the data set is empty")
        captions = list(ids)
        if unconditional is not None:
            captions.append(unconditional)
        first = dataset[0]

        def read(start: int) -> list[Any]:
            some = captions[start : start + batch]
            groups = items_of.conditions([first] * len(some), some)
            return [to_device(group, torch.device("cpu")) for group in groups]

        read_groups = in_turns(range(0, len(captions), batch), read, team)
        conditions = concat_rows([group for groups in read_groups for group in groups])
        return cls(latents, caption_ids, captions, conditions, unconditional=unconditional)

    def __len__(self) -> int:
        return len(self.caption_ids)

    def captions(self, rows: Sequence[int]) -> list[str]:
        return [self._captions[i] for i in self.caption_ids[list(rows)].tolist()]

    def batch(
        self, rows: Sequence[int], dropped: Tensor | None = None, *, epochs: Sequence[int] | None = None
    ) -> EncodedBatch:
        """As :meth:`OnlineExamples.batch`."""
        picked = torch.as_tensor(rows)
        ids = self.caption_ids[picked]
        if dropped is not None:
            ids = torch.where(dropped, len(self._captions) - 1, ids)
        last = torch.tensor([len(self._captions) - 1])
        return EncodedBatch(
            x=self.latents[picked.to(self.latents.device)],
            cond=take_rows(self.conditions, ids),
            uncond=take_rows(self.conditions, last) if self.unconditional is not None else None,
        )


Examples = OnlineExamples | LatentCache | CachedExamples
Order = ShuffledOrder | BucketedOrder | StreamOrder


def coming_rows(order: ShuffledOrder | BucketedOrder) -> list[int]:
    """The rows that ``order`` gives next. It stays where it is, and so does a checkpoint that is written now."""
    place = order.state_dict()
    rows = order.next_rows()
    order.load_state_dict(place)
    return rows


def order_of(dataset: Any, *, batch: int, seed: int, rank: int = 0, world_size: int = 1) -> Order:
    """The order that the rows of ``dataset`` come in: batches of one size, if it has several."""
    if isinstance(dataset, StreamDataset):
        return StreamOrder(dataset, batch=batch, seed=seed, rank=rank, world_size=world_size)
    buckets: Sequence[int] = getattr(dataset, "bucket_of", ())
    if len(set(buckets)) > 1:
        return BucketedOrder(buckets, batch=batch, seed=seed, rank=rank, world_size=world_size)
    return ShuffledOrder(len(dataset), batch=batch, seed=seed, rank=rank, world_size=world_size)


def row_of_each_size(dataset: Any) -> list[int]:
    """The number of a row of each size that the rows of ``dataset`` have."""
    buckets: Sequence[int] = getattr(dataset, "bucket_of", ())
    return list({bucket: row for row, bucket in enumerate(buckets)}.values()) or [0]


def cached_in_memory(
    dataset: Any,
    encoder: Encoder,
    *,
    unconditional: str | None = None,
    seed: int = 0,
    together: int = 1,
    progress: Callable[[int, int], None] | None = None,
    team: Team | None = None,
) -> Examples:
    """All of ``dataset`` encoded, ``together`` rows at a time, and held in memory; by each process of ``team`` a part,
    which all get."""
    if team is not None and team.world_size > 1:
        # Of a size that it has not seen yet a pipeline asks its network, whose weights one process may have alone: all
        # ask together, before each encodes rows of its own.
        once = ItemEncoder(encoder, unconditional=unconditional)
        for row in row_of_each_size(dataset):
            encode_rows([dataset[row]], once)
    plain = not hasattr(dataset, "bucket_of")  # as are data sets of one size and one caption a picture
    if plain and dataset[0].keys() == {"pixels", "caption"}:
        return LatentCache.of(
            dataset, encoder, unconditional=unconditional, batch=together, progress=progress, team=team
        )
    items_of = ItemEncoder(encoder, unconditional=unconditional, together=together)
    rows = MemoryRows.of(dataset, items_of, progress=progress, team=team)
    return CachedExamples(rows, seed=seed)
