"""From the items of a data set to what an objective trains on: latents and conditions.

An item is ``{"pixels": (3, H, W) or (3, T, H, W) float32 in [-1, 1], "caption": str}``. Prompts without pictures
have no "pixels"; the rows of an editing data set have "source", a PIL picture; "captions" are all captions of an
item that has several.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from twinflow.conditions import concat_rows
from twinflow.errors import TwinflowError

Item = dict[str, Any]
Sides = tuple[int, ...]  # height and width, or frames, height and width


@dataclass(kw_only=True)
class EncodedBatch:
    """What an objective trains on."""

    x: Tensor  # (B, …) latents; of prompts without pictures only shape, dtype and device count
    cond: Any  # B rows
    uncond: Any = (
        None  # 1 or B rows, where the unconditional condition depends on the rows: size, source picture
    )


class Encoder(Protocol):
    """The part of a pipeline that encodes.

    Editing pipelines also take ``encode_prompts(prompts, images=sources, size=size)``. Pipelines whose conditions
    depend on the size of the picture have ``at_size(cond, size)``. Prompts without pictures need ``latent_shape``,
    and with source pictures ``shape_at(size)``.
    """

    def encode_images(self, pixels: Tensor) -> Tensor: ...

    def encode_prompts(self, prompts: list[str]) -> Any: ...


def collate(items: Sequence[Item]) -> dict[str, Any]:
    """One dict of batches: tensors are stacked, everything else is listed."""
    columns = {key: [item[key] for item in items] for key in items[0]}
    return {
        key: torch.stack(values) if isinstance(values[0], Tensor) else values
        for key, values in columns.items()
    }


def choose_caption(item: Item, *, seed: int, epoch: int, row: int) -> str:
    """The caption of the item in this epoch: of several, one by a hash of (seed, epoch, row)."""
    return caption_at(item.get("captions") or (item["caption"],), seed=seed, epoch=epoch, row=row)


def caption_at(captions: Sequence[str], *, seed: int, epoch: int, row: int) -> str:
    """One of ``captions``, by a hash of (seed, epoch, row)."""
    return captions[caption_number(len(captions), seed=seed, epoch=epoch, row=row)]


def caption_number(count: int, *, seed: int, epoch: int, row: int) -> int:
    """Which of ``count`` captions is the row's in this epoch."""
    key = f"{seed} {epoch} {row}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") % count


def item_sides(item: Item) -> Sides | None:
    """Frames, height and width, or height and width, of an item's picture; ``None`` if it has none."""
    if "pixels" in item:
        return tuple(item["pixels"].shape[1:])
    if "source" in item:
        return (item["source"].height, item["source"].width)
    return None


class ItemEncoder:
    """Encodes items of one size with a pipeline.

    ``together``: how many are encoded in one call. With 1 the numbers of a row don't depend on its companions,
    not even in the last bit, whatever kernels the device chooses.
    """

    def __init__(self, encoder: Encoder, *, unconditional: str | None = None, together: int = 1) -> None:
        self.encoder, self.unconditional, self.together = encoder, unconditional, together
        self._shapes: dict[Sides | None, tuple[int, ...]] = {}
        self._unconds: dict[Sides | None, Any] = {}

    def latents(self, items: Sequence[Item]) -> Tensor:
        """States (B, …) of the items' pictures; zeros of that shape where there are none."""
        if "pixels" not in items[0]:
            return torch.zeros(len(items), *self._shape(item_sides(items[0])))
        groups = [items[i : i + self.together] for i in range(0, len(items), self.together)]
        parts = [self._states(torch.stack([item["pixels"] for item in group])) for group in groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _states(self, pixels: Tensor) -> Tensor:
        try:
            return self.encoder.encode_images(pixels)
        except ValueError as error:
            raise TwinflowError(f"data.size: {error}") from error

    def conditions(self, items: Sequence[Item], captions: Sequence[str]) -> list[Any]:
        """The conditions of ``captions`` for the items, in groups of ``together`` rows."""
        sides = item_sides(items[0])
        groups = []
        for start in range(0, len(items), self.together):
            rows = slice(start, start + self.together)
            sources = [item["source"] for item in items[rows] if "source" in item]
            groups.append(self._condition(list(captions[rows]), sources, sides))
        return groups

    def uncond(self, items: Sequence[Item]) -> Any:
        """The unconditional condition of the items: one row for each where it has their source pictures, else
        one row for all; ``None`` if there is no unconditional prompt."""
        if self.unconditional is None:
            return None
        if "source" in items[0]:
            return concat_rows(self.conditions(items, [self.unconditional] * len(items)))
        sides = item_sides(items[0])
        if sides not in self._unconds:
            self._unconds[sides] = self._condition([self.unconditional], [], sides)
        return self._unconds[sides]

    def batch(self, items: Sequence[Item], captions: Sequence[str], *, guided: bool = True) -> EncodedBatch:
        """All of it, of items of one size; without ``uncond`` unless ``guided``."""
        sides = {item_sides(item) for item in items}
        if len(sides) > 1:
            raise ValueError(f"the pictures of a batch must have one size, got {sorted(map(str, sides))}")
        return EncodedBatch(
            x=self.latents(items),
            cond=concat_rows(self.conditions(items, captions)),
            uncond=self.uncond(items) if guided else None,
        )

    def _condition(self, captions: list[str], sources: list[Any], sides: Sides | None) -> Any:
        at_size = getattr(self.encoder, "at_size", None)
        size = None if sides is None or (at_size is None and not sources) else _size(sides)
        cond = (
            self.encoder.encode_prompts(captions, images=sources, size=size)  # type: ignore[call-arg]
            if sources
            else self.encoder.encode_prompts(captions)
        )
        return cond if at_size is None or size is None else at_size(cond, size)

    def _shape(self, sides: Sides | None) -> tuple[int, ...]:
        if sides not in self._shapes:
            if sides is None:
                self._shapes[None] = tuple(self.encoder.latent_shape)  # type: ignore[attr-defined]
            else:
                self._shapes[sides] = tuple(self.encoder.shape_at(_size(sides)))  # type: ignore[attr-defined]
        return self._shapes[sides]


def _size(sides: Sides) -> Any:
    from twinflow.pipelines.geometry import Size  # here, as it imports diffusers

    *frames, height, width = sides
    return Size(height, width, *frames)
