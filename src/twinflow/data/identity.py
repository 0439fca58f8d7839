"""What a cache was made of: the encoders, the settings, the contents of the files; and what differs from now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from twinflow.assets import locate
from twinflow.data.buckets import Buckets
from twinflow.data.captioned_files import (
    IMAGE_SUFFIXES,
    METADATA_FILE,
    VIDEO_SUFFIXES,
    list_captioned_files,
    visible_files,
)
from twinflow.data.folder import OnError
from twinflow.data.shards import local_files, open_table, saved_files
from twinflow.data.table import Columns, RowReader
from twinflow.errors import TwinflowError
from twinflow.hub import hub_or_cache
from twinflow.pipelines.checkpoint import Manifest
from twinflow.pipelines.model_name import check_name

# Parts of a pipeline that training changes, or that have no say in what is encoded.
TRAINED = ("transformer", "transformer_2", "scheduler")
# Settings of a data section that don't change what an example is.
FREE = ("cache", "check", "encode_batch", "window", "path")
SHOWN = 5
# Counted up when items are made otherwise than by an earlier version, so that caches of then are refused.
PREPARATION = {"video": 2, "dataset": 3, "folder": 2}

Stat = tuple[int, int, int, str]  # size, times of the last change of contents and of anything, hash


class FileHashes:
    """Hashes of files' contents. A file of the same size and times of change as before is not read again.

    The second time is the file system's own: unlike that of the contents, no tool sets it back when it puts another
    file in the place of one.
    """

    def __init__(self, known: Mapping[str, Any] | None = None) -> None:
        self.known: dict[str, Stat] = {name: tuple(stat) for name, stat in (known or {}).items()}  # type: ignore[misc]

    def of(self, folder: Path, files: Iterable[Path], *, prefix: str) -> dict[str, str]:
        """Hash by name relative to ``folder``."""
        listed = sorted(set(files))
        with ThreadPoolExecutor() as pool:
            hashes = list(pool.map(lambda file: self._hash(prefix, file), listed))
        return {_relative(file, folder): value for file, value in zip(listed, hashes, strict=True)}

    def _hash(self, prefix: str, file: Path) -> str:
        stat = file.stat()
        key = f"{prefix} {file.resolve()}"
        known = self.known.get(key)
        seen = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if known is not None and known[:3] == seen:
            return known[3]
        with file.open("rb") as raw:
            value = hashlib.file_digest(raw, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        self.known[key] = (*seen, value)
        return value


def model_identity(path: str, *, settings: Mapping[str, Any], hashes: FileHashes) -> dict[str, Any]:
    """Of a pipeline's folder or hub id: its class, its encoders' files, and ``settings`` of how it is opened."""
    folder = pipeline_folder(path)
    parts = json.loads((folder / "model_index.json").read_text())
    names = [n for n, part in parts.items() if isinstance(part, list) and part[1] and n not in TRAINED]
    files = [
        file
        for name in sorted(names)
        for file in (folder / name).rglob("*")
        if file.is_file() and not file.name.startswith(".")
    ]
    configs = [folder / "transformer" / "config.json"]  # says how latents are packed
    files += [file for file in configs if file.is_file()]
    return {
        "class": parts.get("_class_name"),
        "files": hashes.of(folder, files, prefix="model"),
        **{key: _plain(value) for key, value in settings.items()},
    }


def pipeline_folder(path: str) -> Path:
    """The folder of a pipeline: itself, an embedded one, where the hub's client keeps it, or that of a LoRA's base."""
    folder = Path(locate(path))
    adapter = Manifest.read(folder).adapter
    if adapter is not None:  # it has no encoders of its own
        if adapter.base is None:
            raise TwinflowError(f"{path} is a LoRA that names no base: its encoders can't be found")
        return pipeline_folder(adapter.base)
    if (folder / "model_index.json").is_file():
        return folder
    check_name(path)
    from diffusers import DiffusionPipeline

    try:
        with hub_or_cache(path):
            return Path(DiffusionPipeline.download(path))
    except TwinflowError:
        raise
    except Exception as error:  # the hub's client raises whatever the network leads it to
        raise TwinflowError(f"{path} is not a folder or a model on the hub: {error}") from error


def data_identity(settings: Any, *, hashes: FileHashes) -> dict[str, Any]:
    """Of a data section: what it says, and the contents of its files.

    Of a table that names its pictures by paths these are contents, too. Of a data set on the hub there is its name and
    revision alone.
    """
    said = {key: value for key, value in settings.model_dump(mode="json").items() if key not in FREE}
    if settings.kind in PREPARATION:
        said["preparation"] = PREPARATION[settings.kind]
    path = getattr(settings, "path", None)
    if path is None:
        return said
    place = Path(path)
    if settings.kind == "dataset":
        files = local_files(path)
        if files is None:
            return said | {"hub": path}
        if files == [place] and place.is_dir():
            files = saved_files(place)
        files = [*files, *named_pictures(settings)]
    elif place.is_dir():
        files = captioned_contents(place, VIDEO_SUFFIXES if settings.kind == "video" else IMAGE_SUFFIXES)
    elif place.is_file():
        files = [place]
    else:
        raise TwinflowError(f"there is no file or folder {path}")
    folder = place if place.is_dir() else place.parent
    return said | {"contents": _digest(hashes.of(folder, files, prefix="data"))}


def captioned_contents(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    """The files of ``folder`` that a data set of pictures or clips is made of, and those elsewhere that its
    ``metadata.jsonl`` names. What else lies there, say the cache itself, is none of it."""
    metadata = folder / METADATA_FILE
    if metadata.is_file():
        named = list_captioned_files(folder, suffixes=suffixes).files
        return [metadata, *(path for file in named for path in (file.path, file.source) if path is not None)]
    used = suffixes | {".txt"}
    return [folder / name for name in visible_files(folder) if name.suffix.lower() in used]


def named_pictures(settings: Any) -> set[Path]:
    """The files of pictures that a table names by paths. It is streamed, which copies nothing."""
    if all(file.suffix == ".tar" for file in local_files(settings.path) or ()):  # they are in there
        return set()
    on_error: OnError = "raise" if settings.on_error == "stop" else "skip"
    table = open_table(
        settings.path, split=settings.split, streaming=True, on_error=on_error, options=settings.options
    )
    columns, buckets = Columns(**settings.columns.model_dump()), Buckets.fixed(1)
    reader = RowReader.of(table, columns=columns, buckets=buckets, pictures=settings.pictures)
    return reader.files(table.rows)


def differences(former: Any, present: Any, name: str = "") -> list[str]:
    """One line for each value that differs."""
    if isinstance(former, dict) and isinstance(present, dict):
        keys = dict.fromkeys([*former, *present])
        return [
            line
            for key in keys
            for line in differences(former.get(key), present.get(key), f"{name}.{key}" if name else str(key))
        ]
    return [] if former == present else [f"{name}: {former!r} in the cache, {present!r} now"]


def describe_differences(lines: list[str]) -> str:
    shown = [f"  {line}" for line in lines[:SHOWN]]
    return "\n".join(shown + ([f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []))


def _digest(named: Mapping[str, str]) -> dict[str, Any]:
    """One hash of all; few files are listed one by one, so that the one that differs can be named."""
    if len(named) <= 64:
        return dict(named)
    text = json.dumps(sorted(named.items())).encode()
    return {"files": len(named), "hash": hashlib.blake2b(text, digest_size=16).hexdigest()}


def _plain(value: Any) -> Any:
    """JSON, with the hash of anything else: of a picture in the call that a pipeline is opened with."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raw = value.tobytes() if hasattr(value, "tobytes") else repr(value).encode()
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def _relative(file: Path, folder: Path) -> str:
    try:
        return file.relative_to(folder).as_posix()
    except ValueError:
        return file.as_posix()
