"""Parquet and webdataset shards: what is read, what is found to be wrong, and the order of a stream."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from twinflow.data.buckets import Buckets
from twinflow.data.loader import order_of
from twinflow.data.opening import open_data
from twinflow.data.shards import open_table
from twinflow.data.stream import StreamDataset, StreamOrder
from twinflow.data.table import Columns, TableDataset
from twinflow.errors import TwinflowError
from twinflow.recipes.data import TableData

from .shards import png, write_parquet, write_tars


def grey(item: dict[str, Any]) -> int:
    return round((item["pixels"][0, 0, 0].item() + 1) * 127.5)


def settings(path: Path | str, **more: Any) -> TableData:
    return TableData.model_validate({"kind": "dataset", "path": str(path), "size": 8, **more})


@pytest.mark.parametrize("write", [write_parquet, write_tars])
@pytest.mark.parametrize("form", ["folder", "pattern", "file"])
def test_every_row_has_its_own_picture_and_caption(tmp_path: Path, write: Any, form: str) -> None:
    files = write(tmp_path)
    path = {"folder": tmp_path, "pattern": tmp_path / "part-*", "file": files[0]}[form]
    data = open_data(settings(path), seed=0)
    assert len(data) == (5 if form == "file" else 15)
    for i, item in enumerate(data):
        assert item.keys() == {"pixels", "caption"}
        assert item["pixels"].shape == (3, 8, 8)
        assert (grey(item), item["caption"]) == (i, f"picture {i}")


def test_named_columns_and_several_captions(tmp_path: Path) -> None:
    write_tars(tmp_path)
    item = open_data(settings(tmp_path, columns={"text": "json.also"}), seed=0)[4]
    assert item["captions"] == ("a 4", "b 4")
    with pytest.raises(TwinflowError, match=r"no column 'picture'.*columns.image.*it has png, txt, json"):
        open_data(settings(tmp_path, columns={"image": "picture"}), seed=0)


def test_captions_alone_are_read_without_pictures(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    data = open_data(settings(tmp_path, pictures=False), seed=0)
    assert data[3] == {"caption": "picture 3"}


def test_a_table_that_datasets_saved(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    table = datasets.load_dataset("parquet", data_files=str(tmp_path / "*.parquet"), split="train")
    table.save_to_disk(tmp_path / "saved")
    assert [item["caption"] for item in open_data(settings(tmp_path / "saved"), seed=0)] == [
        f"picture {i}" for i in range(15)
    ]


def test_editing_triples_and_buckets(tmp_path: Path) -> None:
    sides = [(8, 12), (12, 8), (8, 8), (9, 9)]
    features = datasets.Features({name: datasets.Image() for name in ("before", "after")})
    features["how"] = datasets.Value("string")
    columns = {
        "before": [
            {"bytes": png(i, width=2 * w, height=2 * h), "path": None} for i, (h, w) in enumerate(sides)
        ],
        "after": [{"bytes": png(100 + i, width=w, height=h), "path": None} for i, (h, w) in enumerate(sides)],
        "how": ["brighter"] * 4,
    }
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "a.parquet")
    buckets = Buckets(((12, 8), (8, 8), (8, 12)))
    names = Columns(image="after", text="how", source="before")
    data = TableDataset(open_table(str(tmp_path)), size=buckets, columns=names)
    assert [buckets.sides[b] for b in data.bucket_of] == [(8, 12), (12, 8), (8, 8), (8, 8)]
    for i, item in enumerate(data):
        h, w = buckets.sides[data.bucket_of[i]]
        assert item["pixels"].shape == (3, h, w)
        assert (item["source"].height, item["source"].width) == (h, w)
        assert (grey(item), item["source"].getpixel((0, 0))[0]) == (100 + i, i)
    without = TableDataset(open_table(str(tmp_path)), size=buckets, columns=names, pictures=False)
    assert without[1].keys() == {"caption", "source"}
    assert without.bucket_of == data.bucket_of


def spoil(tmp_path: Path, row: int, **values: Any) -> None:
    file = tmp_path / "part-1.parquet"
    table = datasets.load_dataset("parquet", data_files=str(file), split="train")
    table = table.cast_column("image", datasets.Image(decode=False))
    rows = [{**entry, **(values if i == row else {})} for i, entry in enumerate(table)]
    datasets.Dataset.from_list(rows, features=table.features).to_parquet(file)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"text": None}, "no caption"),
        ({"text": " "}, "empty"),
        ({"image": None}, "no picture in image"),
        ({"image": {"bytes": png(3)[:45], "path": None}}, "cannot be read"),
    ],
)
def test_rows_that_can_not_be_used(
    tmp_path: Path, values: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_parquet(tmp_path)
    spoil(tmp_path, 2, **values)
    with pytest.raises(TwinflowError, match=rf"(?s)1 of 15 .*row 7: .*{words}.*on_error"):
        open_data(settings(tmp_path), seed=0)
    with caplog.at_level(logging.WARNING):
        data = open_data(settings(tmp_path, on_error="skip"), seed=0)
    assert "row 7" in caplog.text
    assert [grey(item) for item in data] == [i for i in range(15) if i != 7]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def wipe_header(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[6 * 512 : 7 * 512] = b"\xff" * 512
    file.write_bytes(raw)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("write", "damage"), [(write_parquet, cut), (write_tars, cut), (write_tars, wipe_header)]
)
def test_a_corrupt_shard_in_the_middle(
    tmp_path: Path, write: Any, damage: Any, streaming: bool, caplog: pytest.LogCaptureFixture
) -> None:
    files = write(tmp_path)
    damage(files[1])
    with pytest.raises(TwinflowError, match=rf"(?s)1 of 3 .*{files[1].name}: the shard cannot be read"):
        open_data(settings(tmp_path, streaming=streaming), seed=0)
    with caplog.at_level(logging.WARNING):
        data = open_data(settings(tmp_path, on_error="skip", streaming=streaming), seed=0)
    assert files[1].name in caplog.text
    if streaming:
        order = StreamOrder(data, batch=10, seed=0)
        assert sorted(grey(data[i]) for i in order.next_rows()) == [*range(5), *range(10, 15)]
    else:
        assert [grey(item) for item in data] == [*range(5), *range(10, 15)]


def test_damaged_pages_that_only_reading_shows(tmp_path: Path) -> None:
    files = write_parquet(tmp_path)
    raw = bytearray(files[1].read_bytes())
    raw[4:40] = b"\xff" * 36  # the header of the first page
    files[1].write_bytes(raw)
    with pytest.raises(TwinflowError, match=rf"(?s)1 of 3 .*{files[1].name}: the shard cannot be read"):
        open_data(settings(tmp_path), seed=0)
    data = open_data(settings(tmp_path, streaming=True), seed=0)
    with pytest.raises(TwinflowError, match=rf"(?s){files[1].name} cannot be read.*streaming: false"):
        StreamOrder(data, batch=15, seed=0).next_rows()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere/a.parquet", "no file or folder"),
        ("./nowhere", "no file or folder"),
        ("nowhere-*.tar", "no file matches"),
        (".", "no .parquet, .tar or .arrow files"),
    ],
)
def test_paths_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TwinflowError, match=words):
        open_table(path)


# Streams


def stream(folder: Path, *, window: int = 4) -> StreamDataset:
    return StreamDataset(open_table(str(folder), streaming=True), size=8, window=window)


def drawn(order: StreamOrder, batches: int) -> list[list[int]]:
    return [[grey(order.dataset[row]) for row in order.next_rows()] for _ in range(batches)]


@pytest.mark.parametrize("write", [write_parquet, write_tars])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_stream_gives_every_row_once_an_epoch(tmp_path: Path, write: Any, world_size: int) -> None:
    """Three shards: three processes have one each, two share them row by row."""
    write(tmp_path)
    parts: list[list[int]] = []
    for rank in range(world_size):
        order = order_of(stream(tmp_path), batch=1, seed=0, rank=rank, world_size=world_size)
        assert isinstance(order, StreamOrder)
        own: dict[int, list[int]] = {}
        while order.epoch < 3:
            places = order.next_places()
            own.setdefault(places.epochs[0], []).append(grey(order.dataset[places.rows[0]]))
        parts.append(own)
    epochs = [[row for own in parts for row in own[epoch]] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(15)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("write", [write_parquet, write_tars])
@pytest.mark.parametrize("batches", [0, 1, 3, 4, 5, 9])
def test_a_stream_resumes_in_mid_epoch(tmp_path: Path, write: Any, batches: int) -> None:
    write(tmp_path)
    straight = StreamOrder(stream(tmp_path), batch=3, seed=0, rank=1, world_size=2)
    drawn(straight, batches)
    resumed = StreamOrder(stream(tmp_path), batch=3, seed=0, rank=1, world_size=2)
    resumed.load_state_dict(straight.state_dict())
    resumed.load_own_state(straight.own_state())
    assert drawn(straight, 8) == drawn(resumed, 8)
    assert straight.own_state().shape == resumed.own_state().shape
    with pytest.raises(ValueError, match="world_size that it was stopped with, 2, got 1"):
        StreamOrder(stream(tmp_path), batch=3, seed=0).load_state_dict(straight.state_dict())


def test_more_processes_than_rows(tmp_path: Path) -> None:
    """Found with the first row, and where there is one nothing changes."""
    write_parquet(tmp_path)  # fifteen rows in three shards
    places = [StreamOrder(stream(tmp_path), batch=1, seed=0, rank=i, world_size=16) for i in range(16)]
    for place in places[:15]:
        place.check()
    with pytest.raises(TwinflowError, match=r"no row for process 15 of 16.*--nproc-per-node.*data.streaming"):
        places[15].check()
    with pytest.raises(TwinflowError, match="no row for process 15 of 16"):
        places[15].next_rows()
    assert sorted(drawn(place, 1)[0][0] for place in places[:15]) == list(range(15))


def test_a_stream_leaves_out_bad_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_parquet(tmp_path)
    spoil(tmp_path, 2, text="")
    table = open_table(str(tmp_path), streaming=True)
    with pytest.raises(TwinflowError, match="a caption of it is empty"):
        StreamOrder(StreamDataset(table, size=8), batch=15, seed=0).next_rows()
    order = StreamOrder(StreamDataset(table, size=8, on_error="skip"), batch=14, seed=0)
    assert sorted(drawn(order, 1)[0]) == [i for i in range(15) if i != 7]


def test_a_stream_without_a_usable_row_ends(tmp_path: Path) -> None:
    broken = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(broken, "PNG")
    row = {"image": {"bytes": broken.getvalue()[:40], "path": None}, "text": "a"}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_list([row] * 3, features=features).to_parquet(tmp_path / "a.parquet")
    order = StreamOrder(
        StreamDataset(open_table(str(tmp_path), streaming=True), size=8, on_error="skip"), batch=2, seed=0
    )
    with pytest.raises(TwinflowError, match="no usable row in a whole epoch"):
        order.next_rows()
    assert torch.is_tensor(order.own_state())
