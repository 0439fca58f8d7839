"""A cache folder: latents and conditions of a data set in safetensors shards, written once, read by mapping."""

from __future__ import annotations

import json
import os
import shutil
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from twinflow.data.encoding import ItemEncoder
from twinflow.data.identity import FileHashes, describe_differences, differences
from twinflow.data.packing import Packer, rows_json, unpack_row
from twinflow.data.rows import EncodedRow, encode_rows
from twinflow.errors import TwinflowError, check_place
from twinflow.tensor_files import save_tensors

INDEX_FILE = "index.json"
RECORD_FILE = "opening.safetensors"  # what the pipeline's encoders answered while it was opened
FORMAT = 1
SHARD_ROWS = 256
OPEN_SHARDS = 256
HIDDEN = ".writing-"
LOCK_FILE = ".lock"


def shard_name(number: int) -> str:
    return f"rows_{number:06}.safetensors"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """``folder`` for one writer alone, as long as its process lives; ``TwinflowError`` if there is another."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_FILE).open("w")
    with lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TwinflowError(
                f"another process is writing the cache {folder}: wait for it, or name another folder as data.cache"
            ) from None
        except (ImportError, OSError):  # neither Windows nor every shared disk has such locks
            pass
        yield


@contextmanager
def explained(file: Path) -> Iterator[None]:
    """Turn a failure to write ``file`` into an error with the remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        (file.with_name(HIDDEN + file.name)).unlink(missing_ok=True)
        there = next(place for place in (file, *file.absolute().parents) if place.exists())
        free = shutil.disk_usage(there).free / 2**20
        raise TwinflowError(
            f"{file} could not be written ({error}); {free:,.0f} MiB are free there. What is complete stays: make "
            "room, or see to the permissions, and run the same command again, which goes on from there"
        ) from error


