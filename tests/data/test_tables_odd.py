"""Tables as people have them: names with dots, mixed formats, pictures beside the table, shards without rows."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from twinflow.data.opening import open_data
from twinflow.data.stream import StreamOrder
from twinflow.errors import TwinflowError
from twinflow.recipes.data import TableData

from .shards import png, write_parquet
from .test_tables import grey


def opened(path: Path, **more: Any) -> Any:
    return open_data(
        TableData.model_validate({"kind": "dataset", "path": str(path), "size": 8, **more}), seed=0
    )


def write_tar(file: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(file, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def write_table(file: Path, **columns: Any) -> None:
    parquet.write_table(pa.table(columns), file)


def captions(data: Any) -> list[str]:
    return [item["caption"] for item in data]


def test_the_key_of_a_member_ends_at_the_first_dot_of_its_name(tmp_path: Path) -> None:
    """``./more.d/0.before.png`` is the column before.png of the example ``./more.d/0``."""
    members = {}
    for i in range(7):
        members[f"./more.d/{i}.before.png"] = png(i)
        members[f"./more.d/{i}.after.png"] = png(100 + i)
        members[f"./more.d/{i}.how.json"] = json.dumps({"said": f"edit {i}"}).encode()
    write_tar(tmp_path / "a.tar", members)
    names = {"image": "after.png", "source": "before.png", "text": "how.json.said"}
    data = opened(tmp_path, columns=names)
    assert [(grey(item), item["source"].getpixel((0, 0))[0], item["caption"]) for item in data] == [
        (100 + i, i, f"edit {i}") for i in range(7)
    ]
    with pytest.raises(TwinflowError, match=r"no column 'png' .*it has before.png, after.png, how.json"):
        opened(tmp_path, columns=names | {"image": "png"})


def test_columns_with_dots_in_parquet(tmp_path: Path) -> None:
    write_table(
        tmp_path / "a.parquet", **{"img.png": [png(3)], "text.en": ["one"], "text": [{"en": "other"}]}
    )
    (item,) = opened(tmp_path, columns={"image": "img.png", "text": "text.en"})
    assert (grey(item), item["caption"]) == (3, "one")


@pytest.mark.parametrize("streaming", [False, True])
def test_shards_that_mix_formats_and_lack_captions(tmp_path: Path, streaming: bool) -> None:
    """Among the first examples, by which ``datasets`` guesses what all are like; and JSON of changing types."""
    members = {}
    for i in range(9):
        members[f"{i}.{'png' if i % 2 else 'jpg'}"] = png(i)
        members[f"{i}.json"] = json.dumps(
            {"n": i if i < 7 else "seven"} | ({"more": 1} if i > 6 else {})
        ).encode()
        if i != 2:
            members[f"{i}.txt"] = b"\xef\xbb\xbfpicture %d\r\n" % i
    write_tar(tmp_path / "a.tar", members)
    expected = [(i, f"picture {i}") for i in range(9) if i != 2]
    if streaming:
        order = StreamOrder(opened(tmp_path, streaming=True, on_error="skip"), batch=8, seed=0)
        rows = [order.dataset[row] for row in order.next_rows()]
        assert sorted((grey(item), item["caption"]) for item in rows) == expected
        return
    with pytest.raises(TwinflowError, match=r"1 of 9 .*\n.*row 2: it has no caption"):
        opened(tmp_path)
    assert [(grey(item), item["caption"]) for item in opened(tmp_path, on_error="skip")] == expected


def test_captions_of_bytes_are_utf8_or_refused(tmp_path: Path) -> None:
    """What can't be decoded must not be trained on as question marks."""
    texts = [b"\xef\xbb\xbfone", "größer".encode(), "größer".encode("latin-1")]
    write_table(tmp_path / "a.parquet", image=[png(i) for i in range(3)], text=texts)
    with pytest.raises(TwinflowError, match=r"1 of 3 .*\n.*row 2: the caption is not UTF-8"):
        opened(tmp_path)
    assert captions(opened(tmp_path, on_error="skip")) == ["one", "größer"]


@pytest.mark.parametrize("kind", ["paths", "structs", "jsonl"])
def test_relative_paths_are_beside_the_table(tmp_path: Path, kind: str) -> None:
    (tmp_path / "pictures").mkdir()
    names = [f"pictures/{i}.png" for i in range(3)]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(png(i))
    file = tmp_path / ("a.jsonl" if kind == "jsonl" else "a.parquet")
    if kind == "jsonl":
        file.write_text("\n".join(json.dumps({"image": name, "text": name}) for name in names))
    else:
        image = names if kind == "paths" else [{"bytes": None, "path": name} for name in names]
        write_table(file, image=image, text=names)
    assert [(grey(item), item["caption"]) for item in opened(file)] == list(enumerate(names))
    (tmp_path / names[1]).unlink()
    with pytest.raises(TwinflowError, match=r"row 1: .*pictures/1.png"):
        opened(file, columns={"text": "text"}, size=9)


