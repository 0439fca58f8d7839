"""Tables of pictures and captions: parquet, webdataset shards, and whatever else ``datasets`` opens."""

from __future__ import annotations

import glob
import json
import logging
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from twinflow.data.captioned_files import Problem
from twinflow.data.folder import OnError, describe_problems
from twinflow.data.shard_columns import ShardColumns
from twinflow.errors import TwinflowError
from twinflow.hub import hub_or_cache

logger = logging.getLogger(__name__)

# The builder of ``datasets`` for each kind of file.
BUILDERS = {
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".arrow": "arrow",
}
COLUMNAR = ("parquet", "arrow")  # files that say of which types their columns are


@dataclass(kw_only=True)
class Table:
    """An open table. ``files``: the local files that it was read from; none for a data set on the hub.

    ``folder``: beside which its rows name pictures, if they do so by relative paths.
    """

    name: str
    rows: Any  # datasets.Dataset, or datasets.IterableDataset if it is streamed
    files: list[Path] = field(default_factory=list)
    folder: Path | None = None
    columns: ShardColumns | None = None  # of files that say of which types their columns are

    def why_unreadable(self, file: Path, error: Exception) -> str:
        """Why reading ``file`` ended in ``error``: where columns clash, which do, and how."""
        clash = self.columns.why_clashing(file, whole=True) if self.columns is not None else None
        return clash or f"{type(error).__name__}: {error}"


def open_table(
    path: str,
    *,
    split: str = "train",
    streaming: bool = False,
    on_error: OnError = "raise",
    options: Mapping[str, Any] | None = None,
) -> Table:
    """``path``: a file, a pattern such as ``shards/*.tar``, a folder of such files, a folder that
    ``Dataset.save_to_disk`` wrote, or the name of a data set on the hub. ``options`` go to
    ``datasets.load_dataset`` (``name``, ``revision``, …).

    Shards are checked as far as that is cheap: archives by the headers of all members, parquet by its footer, which
    also says whether its columns are those of the first shard. Broken ones are one :class:`TwinflowError` that names
    them, or are logged and left out.
    """
    files = local_files(path)
    if files is None:
        settings = dict(options or {})
        with hub_or_cache(path, fetched=_fetched(path, settings.get("cache_dir"))):
            rows = _load(path, path, split=split, streaming=streaming, **settings)
        return Table(name=path, rows=rows)
    if files == [Path(path)] and Path(path).is_dir():
        arrow = [file for file in saved_files(Path(path)) if file.suffix == ".arrow"]
        rows = _saved(path, split, streaming)
        return Table(name=path, rows=rows, files=arrow, folder=Path(path))
    builder = BUILDERS[files[0].suffix]
    folder = Path(path) if Path(path).is_dir() else Path(os.path.commonpath([file.parent for file in files]))

    def load(sound: list[Path], **more: Any) -> Table:
        names = [glob.escape(str(file)) for file in sound]
        rows = _load(
            path, builder, split="train", streaming=streaming, data_files=names, **(options or {}), **more
        )
        known = columns if builder in COLUMNAR else None
        return Table(name=path, rows=rows, files=sound, folder=folder, columns=known)

    sound = _sound(path, files, why_broken, on_error)
    sound = [file for file in sound if not _has_no_row(file)]  # which ``datasets`` can't read
    if not sound:
        raise TwinflowError(f"{path} has no row")
    more: dict[str, Any] = {}
    why = partial(why_unreadable_table, more=more)
    columns = ShardColumns(first=sound[0], chosen=(options or {}).get("columns"))
    if builder == "parquet":
        sound = _sound(path, sound, columns.why_clashing, on_error)
    if builder in COLUMNAR:
        why = partial(columns.why_clashing, whole=True)
    try:
        return load(sound)
    except TwinflowError:
        if builder == "webdataset":
            more["features"] = features_of(sound)
            with suppress(TwinflowError):
                return load(sound, **more)
        # Find the shard, to name it or to leave it out.
        return load(_sound(path, sound, why, on_error), **more)


