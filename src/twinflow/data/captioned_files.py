"""Which pictures of a folder have which captions, and what is wrong with those that have none."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

# What "file_name" of a line names: a picture or a clip; "source" of an editing line names a picture.
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
VIDEO_SUFFIXES = frozenset({".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg"})
METADATA_FILE = "metadata.jsonl"
HAS_NUL = "has a NUL character, as UTF-16 has when it is read as UTF-8: save it as UTF-8"


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionedFile:
    """A picture or clip and its captions, at least one, none of them empty."""

    path: Path | None  # None where there is a source and what to do with it alone
    captions: tuple[str, ...]
    source: Path | None = None  # the picture that the caption says how to edit


class CaptionedFiles(Sequence[CaptionedFile]):
    """Many of them, held as bytes rather than as objects, of which a million take a gigabyte."""

    def __init__(self, files: Iterable[CaptionedFile]) -> None:
        import pyarrow as pa

        def names(paths: Iterable[Path | None]) -> Any:  # as bytes, since a name need not be UTF-8
            return pa.array(
                [None if path is None else os.fsencode(path) for path in paths], pa.large_binary()
            )

        listed = list(files)
        self._paths = names(file.path for file in listed)
        self._sources = names(file.source for file in listed)
        texts = pa.large_list(pa.large_string())
        self._captions = pa.array([file.captions for file in listed], texts)

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> CaptionedFile: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[CaptionedFile]: ...

    def __getitem__(self, index: int | slice) -> CaptionedFile | Sequence[CaptionedFile]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        path, source = (
            None if name is None else Path(os.fsdecode(name))
            for name in (self._paths[index].as_py(), self._sources[index].as_py())
        )
        return CaptionedFile(path=path, captions=tuple(self._captions[index].as_py()), source=source)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a file cannot be used, and what to do about it."""

    name: str  # relative to the folder
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


@dataclass
class Listing:
    files: list[CaptionedFile] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def list_captioned_files(folder: Path, *, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> Listing:
    """Files named by ``metadata.jsonl``, in its order, or else all with a .txt beside them, by name."""
    metadata = folder / METADATA_FILE
    if not metadata.is_file():
        return _from_text_files(folder, suffixes)
    listing = _from_metadata(folder, metadata)
    without = [file for file in listing.files if file.source is None]
    if 0 < len(without) < len(listing.files):
        for file in without:
            problem = 'it has no "source", and other lines do: add it, or remove the line'
            listing.problems.append(Problem(name=str(file.path), text=problem))
        listing.files = [file for file in listing.files if file.source is not None]
    return listing


def visible_files(folder: Path) -> list[Path]:
    """Relative to ``folder``, in order, those of its subfolders too, but none that is hidden or in a hidden one."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if not any(part.startswith(".") for part in name.parts))


def _from_text_files(folder: Path, suffixes: frozenset[str]) -> Listing:
    listing = Listing()
    visible = visible_files(folder)
    pictures = [name for name in visible if name.suffix.lower() in suffixes]
    for name in pictures:
        text_file = name.with_suffix(".txt")
        if not (folder / text_file).is_file():
            problem = f"it has no caption: write one into {text_file.name}, or one line into {METADATA_FILE}"
            listing.problems.append(Problem(name=str(name), text=problem))
            continue
        try:
            caption = _caption((folder / text_file).read_bytes())
        except ValueError as error:
            listing.problems.append(Problem(name=str(text_file), text=str(error)))
            continue
        listing.files.append(CaptionedFile(path=folder / name, captions=(caption,)))
    captioned = {name.with_suffix("") for name in pictures}
    for name in visible:
        if name.suffix == ".txt" and name.with_suffix("") not in captioned:
            problem = "there is no picture of this name: add it, or remove the caption"
            listing.problems.append(Problem(name=str(name), text=problem))
    return listing


def _caption(raw: bytes) -> str:
    """The text of a caption file; ``ValueError`` says what is wrong with it."""
    caption = decoded(raw, name="the caption").strip()
    if not caption:
        raise ValueError("the caption is empty: write one, or remove the picture")
    if "\0" in caption:
        raise ValueError(f"the caption {HAS_NUL}")
    return caption


def _from_metadata(folder: Path, metadata: Path) -> Listing:
    listing = Listing()
    for number, line in lines_of(metadata):
        try:
            listing.files.append(_metadata_entry(folder, line))
        except ValueError as error:
            listing.problems.append(Problem(name=f"{METADATA_FILE} line {number}", text=str(error)))
    return listing


def lines_of(file: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a text file that are not blank, with their numbers from 1.

    Only a line feed ends a line: JSON lets strings hold the other characters that ``str.splitlines`` ends lines at.
    """
    lines = file.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    for number, line in enumerate(lines, start=1):
        if line.decode(errors="replace").strip():
            yield number, line


def decoded(raw: bytes, *, name: str) -> str:
    """UTF-8 with or without a byte order mark; ``ValueError`` names what is not."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8: save it as UTF-8") from None


def json_entry(line: bytes) -> Any:
    """The value of a line of JSON; ``ValueError`` says what is wrong with it."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f'it has "{name}" more than once: leave one (several captions are a list)')
        return dict(pairs)

    text = decoded(line, name="it")
    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error}): correct the line") from None


def _metadata_entry(folder: Path, line: bytes) -> CaptionedFile:
    """One line ``{"file_name": …, "text": caption or list of captions, "source": …}``."""
    entry = json_entry(line)
    named = isinstance(entry, dict) and (entry.get("file_name") or entry.get("source")) and "text" in entry
    if not named or not all(isinstance(entry.get(key, ""), str) for key in ("file_name", "source")):
        raise ValueError('it must be {"file_name": "…", "text": "…"}: add what is missing')
    name = entry.get("file_name") or entry["source"]
    captions = captions_of(entry["text"], name=name)
    for key in ("file_name", "source"):
        if entry.get(key) and not _is_file(folder / entry[key]):
            raise ValueError(f"the picture {entry[key]} is missing: add it, or remove the line")
    return CaptionedFile(
        path=folder / entry["file_name"] if entry.get("file_name") else None,
        captions=captions,
        source=folder / entry["source"] if entry.get("source") else None,
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no file has such a name: it is too long
        return False


def captions_of(text: Any, *, name: str) -> tuple[str, ...]:
    """A caption or a list of captions, stripped; ``ValueError`` says what is wrong with those of ``name``."""
    captions = list(text) if isinstance(text, (list, tuple)) else [text]
    if not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f'"text" of {name} must be a caption or a list of captions: correct it')
    bare = tuple(caption.removeprefix("\ufeff").strip() for caption in captions)
    if not bare or not all(bare):
        raise ValueError(f"a caption of {name} is empty: write one, or remove the line")
    for caption in bare:
        if "\0" in caption:
            raise ValueError(f"a caption of {name} {HAS_NUL}")
        if not caption.isascii() and any("\ud800" <= character <= "\udfff" for character in caption):
            raise ValueError(
                f"a caption of {name} has half of a surrogate pair, which is no text: correct it"
            )
    return bare
