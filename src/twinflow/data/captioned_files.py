"""Which pictures of a folder have which captions, and what is wrong with those that have none."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What "file_name" of a line names: a picture or a clip; "source" of an editing line names a picture.
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
VIDEO_SUFFIXES = frozenset({".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg"})
METADATA_FILE = "metadata.jsonl"


@dataclass(frozen=True, kw_only=True)
class CaptionedFile:
    """A picture or clip and its captions, at least one, none of them empty."""

    path: Path | None  # None where there is a source and what to do with it alone
    captions: tuple[str, ...]
    source: Path | None = None  # the picture that the caption says how to edit


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


def _from_text_files(folder: Path, suffixes: frozenset[str]) -> Listing:
    listing = Listing()
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    visible = sorted(name for name in names if not any(part.startswith(".") for part in name.parts))
    pictures = [name for name in visible if name.suffix.lower() in suffixes]
    for name in pictures:
        text_file = name.with_suffix(".txt")
        if not (folder / text_file).is_file():
            problem = f"it has no caption: write one into {text_file.name}, or one line into {METADATA_FILE}"
            listing.problems.append(Problem(name=str(name), text=problem))
            continue
        try:
            caption = (folder / text_file).read_text(encoding="utf-8-sig").strip()
        except UnicodeDecodeError:
            problem = "the caption is not UTF-8: save it as UTF-8"
            listing.problems.append(Problem(name=str(text_file), text=problem))
            continue
        if not caption:
            problem = "the caption is empty: write one, or remove the picture"
            listing.problems.append(Problem(name=str(text_file), text=problem))
            continue
        listing.files.append(CaptionedFile(path=folder / name, captions=(caption,)))
    captioned = {name.with_suffix("") for name in pictures}
    for name in visible:
        if name.suffix == ".txt" and name.with_suffix("") not in captioned:
            problem = "there is no picture of this name: add it, or remove the caption"
            listing.problems.append(Problem(name=str(name), text=problem))
    return listing


def _from_metadata(folder: Path, metadata: Path) -> Listing:
    listing = Listing()
    lines = metadata.read_text(encoding="utf-8-sig").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            listing.files.append(_metadata_entry(folder, line))
        except ValueError as error:
            listing.problems.append(Problem(name=f"{METADATA_FILE} line {number}", text=str(error)))
    return listing


def _metadata_entry(folder: Path, line: str) -> CaptionedFile:
    """One line ``{"file_name": …, "text": caption or list of captions, "source": …}``."""
    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error}): correct the line") from None
    named = isinstance(entry, dict) and ({"file_name", "source"} & entry.keys()) and "text" in entry
    if not named or not all(isinstance(entry.get(key, ""), str) for key in ("file_name", "source")):
        raise ValueError('it must be {"file_name": "…", "text": "…"}: add what is missing')
    name = entry.get("file_name") or entry["source"]
    captions = captions_of(entry["text"], name=name)
    for key in ("file_name", "source"):
        if entry.get(key) and not (folder / entry[key]).is_file():
            raise ValueError(f"the picture {entry[key]} is missing: add it, or remove the line")
    return CaptionedFile(
        path=folder / entry["file_name"] if entry.get("file_name") else None,
        captions=captions,
        source=folder / entry["source"] if entry.get("source") else None,
    )


def captions_of(text: Any, *, name: str) -> tuple[str, ...]:
    """A caption or a list of captions, stripped; ``ValueError`` says what is wrong with those of ``name``."""
    captions = list(text) if isinstance(text, (list, tuple)) else [text]
    if not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f'"text" of {name} must be a caption or a list of captions: correct it')
    if not captions or not all(caption.strip() for caption in captions):
        raise ValueError(f"a caption of {name} is empty: write one, or remove the line")
    return tuple(caption.strip() for caption in captions)