def test_parquet_files_without_rows(tmp_path: Path) -> None:
    empty = {"image": pa.array([], pa.binary()), "text": pa.array([], pa.string())}
    write_table(tmp_path / "b.parquet", **empty)
    with pytest.raises(TwinflowError, match="has no row"):
        opened(tmp_path)
    write_table(tmp_path / "a.parquet", image=[png(1)], text=["one"])
    assert captions(opened(tmp_path)) == ["one"]


def test_names_that_look_like_patterns(tmp_path: Path) -> None:
    folder = tmp_path / "data [1]"
    folder.mkdir()
    files = write_parquet(folder)
    assert len(opened(folder)) == 15
    assert len(opened(files[0])) == 5


def test_a_small_saved_table_is_streamed(tmp_path: Path) -> None:
    """It has fewer rows than the stream would like to have shards."""
    write_parquet(tmp_path)
    table = datasets.load_dataset("parquet", data_files=str(tmp_path / "*.parquet"), split="train")
    table.save_to_disk(tmp_path / "saved")
    order = StreamOrder(opened(tmp_path / "saved", streaming=True), batch=15, seed=0)
    assert sorted(grey(order.dataset[row]) for row in order.next_rows()) == list(range(15))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"text": [["a"], ["b"]]}, "text of list<element: string>, there of string"),
        ({"text": ["a", "b"], "score": [1, 2]}, "score, which is not there"),
        ({"text": ["a", "b"], "image": [1, 2]}, "image of int64, there of struct<bytes: binary, path: "),
    ],
)
def test_shards_of_other_columns_are_named(
    tmp_path: Path, columns: dict[str, Any], said: str, streaming: bool
) -> None:
    """Before the first row is read, also where it would take an hour to come to them."""
    pictures = [{"bytes": png(2), "path": None}] * 2
    for name in ("a", "b"):
        write_table(tmp_path / f"{name}.parquet", image=pictures, text=["a", "b"])
    write_table(tmp_path / "c.parquet", **{"image": pictures} | columns)
    with pytest.raises(TwinflowError) as caught:
        opened(tmp_path, streaming=streaming)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("1 of 3 entries of")
    assert (
        f"c.parquet: the shard cannot be read (unlike those of a.parquet, its columns are: {said}" in lines[1]
    )
    assert len(lines) == 3


def test_shards_that_can_be_brought_together_are(tmp_path: Path) -> None:
    """As ``datasets`` does it: fewer columns, another order, numbers of another width; or only those that are read."""
    pictures = [{"bytes": png(2), "path": None}] * 2
    write_table(tmp_path / "a.parquet", image=pictures, text=["a", "b"], n=pa.array([1, 2], pa.int32()))
    write_table(
        tmp_path / "b.parquet",
        n=pa.array([1, 2]),
        text=pa.array(["c", "d"], pa.large_string()),
        image=pictures,
    )
    write_table(tmp_path / "c.parquet", text=["e", "f"], image=pictures)
    assert captions(opened(tmp_path)) == ["a", "b", "c", "d", "e", "f"]
    write_table(tmp_path / "d.parquet", text=["g", "h"], image=pictures, score=[1, 2])
    chosen = {"columns": ["image", "text"]}
    assert captions(opened(tmp_path, options=chosen))[-1] == "h"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_the_shard_whose_values_do_not_fit_is_named(tmp_path: Path, kind: str, streaming: bool) -> None:
    """With the column, not in the words of pyarrow, also where it is come to in the middle of a stream."""
    pictures = [{"bytes": png(2), "path": None}] * 2
    for name, texts in (("a", [1, 2]), ("b", ["1", "two"])):
        table = pa.table({"image": pictures, "text": texts})
        if kind == "parquet":
            parquet.write_table(table, tmp_path / f"{name}.parquet")
            continue
        with pa.ipc.new_stream(tmp_path / f"{name}.arrow", table.schema) as writer:
            writer.write_table(table)

    def read() -> None:
        StreamOrder(opened(tmp_path, streaming=streaming), batch=4, seed=0).next_rows()

    said = rf"b.{kind}.* cannot be read.*text of string, there of int64"
    with pytest.raises(TwinflowError, match=said) as caught:
        read()
    assert "Arrow" not in str(caught.value)
