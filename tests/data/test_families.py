"""Edits, clips and pictures of several sizes through real pipelines: encoded each time, or once, they are the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from families import FAMILIES
from twinflow.data.cache import CachedRows, write_cache
from twinflow.data.encoding import EncodedBatch, ItemEncoder
from twinflow.data.loader import OnlineExamples
from twinflow.data.rows import CachedExamples
from twinflow.errors import TwinflowError
from twinflow.launch import check_sources
from twinflow.objectives import TwinFlow
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.condition import Condition, same


@pytest.fixture(scope="module", autouse=True)
def small_sources() -> Iterator[None]:
    import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as edit

    kept = edit.VAE_IMAGE_SIZE, edit.CONDITION_IMAGE_SIZE
    edit.VAE_IMAGE_SIZE = edit.CONDITION_IMAGE_SIZE = 32 * 32
    yield
    edit.VAE_IMAGE_SIZE, edit.CONDITION_IMAGE_SIZE = kept


class Items:
    """Random pictures or clips, two sides of which differ, with captions of different lengths."""

    def __init__(self, sizes: list[tuple[int, ...]], *, edit: bool = False, pictures: bool = True) -> None:
        self.sizes, self.edit, self.pictures = sizes, edit, pictures

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        sides = self.sizes[index]
        item: dict[str, Any] = {"caption": "a red circle and more words"[: 5 + 7 * index]}
        if self.pictures:
            item["pixels"] = torch.rand(3, *sides, generator=generator) * 2 - 1
        if self.edit:
            item["source"] = Image.new("RGB", (sides[-1], sides[-2]), (70 * index, 20, 90))
        return item


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Condition):
        return all(equal(getattr(one, part), getattr(other, part)) for part in ("tensors", "lists", "shared"))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return same(one, other)


WIDE, HIGH = (32, 64), (64, 32)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("flux", Items([WIDE, WIDE, HIGH, HIGH])),
        ("qwen", Items([WIDE, WIDE, HIGH, HIGH])),
        ("qwen_edit", Items([(32, 32)] * 4, edit=True)),
        ("qwen_edit", Items([(32, 32)] * 4, edit=True, pictures=False)),
        ("wan", Items([(5, 32, 32)] * 4)),
        ("wan", Items([(9, 32, 32)] * 4)),
        ("wan_i2v", Items([(9, 32, 64)] * 4, edit=True)),
        ("wan_i2v", Items([(64, 32)] * 4, edit=True, pictures=False)),
    ],
    ids=[
        "flux, sizes",
        "qwen, sizes",
        "edit",
        "edit without pictures",
        "clips",
        "longer clips",
        "first frames",
        "first frames alone",
    ],
)
def test_encoded_once_or_each_time(tmp_path: Path, name: str, data: Items) -> None:
    family = FAMILIES[name]
    pipe = AnyStepPipeline(family.stock(), call=family.call)
    online = OnlineExamples(data, pipe, unconditional="", together=1)
    write_cache(tmp_path, data, ItemEncoder(pipe, unconditional=""), identity={}, shard_rows=3)
    cached = CachedExamples(CachedRows(tmp_path))
    for rows in ([0, 1], [3, 2]):
        dropped = torch.tensor([False, True])
        expected: EncodedBatch = online.batch(rows, dropped)
        batch = cached.batch(rows, dropped)
        assert torch.equal(batch.x, expected.x)
        assert equal(batch.cond, expected.cond)
        assert equal(batch.uncond, expected.uncond)
        assert len(batch.uncond) == (2 if data.edit else 1)
        objective = TwinFlow(guidance=0.5, image_free=not data.pictures)
        generator = torch.Generator().manual_seed(0)
        step = objective.step(
            pipe.field, batch.x, batch.cond, uncond=batch.uncond, teacher=pipe.field, generator=generator
        )
        assert step.loss.isfinite()


def test_a_dropped_caption_keeps_its_source_picture() -> None:
    family = FAMILIES["qwen_edit"]
    pipe = AnyStepPipeline(family.stock(), call=family.call)
    data = Items([(32, 32)] * 2, edit=True)
    batch = OnlineExamples(data, pipe, unconditional="", together=1).batch([0, 1], torch.tensor([True, True]))
    expected = pipe.encode_prompts(["", ""], images=[data[0]["source"], data[1]["source"]])
    assert equal(batch.cond, expected)
    assert equal(batch.uncond, expected)
    assert not torch.equal(
        expected.take(torch.tensor([0])).tensors["source_tokens"],
        expected.take(torch.tensor([1])).tensors["source_tokens"],
    )


def test_an_editing_pipeline_needs_source_pictures() -> None:
    family = FAMILIES["qwen_edit"]
    pipe = AnyStepPipeline(family.stock(), call=family.call)
    check_sources(pipe, Items([(32, 32)], edit=True))
    with pytest.raises(
        TwinflowError,
        match=r"QwenImageEditPlusPipeline edits pictures.*data.columns.source.*data.source=first_frame",
    ):
        check_sources(pipe, Items([(32, 32)]))
    picture = AnyStepPipeline(FAMILIES["qwen"].stock(), call=FAMILIES["qwen"].call)
    check_sources(picture, Items([(32, 32)]))
    with pytest.raises(TwinflowError, match="takes no source image"):
        OnlineExamples(Items([(32, 32)], edit=True), picture).batch([0])