def write_cache(
    folder: Path,
    dataset: Any,
    encoder: ItemEncoder,
    *,
    identity: Mapping[str, Any],
    hashes: FileHashes | None = None,
    extra: Mapping[str, Any] | None = None,
    shard_rows: int = SHARD_ROWS,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Encode ``dataset`` into ``folder``; how many rows were there already.

    A shard is complete under its name or not there, so that after a kill the same call goes on. What the folder
    holds of another ``identity`` is refused. ``extra``: JSON that is kept beside it. One process at a time:
    :func:`claimed`.
    """
    total = len(dataset)
    index = {
        "format": FORMAT,
        "identity": identity,
        "rows": total,
        "shard_rows": shard_rows,
        "buckets": [int(bucket) for bucket in getattr(dataset, "bucket_of", ())],
        "extra": extra or {},
        "files": (hashes or FileHashes()).known,
    }
    former = check_folder(folder, identity)
    if former is not None:
        index["shard_rows"] = shard_rows = former["shard_rows"]
        if former["rows"] != total:
            raise TwinflowError(f"{folder} was begun for {former['rows']} rows, and the data has {total} now")
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{HIDDEN}*"):
        leftover.unlink()
    _write_text(folder / INDEX_FILE, json.dumps(index) + "\n")
    there = 0
    for number, start in enumerate(range(0, total, shard_rows)):
        stop = min(start + shard_rows, total)
        if (folder / shard_name(number)).is_file():
            there += stop - start
        else:
            packer, rows = Packer(), []
            for first in range(start, stop, encoder.together):
                items = [dataset[row] for row in range(first, min(first + encoder.together, stop))]
                rows += [packer.pack_row(row) for row in encode_rows(items, encoder)]
                if progress is not None:
                    progress(first + len(items), total)
            _write_shard(folder / shard_name(number), packer.tensors, rows_json(rows))
        if progress is not None:
            progress(stop, total)
    return there


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a cache; ``TwinflowError`` if there is none that this version can read."""
    file = folder / INDEX_FILE
    try:
        index = json.loads(file.read_text())
        if index["format"] != FORMAT:
            raise ValueError(f"its format is {index['format']}")
    except FileNotFoundError:
        raise TwinflowError(
            f"there is no cache in {folder}: write it by `twinflow cache RECIPE data.cache={folder}`"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TwinflowError(f"{file} is not the index of a cache of this version: {error}") from error
    return index


def check_folder(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The index of the cache that was begun in ``folder``, or ``None`` if one may be begun there.

    ``TwinflowError`` if it is of another ``identity``, or if the folder holds other things.
    """
    if (folder / INDEX_FILE).is_file():
        index = read_index(folder)
        check_identity(folder, index, identity)
        return index
    check_place(folder, name="data.cache")
    ours = (RECORD_FILE, LOCK_FILE)
    if folder.is_dir() and not all(any(name in file.name for name in ours) for file in folder.iterdir()):
        raise TwinflowError(f"{folder} is not empty and holds no cache: name a new folder as data.cache")
    return None


def check_identity(folder: Path, index: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """``TwinflowError`` with what differs between what the cache was made of and what is there now."""
    lines = differences(index["identity"], json.loads(json.dumps(identity)))
    if lines:
        raise TwinflowError(
            f"the cache {folder} was made of something else:\n{describe_differences(lines)}\n"
            "Write a new one with `twinflow cache` into another folder, or delete this one first."
        )


class CachedRows:
    """The rows of a complete cache, as a data set and as encoded rows. Shards are mapped into memory as needed."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.index = read_index(self.folder)
        self._total, self._shard_rows = self.index["rows"], self.index["shard_rows"]
        self._starts = list(range(0, self._total, self._shard_rows))
        missing = [n for n in range(len(self._starts)) if not (self.folder / shard_name(n)).is_file()]
        if missing:
            raise TwinflowError(
                f"the cache {self.folder} is not finished: {len(missing)} of {len(self._starts)} shards are missing, "
                f"the first is {shard_name(missing[0])}; run `twinflow cache` again, it goes on where it stopped"
            )
        if self.index["buckets"]:
            self.bucket_of: list[int] = self.index["buckets"]
        self._open: OrderedDict[int, tuple[Any, list[dict[str, Any]]]] = OrderedDict()

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item without its picture: its captions."""
        captions = self.captions(index)
        return {"caption": captions[0]} | ({"captions": captions} if len(captions) > 1 else {})

    def captions(self, index: int) -> tuple[str, ...]:
        return tuple(self._packed(index)[1]["captions"])

    def row(self, index: int, *, number: int | None = None) -> EncodedRow:
        """Row ``index``; with ``number`` only the condition of that caption is read."""
        shard, packed = self._packed(index)
        return unpack_row(packed, self._fetch(shard), number=number)

    def _packed(self, index: int) -> tuple[int, dict[str, Any]]:
        if not 0 <= index < self._total:
            raise IndexError(index)
        shard = bisect_right(self._starts, index) - 1
        return shard, self._shard(shard)[1][index - self._starts[shard]]

    def _fetch(self, shard: int) -> Callable[[str], Tensor]:
        return self._shard(shard)[0].get_tensor

    def _shard(self, number: int) -> tuple[Any, list[dict[str, Any]]]:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        file = self.folder / shard_name(number)
        try:
            mapped = safe_open(file, framework="pt")
            rows = json.loads(mapped.metadata()["rows"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise TwinflowError(
                f"{file} is damaged ({error}): delete it and run `twinflow cache` again, which writes it anew"
            ) from error
        self._open[number] = (mapped, rows)
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)
        return self._open[number]


def remember_files(rows: CachedRows, hashes: FileHashes) -> None:
    """Keep the hashes of files that were read again, so that the next run need not; and let go of all of them."""
    former = rows.index.pop("files")
    if {name: tuple(stat) for name, stat in former.items()} != hashes.known:
        beside = rows.folder / f"{HIDDEN}{os.getpid()}-{INDEX_FILE}"
        with suppress(OSError):  # a cache may be on a disk that can only be read
            beside.write_text(json.dumps(rows.index | {"files": hashes.known}) + "\n")
            _into_place(beside, rows.folder / INDEX_FILE)


def _write_shard(file: Path, tensors: dict[str, Tensor], rows: str) -> None:
    hidden = file.with_name(HIDDEN + file.name)
    with explained(file):
        save_tensors(tensors, hidden, metadata={"rows": rows})
        _into_place(hidden, file)


def _write_text(file: Path, text: str) -> None:
    hidden = file.with_name(HIDDEN + file.name)
    with explained(file):
        hidden.write_text(text)
        _into_place(hidden, file)


def _into_place(hidden: Path, file: Path) -> None:
    """Under its name only once it is on the disk."""
    with hidden.open("rb") as written:
        os.fsync(written.fileno())
    hidden.replace(file)
