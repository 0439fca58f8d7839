"""What is encoded once is what would be encoded each time; a cache is complete, of this data, or refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from twinflow.data.cache import CachedRows, check_identity, read_index, write_cache
from twinflow.data.encoding import EncodedBatch, ItemEncoder
from twinflow.data.identity import FileHashes, data_identity, differences, model_identity
from twinflow.data.loader import OnlineExamples
from twinflow.data.rows import CachedExamples, MemoryRows
from twinflow.errors import TwinflowError
from twinflow.pipelines.geometry import Size
from twinflow.recipes.data import FolderData

from .cache_tiny import IDENTITY, write

TESTS = Path(__file__).parents[1]


def assert_same(one: EncodedBatch, other: EncodedBatch) -> None:
    for name in ("x", "cond", "uncond"):
        assert flat(getattr(one, name)) == flat(getattr(other, name)), name


def flat(value: Any) -> Any:
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: flat(part) for key, part in value.items()}
    return [flat(part) for part in value] if isinstance(value, (list, tuple)) else value


class WordEncoder:
    """Conditions of several parts; those of an edit depend on its source, and all on the picture's size."""

    latent_shape = (2, 3)

    def encode_prompts(
        self, prompts: list[str], *, images: list[Image.Image] | None = None, size: Any = None
    ) -> Any:
        words = torch.tensor([[float(ord(c)) for c in prompt.ljust(9)] for prompt in prompts])
        cond = {"words": words, "parts": (words.sum(1), None)}
        if images is not None:
            cond["source"] = torch.tensor([image.getpixel((0, 0)) for image in images])
        return cond

    def encode_images(self, pixels: Tensor) -> Tensor:
        return pixels[..., ::2, ::2] * 3

    def shape_at(self, size: Size) -> tuple[int, ...]:
        return 3, size.height // 2, size.width // 2


class Mixed:
    """Rows of two sizes, some with two captions."""

    def __init__(self, *, edit: bool, pictures: bool = True) -> None:
        self.edit, self.pictures = edit, pictures
        self.bucket_of = [i % 2 for i in range(13)]

    def __len__(self) -> int:
        return len(self.bucket_of)

    def __getitem__(self, index: int) -> dict[str, Any]:
        height = 4 + 2 * self.bucket_of[index]
        item: dict[str, Any] = {"caption": f"row {index}"}
        if index % 3 == 0:
            item["captions"] = (f"row {index}", f"again {index}")
        if self.pictures:
            generator = torch.Generator().manual_seed(index)
            item["pixels"] = torch.rand(3, height, 4, generator=generator)
        if self.edit:
            item["source"] = Image.new("RGB", (4, height), (index, 2 * index, 0))
        return item


@pytest.mark.parametrize("unconditional", ["", None])
@pytest.mark.parametrize(("edit", "pictures"), [(False, True), (True, True), (True, False), (False, False)])
def test_cached_rows_are_those_that_are_encoded_each_time(
    tmp_path: Path, edit: bool, pictures: bool, unconditional: str | None
) -> None:
    data, encoder = Mixed(edit=edit, pictures=pictures), WordEncoder()
    online = OnlineExamples(data, encoder, unconditional=unconditional, seed=3, together=1)
    items_of = ItemEncoder(encoder, unconditional=unconditional)
    write_cache(tmp_path, data, items_of, identity={}, shard_rows=4)
    disk = CachedExamples(CachedRows(tmp_path), seed=3)
    memory = CachedExamples(MemoryRows.of(data, items_of, together=5), seed=3)
    dropped = None if unconditional is None else torch.tensor([True, False, False, True])
    for rows in ([0, 2, 6, 12], [1, 3, 11, 3]):
        for epochs in ([0, 0, 0, 0], [4, 7, 0, 1]):
            for drop in {id(dropped): dropped, id(None): None}.values():
                expected = online.batch(rows, drop, epochs=epochs)
                assert_same(disk.batch(rows, drop, epochs=epochs), expected)
                assert_same(memory.batch(rows, drop, epochs=epochs), expected)
        assert disk.captions(rows) == memory.captions(rows) == [f"row {row}" for row in rows]
    assert len(disk) == 13
    assert CachedRows(tmp_path).bucket_of == data.bucket_of


def test_equal_tensors_are_stored_once(tmp_path: Path) -> None:
    write(tmp_path)
    index = read_index(tmp_path)
    assert index["rows"] == 22
    from safetensors import safe_open

    with safe_open(tmp_path / "rows_000000.safetensors", framework="pt") as shard:
        assert len(shard.keys()) == 5 + 3 + 1  # pictures, colours, and the unconditional prompt


