"""Rows of a data set that were encoded once: in memory, or in the shards of a cache folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from twinflow.conditions import concat_rows, count_rows, take_rows, to_device
from twinflow.data.encoding import EncodedBatch, Item, ItemEncoder, caption_number, item_sides
from twinflow.data.team import Alone, Team, in_turns


@dataclass(kw_only=True)
class EncodedRow:
    """All that training needs of one row of a data set, whichever caption is chosen or dropped."""

    x: Tensor  # (1, …) latents; zeros where there are prompts alone
    conds: list[Any]  # one for each caption, of one row
    uncond: Any  # of one row; None if there is no unconditional prompt
    captions: tuple[str, ...]
    own_uncond: (
        bool  # whether it has the row's source picture, rather than being that of all rows of this size
    )


class Rows(Protocol):
    """Encoded rows by number."""

    def __len__(self) -> int: ...

    def row(self, index: int, *, number: int | None = None) -> EncodedRow:
        """``number``: that of the only caption whose condition is needed."""
        ...

    def captions(self, index: int) -> tuple[str, ...]: ...


@torch.no_grad()
def encode_rows(items: Sequence[Item], encoder: ItemEncoder) -> list[EncodedRow]:
    """The items, of any sizes, ``encoder.together`` of one size in a call."""
    rows: list[EncodedRow | None] = [None] * len(items)
    sizes: dict[Any, list[int]] = {}
    for place, item in enumerate(items):
        sizes.setdefault(item_sides(item), []).append(place)
    for places in sizes.values():
        alike = [items[place] for place in places]
        x = encoder.latents(alike)
        captions = [tuple(item.get("captions") or (item["caption"],)) for item in alike]
        repeated = [item for item, own in zip(alike, captions, strict=True) for _ in own]
        conds = _singles(encoder.conditions(repeated, [caption for own in captions for caption in own]))
        own_uncond = "source" in alike[0] and encoder.unconditional is not None
        if own_uncond:
            unconds = _singles(encoder.conditions(alike, [str(encoder.unconditional)] * len(alike)))
        else:
            unconds = iter([encoder.uncond(alike)] * len(alike))
        for k, place in enumerate(places):
            rows[place] = EncodedRow(
                x=x[k : k + 1],
                conds=[next(conds) for _ in captions[k]],
                uncond=next(unconds),
                captions=captions[k],
                own_uncond=own_uncond,
            )
    return [row for row in rows if row is not None]


def _singles(groups: list[Any]) -> Iterator[Any]:
    """The rows of conditions of several rows, one by one."""
    for group in groups:
        count = count_rows(group) or 1
        for i in range(count):
            yield group if count == 1 else take_rows(group, torch.tensor([i]))


def on_host(row: EncodedRow, unconds: dict[int, Any]) -> EncodedRow:
    """``row`` in memory of the host, in its own. ``unconds``: those that rows share, which their encoder keeps, by
    identity."""
    host = torch.device("cpu")
    conds = [to_device(cond, host) for cond in row.conds]
    if row.own_uncond:
        uncond = to_device(row.uncond, host)
    else:
        if id(row.uncond) not in unconds:
            unconds[id(row.uncond)] = to_device(row.uncond, host)
        uncond = unconds[id(row.uncond)]
    return replace(row, x=row.x.to(host, copy=True), conds=conds, uncond=uncond)


class MemoryRows:
    """Rows that are held in memory, of the host."""

    def __init__(self, rows: list[EncodedRow]) -> None:
        self._rows = rows

    @classmethod
    def of(
        cls,
        dataset: Any,
        encoder: ItemEncoder,
        *,
        progress: Callable[[int, int], None] | None = None,
        together: int = 64,
        team: Team | None = None,
    ) -> MemoryRows:
        """Encode all of ``dataset``; ``progress(done, total)`` after each group of ``together`` rows. The processes of
        ``team`` encode a part each."""
        rows: list[EncodedRow] = []
        unconds: dict[int, Any] = {}

        def encoded(start: int) -> list[EncodedRow]:
            items = [dataset[i] for i in range(start, min(start + together, len(dataset)))]
            return [on_host(row, unconds) for row in encode_rows(items, encoder)]

        for group in in_turns(range(0, len(dataset), together), encoded, team or Alone()):
            rows += group
            if progress is not None:
                progress(len(rows), len(dataset))
        return cls(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int, *, number: int | None = None) -> EncodedRow:
        return self._rows[index]

    def captions(self, index: int) -> tuple[str, ...]:
        return self._rows[index].captions


class CachedExamples:
    """Examples of encoded rows; the batches are those of :class:`twinflow.data.loader.OnlineExamples`."""

    def __init__(self, rows: Rows, *, seed: int = 0) -> None:
        self.rows, self.seed = rows, seed

    def __len__(self) -> int:
        return len(self.rows)

    def captions(self, rows: Sequence[int]) -> list[str]:
        return [self.rows.captions(row)[0] for row in rows]

    def batch(
        self, rows: Sequence[int], dropped: Tensor | None = None, *, epochs: Sequence[int] | None = None
    ) -> EncodedBatch:
        """As :meth:`twinflow.data.loader.OnlineExamples.batch`."""
        encoded, conds = [], []
        for place, row in enumerate(rows):
            captions, epoch = self.rows.captions(row), epochs[place] if epochs else 0
            number = caption_number(len(captions), seed=self.seed, epoch=epoch, row=row)
            one = self.rows.row(row, number=number)
            drop = dropped is not None and bool(dropped[place])
            encoded.append(one)
            conds.append(one.uncond if drop else one.conds[number])
        uncond = encoded[0].uncond
        if uncond is not None and encoded[0].own_uncond:
            uncond = concat_rows([one.uncond for one in encoded])
        return EncodedBatch(x=torch.cat([one.x for one in encoded]), cond=concat_rows(conds), uncond=uncond)
