"""Which pictures of a folder have which captions, and what is wrong with those that have none."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
METADATA_FILE = "metadata.jsonl"


@dataclass(frozen=True, kw_only=True)
class CaptionedFile:
    """A picture and its captions, at least one, none of them empty."""

    path: Path
    captions: tuple[str, ...]


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


def list_captioned_files(folder: Path) -> Listing:
    """Pictures named by ``metadata.jsonl``, in its order, or else all with a .txt beside them, by name."""
    metadata = folder / METADATA_FILE
    return _from_metadata(folder, metadata) if metadata.is_file() else _from_text_files(folder)


def _from_text_files(folder: Path) -> Listing:
    listing = Listing()
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    visible = sorted(name for name in names if not any(part.startswith(".") for part in name.parts))
    pictures = [name for name in visible if name.suffix.lower() in IMAGE_SUFFIXES]
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
    """The picture of one line ``{"file_name": …, "text": caption or list of captions}``."""
    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error}): correct the line") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str) or "text" not in entry:
        raise ValueError('it must be {"file_name": "…", "text": "…"}: add what is missing')
    name, text = entry["file_name"], entry["text"]
    captions = text if isinstance(text, list) else [text]
    if not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f'"text" of {name} must be a caption or a list of captions: correct it')
    if not captions or not all(caption.strip() for caption in captions):
        raise ValueError(f"a caption of {name} is empty: write one, or remove the line")
    if not (folder / name).is_file():
        raise ValueError(f"the picture {name} is missing: add it, or remove the line")
    return CaptionedFile(path=folder / name, captions=tuple(caption.strip() for caption in captions))