def local_files(path: str) -> list[Path] | None:
    """The files that ``path`` names, in order; ``None`` if it can only be the name of a data set on the hub."""
    place = Path(path)
    if glob.has_magic(path) and not place.exists():
        files = sorted(Path(name) for name in glob.glob(path, recursive=True))
        if not files:
            raise TwinflowError(f"no file matches {path}")
    elif place.is_file():
        files = [place]
    elif place.is_dir():
        if any((place / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return [place]
        files = sorted(file for file in place.rglob("*") if file.suffix in (".parquet", ".tar", ".arrow"))
        if not files:
            raise TwinflowError(
                f"{path} has no .parquet, .tar or .arrow files: for pictures with captions in text files use "
                "data.kind = 'folder'"
            )
    elif place.is_absolute() or path.startswith(".") or place.suffix in BUILDERS or path.count("/") > 1:
        raise TwinflowError(f"there is no file or folder {path}")
    else:
        return None
    kinds = sorted({file.suffix for file in files})
    if len(kinds) > 1 or kinds[0] not in BUILDERS:
        raise TwinflowError(
            f"{path} names files of the kinds {', '.join(kinds)}: give files of one of {', '.join(BUILDERS)}"
        )
    return files


def saved_files(folder: Path) -> list[Path]:
    """What ``Dataset.save_to_disk`` wrote to ``folder``. ``datasets`` keeps its own notes beside it."""
    states = sorted(folder.rglob("state.json"))
    listed = [
        state.parent / part["filename"]
        for state in states
        for part in json.loads(state.read_text()).get("_data_files", ())
    ]
    return [*states, *listed]


def features_of(archives: Sequence[Path]) -> Any:
    """Columns of webdataset shards by the names of all their members.

    ``datasets`` itself goes by the first five examples: it refuses them if one of them lacks something, and all
    later ones whose JSON has other types.
    """
    import datasets
    from datasets.packaged_modules.webdataset.webdataset import WebDataset, base_plus_ext

    texts = dict.fromkeys(("txt", "text", "transcript"), datasets.Value("string"))
    texts |= dict.fromkeys(("json", "jsn"), datasets.Json()) if hasattr(datasets, "Json") else {}
    pictures = {suffix: datasets.Image() for suffix in WebDataset.IMAGE_EXTENSIONS}
    found = {}
    for file in archives:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                name = base_plus_ext(member.name)[1] if member.isfile() else None
                if name is None or name in found:
                    continue
                suffix = name.split(".")[-1].lower()
                unread = None if suffix in WebDataset.DECODERS else datasets.Value("binary")
                found[name] = texts.get(suffix) or pictures.get(suffix) or unread
    columns = {name: feature for name, feature in found.items() if feature is not None}
    return datasets.Features(columns | dict.fromkeys(("__key__", "__url__"), datasets.Value("string")))


def _has_no_row(file: Path) -> bool:
    if file.suffix != ".parquet":
        return False
    from pyarrow import parquet

    return bool(parquet.ParquetFile(file).metadata.num_rows == 0)


def why_broken(file: Path) -> str | None:
    """What is wrong with a shard, as far as that is cheap to see; ``None`` if nothing is."""
    try:
        if file.suffix == ".tar":
            return _why_broken_archive(file)
        if file.suffix == ".parquet":
            from pyarrow import parquet

            parquet.ParquetFile(file)  # reads the footer, which comes last
    except Exception as error:  # readers raise whatever a broken file leads them to
        return f"{type(error).__name__}: {error}"
    return None


def _why_broken_archive(file: Path) -> str | None:
    """``tarfile`` takes a damaged header, and the end of the file, for the end of the archive, which is zeros."""
    with tarfile.open(file, "r:") as archive:
        while archive.next() is not None:
            pass
        end = archive.offset
    with file.open("rb") as raw:
        raw.seek(end)
        block = raw.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        return f"it is cut off at byte {end}: the mark of its end is missing"
    if block.strip(b"\0"):
        return f"the header at byte {end} is damaged"
    return None


def why_unreadable_table(file: Path, *, more: Mapping[str, Any]) -> str | None:
    """What is wrong with a shard, found by reading all of it; ``more`` are arguments of ``datasets.load_dataset``."""
    try:
        name, builder = glob.escape(str(file)), BUILDERS[file.suffix]
        for _ in _load(str(file), builder, split="train", streaming=True, data_files=name, **more):
            pass
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _sound(
    path: str, files: Sequence[Path], why: Callable[[Path], str | None], on_error: OnError
) -> list[Path]:
    with ThreadPoolExecutor() as pool:
        reasons = list(pool.map(why, files))
    problems = [
        Problem(name=str(file), text=f"the shard cannot be read ({reason}): replace or remove it")
        for file, reason in zip(files, reasons, strict=True)
        if reason is not None
    ]
    sound = [file for file, reason in zip(files, reasons, strict=True) if reason is None]
    if problems and (on_error == "raise" or not sound):
        raise TwinflowError(describe_problems(path, problems, total=len(files)))
    for problem in problems:
        logger.warning("%s: left out a shard\n  %s", path, problem)
    return sound


def _saved(path: str, split: str, streaming: bool) -> Any:
    import datasets

    try:
        saved = datasets.load_from_disk(path)
        table = saved[split] if isinstance(saved, datasets.DatasetDict) else saved
    except Exception as error:
        raise TwinflowError(f"{path} can't be read: {type(error).__name__}: {error}") from error
    return table.to_iterable_dataset(num_shards=max(1, min(64, len(table)))) if streaming else table


def _fetched(name: str, cache: str | None) -> Path:
    """Where ``datasets`` keeps what it has fetched and prepared of the data set ``name`` on the hub."""
    import datasets

    return Path(cache or datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")


def _load(path: str, what: str, **arguments: Any) -> Any:
    import datasets

    try:
        return datasets.load_dataset(what, **arguments)
    except Exception as error:  # builders and the hub's client raise whatever a bad source leads them to
        cause = error.__cause__ or error
        where = (
            ""
            if "data_files" in arguments and what in BUILDERS.values()
            else (": it is no file or folder here, and was looked for on the hub")
        )
        raise TwinflowError(f"{path} can't be opened{where} ({type(cause).__name__}: {cause})") from error