@pytest.mark.parametrize("shard", [1, 3])
def test_kill_in_the_middle_of_a_shard(tmp_path: Path, shard: int) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    write(straight)
    command = [sys.executable, "-m", "data.cache_tiny", str(killed), str(shard)]
    ended = subprocess.run(command, cwd=TESTS, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert list(killed.glob(".writing-*"))
    with pytest.raises(TwinflowError, match=rf"not finished: {6 - shard} of 5 shards are missing"):
        CachedRows(killed)
    seen: list[int] = []
    assert write(killed, progress=lambda done, total: seen.append(done)) == 5 * (shard - 1)
    assert seen[-1] == 22
    files = sorted(file.name for file in straight.iterdir())
    assert files == sorted(file.name for file in killed.iterdir())
    assert all((straight / name).read_bytes() == (killed / name).read_bytes() for name in files)


def test_what_is_no_cache_of_this(tmp_path: Path) -> None:
    write(tmp_path / "a")
    other = {"model": {"files": {"vae": "2"}}, "data": {"size": 4}}
    with pytest.raises(TwinflowError, match=r"(?s)made of something else:.*model.files.vae: '1' .*'2' now"):
        write(tmp_path / "a", identity=other)
    with pytest.raises(TwinflowError, match="begun for 22 rows, and the data has 23"):
        write(tmp_path / "a", rows=23)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letter.txt").write_text("dear reader")
    with pytest.raises(TwinflowError, match="is not empty and holds no cache"):
        write(tmp_path / "b")
    with pytest.raises(TwinflowError, match="there is no cache in .*: write it by `twinflow cache"):
        CachedRows(tmp_path / "c")
    (tmp_path / "a" / "index.json").write_text("{}")
    with pytest.raises(TwinflowError, match="is not the index of a cache"):
        CachedRows(tmp_path / "a")


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    file = tmp_path / "rows_000001.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    rows = CachedRows(tmp_path)
    rows.row(0)
    with pytest.raises(TwinflowError, match=r"rows_000001.safetensors is damaged.*delete it and run"):
        rows.row(5)
    file.unlink()
    assert write(tmp_path) == 17
    assert CachedRows(tmp_path).row(5).captions == ("blue",)


def test_identities_name_what_differs(tmp_path: Path) -> None:
    check_identity(tmp_path, {"identity": IDENTITY}, IDENTITY)
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 3}}) == [
        "a.c: 2 in the cache, None now",
        "a.d: None in the cache, 3 now",
    ]


def test_contents_of_files_count_and_their_place_does_not(tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    for folder in (first, second):
        folder.mkdir()
        Image.new("RGB", (8, 8), "red").save(folder / "a.png")
        (folder / "a.txt").write_text("red")

    def identity(folder: Path, hashes: FileHashes | None = None, **more: Any) -> Any:
        settings = FolderData.model_validate({"kind": "folder", "path": str(folder), "size": 8, **more})
        return data_identity(settings, hashes=hashes or FileHashes())

    hashes = FileHashes()
    before = identity(first, hashes)
    assert before == identity(second) == identity(first, cache="x", encode_batch=3)
    assert differences(before, identity(first, size=16)) == ["size: 8 in the cache, 16 now"]
    (first / "a.txt").write_text("rot")
    (line,) = differences(before, identity(first, FileHashes(json.loads(json.dumps(hashes.known)))))
    assert line.startswith("contents.a.txt: ")


def test_files_that_did_not_change_are_not_read_again(tmp_path: Path) -> None:
    file = tmp_path / "big.safetensors"
    file.write_bytes(b"1234")
    hashes = FileHashes()
    first = hashes.of(tmp_path, [file], prefix="model")
    stat = file.stat()
    file.write_bytes(b"5678")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # looks as before: nobody opens it
    assert FileHashes(hashes.known).of(tmp_path, [file], prefix="model") == first
    assert FileHashes().of(tmp_path, [file], prefix="model") != first


def test_a_models_identity_is_its_encoders(tmp_path: Path) -> None:
    parts = {
        "_class_name": "P",
        "vae": ["diffusers", "V"],
        "transformer": ["diffusers", "T"],
        "x": [None, None],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(parts))
    for name in ("vae", "transformer"):
        (tmp_path / name).mkdir()
        for file in ("config.json", "model.safetensors"):
            (tmp_path / name / file).write_text(name)

    def identity(**settings: Any) -> dict[str, Any]:
        return model_identity(str(tmp_path), settings=settings, hashes=FileHashes())

    before = identity(call={"height": 8, "image": Image.new("RGB", (2, 2))})
    assert sorted(before["files"]) == ["transformer/config.json", "vae/config.json", "vae/model.safetensors"]
    (tmp_path / "transformer" / "model.safetensors").write_text("trained")
    assert identity(call={"height": 8, "image": Image.new("RGB", (2, 2))}) == before
    red = identity(call={"height": 8, "image": Image.new("RGB", (2, 2), "red")})
    assert [line.split(":")[0] for line in differences(before, red)] == ["call.image"]
    (tmp_path / "vae" / "model.safetensors").write_text("other")
    assert len(differences(red, identity(call={"height": 8, "image": Image.new("RGB", (2, 2), "red")}))) == 1
