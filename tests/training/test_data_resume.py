"""Runs on streams and on pictures of several sizes go on exactly where they were stopped, in mid-epoch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image
from torch import Tensor

from twinflow.data.buckets import Buckets
from twinflow.data.shards import open_table
from twinflow.data.stream import StreamDataset
from twinflow.errors import TwinflowError
from twinflow.training import Trainer

from .test_resume import FailingTwinFlow, PowerCut, assert_same
from .tiny import COLORS, Colors, TinyPipeline, tiny_recipe


def write_shards(folder: Path) -> str:
    """Three shards of seven rows: a step of three rows ends within a shard, and within a block."""
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    for shard in range(3):
        rows = []
        for i in range(7):
            name = list(COLORS)[1 + (shard + i) % 3]
            colour = tuple(round((c + 1) * 127.5) - shard - i for c in COLORS[name])
            buffer = io.BytesIO()
            Image.new("RGB", (4, 4), tuple(max(c, 0) for c in colour)).save(buffer, "PNG")
            rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "text": name})
        datasets.Dataset.from_list(rows, features=features).to_parquet(folder / f"{shard}.parquet")
    return str(folder)


class Shapes(Colors):
    """Pictures of 16 pixels in three shapes."""

    buckets = Buckets(((8, 2), (4, 4), (2, 8)))

    def __init__(self) -> None:
        super().__init__(13)
        self.bucket_of = [i % 3 for i in range(13)]

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = super().__getitem__(index)
        height, width = self.buckets.sides[self.bucket_of[index]]
        return {**item, "pixels": item["pixels"].reshape(3, height, width)}


def data_of(kind: str, folder: Path) -> Any:
    if kind == "stream":
        return StreamDataset(open_table(write_shards(folder), streaming=True), size=4, window=4)
    return Shapes()


@pytest.mark.parametrize(("kind", "cache"), [("stream", False), ("buckets", False), ("buckets", True)])
def test_a_resumed_run_is_the_same_run(tmp_path: Path, kind: str, cache: bool) -> None:
    def trainer(output: str, **more: Any) -> Trainer:
        recipe = tiny_recipe(tmp_path / output, data={"cache": cache, "encode_batch": 1})
        return Trainer(recipe, TinyPipeline(), data_of(kind, tmp_path), **more)

    whole = trainer("whole").run()
    settings = tiny_recipe("unused").objective
    failing = FailingTwinFlow(**{key: value for key, value in settings.items() if key != "name"})
    with pytest.raises(PowerCut):
        trainer("cut", objective=failing).run()
    assert_same(whole, trainer("cut").run())


class SizesSeen(TinyPipeline):
    """Notes the shape of every batch that it encodes."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def encode_images(self, pixels: Tensor) -> Tensor:
        self.shapes.append(tuple(pixels.shape))
        return super().encode_images(pixels)


def test_every_batch_has_one_size(tmp_path: Path) -> None:
    pipe = SizesSeen()
    recipe = tiny_recipe(tmp_path, data={"cache": False, "encode_batch": 64})
    Trainer(recipe, pipe, Shapes()).run()
    assert len(pipe.shapes) == 12
    assert {shape[2:] for shape in pipe.shapes} == set(Shapes.buckets.sides)
    assert {shape[0] for shape in pipe.shapes} == {3}


def test_a_stream_has_no_first_captions_to_preview(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", data={"cache": False}, preview={"every": 5})
    with pytest.raises(TwinflowError, match=r"preview.prompts is empty"):
        Trainer(recipe, TinyPipeline(), data_of("stream", tmp_path)).run()
