"""What is encoded once is what would be encoded each time; a cache is complete, of this data, or refused."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from twinflow.data.cache import (
    CachedRows,
    claimed,
    read_index,
    write_cache,
)
from twinflow.data.encoding import EncodedBatch, ItemEncoder
from twinflow.data.loader import OnlineExamples
from twinflow.data.rows import CachedExamples, MemoryRows
from twinflow.errors import TwinflowError
from twinflow.pipelines.geometry import Size

from .cache_tiny import write

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
    for place in (tmp_path / "b" / "letter.txt", tmp_path / "b" / "letter.txt" / "new"):
        with pytest.raises(TwinflowError, match=r"letter.txt is a file"):
            write(place)
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


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    program = (
        "import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX); "
        "print(1, flush=True); input()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a" / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "1\n"
        refused = pytest.raises(TwinflowError, match="another process is writing the cache .*wait for it")
        with refused, claimed(tmp_path / "a"):
            pass
        other.kill()  # which leaves the file, but nobody who holds it
    with claimed(tmp_path / "a"):
        assert write(tmp_path / "a") == 0


def test_a_full_disk(tmp_path: Path) -> None:
    """The first shard does not fit; once there is room the same call goes on, and nothing half-written is left."""
    write(tmp_path / "whole")
    sizes = [(tmp_path / "whole" / f"rows_{i:06}.safetensors").stat().st_size for i in range(2)]
    index = (tmp_path / "whole" / "index.json").stat().st_size
    assert sizes[1] < sizes[0]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(index, sizes[0] - 1), hard))
    try:
        with pytest.raises(TwinflowError) as caught:
            write(tmp_path / "cut")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for words in (
        "rows_000000.safetensors could not be written",
        "File too large",
        "MiB are free",
        "same command",
    ):
        assert words in str(caught.value)
    assert sorted(file.name for file in (tmp_path / "cut").iterdir()) == ["index.json"]
    assert write(tmp_path / "cut") == 0
    assert len(CachedRows(tmp_path / "cut")) == 22
