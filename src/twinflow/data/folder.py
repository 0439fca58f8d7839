"""A folder of pictures with captions, all of them checked before anything expensive begins."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from twinflow.data.buckets import Buckets
from twinflow.data.captioned_files import (
    METADATA_FILE,
    CaptionedFile,
    CaptionedFiles,
    Listing,
    Problem,
    list_captioned_files,
)
from twinflow.data.encoding import caption_at
from twinflow.data.pictures import FLOATS, fit, open_picture, to_pixels, upright_sides
from twinflow.errors import TwinflowError

SHOWN_PROBLEMS = 5
MANY = 10_000  # files, which take a while to look at
OnError = Literal["raise", "skip"]
Check = Literal["all", "headers"]
logger = logging.getLogger(__name__)


class FolderDataset:
    """Map-style dataset; item -> {"pixels": (3, H, W) float32 in [-1, 1], "caption": str}.

    ``path`` holds pictures, in subfolders too, each with a caption in a ``.txt`` file of the same stem; or a
    ``metadata.jsonl`` of lines ``{"file_name": "a.png", "text": "…"}``, where ``text`` may be a list of
    captions. Of several captions one is chosen by a hash of (seed, epoch, index): see :meth:`set_epoch`; the item
    then has all of them as "captions". Lines with ``"source": "b.png"`` say how to edit that picture; the item
    then has it as "source".

    ``size`` is the side, or (height, width), or :class:`Buckets`, of which each picture gets the nearest. Pictures
    are turned upright (EXIF), brought to sRGB (ICC), put on white where they are transparent, resized (Lanczos) until
    they cover their size, and cropped at the centre. Source pictures are brought to the size of their row.

    ``pictures`` false: items without "pixels", of captions and source pictures alone.

    Building the dataset decodes every file, or with ``check="headers"`` reads their first bytes alone: a picture
    that is cut off is then found when it is reached. Missing pictures, missing or empty captions and files that
    cannot be read are one :class:`TwinflowError` that names them; with ``on_error="skip"`` they are logged and
    left out.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        size: int | tuple[int, int] | Buckets,
        on_error: OnError = "raise",
        seed: int = 0,
        pictures: bool = True,
        check: Check = "all",
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error must be "raise" or "skip", got {on_error!r}')
        self.buckets = size if isinstance(size, Buckets) else Buckets.fixed(size)
        self.path, self.seed, self.pictures = Path(path), seed, pictures
        listing = readable_files(
            self.path,
            self._list,
            lambda file: [path for path in (file.path if pictures else None, file.source) if path],
            partial(why_unreadable, check=check),
            on_error=on_error,
            kind="picture",
        )
        self.files = CaptionedFiles(listing)
        with ThreadPoolExecutor() as pool:
            self.bucket_of = list(pool.map(self._bucket, listing))
        # In shared memory, so that worker processes of a loader that outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def _list(self, folder: Path) -> Listing:
        listing = list_captioned_files(folder)
        without = [file for file in listing.files if file.path is None] if self.pictures else []
        for file in without:
            text = 'it has no "file_name", the picture after the edit: add it, or train without (pictures: false)'
            listing.problems.append(Problem(name=str(file.source), text=text))
        if without:
            listing.files = [file for file in listing.files if file.path is not None]
        return listing

    def set_epoch(self, epoch: int) -> None:
        """Choose captions anew; call it before iterating over the epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        file, sides = self.files[index], self.buckets.sides[self.bucket_of[index]]
        item: dict[str, Any] = {"caption": self.caption(index)}
        if self.pictures and file.path is not None:
            item["pixels"] = to_pixels(fit(_opened(file.path), sides))
        if file.source is not None:
            item["source"] = fit(_opened(file.source), sides)
        if len(file.captions) > 1:
            item["captions"] = file.captions
        return item

    def caption(self, index: int) -> str:
        """The caption of item ``index`` in this epoch."""
        captions = self.files[index].captions
        return caption_at(captions, seed=self.seed, epoch=int(self._epoch), row=index)

    def _bucket(self, file: CaptionedFile) -> int:
        seen = file.source if not self.pictures else file.path
        if len(self.buckets) == 1 or seen is None:
            return 0
        with Image.open(seen) as image:
            return self.buckets.nearest(*upright_sides(image))


def _opened(path: Path) -> Image.Image:
    try:
        return open_picture(path)
    except Exception as error:  # it was sound when the data set was built
        raise TwinflowError(
            f"{path} cannot be read ({type(error).__name__}: {error}): put it back, or start again without it"
        ) from error


def readable_files(
    folder: Path,
    list_files: Callable[[Path], Listing],
    needed: Callable[[CaptionedFile], list[Path]],
    reason: Callable[[Path], str | None],
    *,
    on_error: OnError,
    kind: str,
) -> list[CaptionedFile]:
    """The usable files of ``folder``; see :class:`FolderDataset` about the others.

    ``needed``: what has to be readable of an entry; ``reason``: why a file is not.
    """
    if not folder.is_dir():
        raise TwinflowError(f"{folder} is not a folder: give a folder of {kind}s with captions")
    listing = list_files(folder)
    if len(listing.files) >= MANY:
        logger.info("%s: looking at %d %ss", folder, len(listing.files), kind)
    readable, unreadable = _check(folder, listing.files, needed, reason, kind)
    problems = listing.problems + unreadable
    if problems and on_error == "raise":
        raise TwinflowError(describe_problems(str(folder), problems, total=len(readable) + len(problems)))
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        logger.warning("%s: left out %d files\n%s", folder, len(problems), lines)
    if not readable:
        raise TwinflowError(
            f"{folder} has no usable {kind}: add {kind}s, each with a caption in a .txt file of the same "
            f"stem or in {METADATA_FILE}"
        )
    return readable


def _check(
    folder: Path,
    files: list[CaptionedFile],
    needed: Callable[[CaptionedFile], list[Path]],
    reason: Callable[[Path], str | None],
    kind: str,
) -> tuple[list[CaptionedFile], list[Problem]]:
    def fault(file: CaptionedFile) -> Problem | None:
        for path in needed(file):
            why = reason(path)
            if why is not None:  # metadata may name files elsewhere
                text = f"the {kind} cannot be read ({why}): replace or remove it"
                return Problem(name=os.path.relpath(path, folder), text=text)
        return None

    # Threads: decoding releases the interpreter lock, and reading waits for the disk.
    with ThreadPoolExecutor() as pool:
        faults = list(pool.map(fault, files))
    readable = [file for file, problem in zip(files, faults, strict=True) if problem is None]
    return readable, [problem for problem in faults if problem is not None]


def why_unreadable(path: Path, *, check: Check = "all") -> str | None:
    """Read the whole file as cheaply as its format allows, or what it begins with; ``None`` if that is sound."""
    try:
        with Image.open(path) as image:
            if check == "headers":
                pass
            elif image.format == "PNG":
                image.verify()  # checksums of all chunks
            else:
                image.draft("RGB", (1, 1))  # JPEG: decode at an eighth of the size; others: no effect
                image.load()  # verify() does not notice a truncated JPEG
            if image.mode == "F":
                return FLOATS
    except Exception as error:  # decoders raise whatever a broken file leads them to
        return f"{type(error).__name__}: {error}".replace(str(path), path.name)
    return None


def describe_problems(where: str, problems: list[Problem], *, total: int) -> str:
    """One message that names the first of ``problems`` and counts the others."""
    lines = [f"{len(problems)} of {total} entries of {where} cannot be used:"]
    lines += [f"  {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"  and {len(problems) - SHOWN_PROBLEMS} more")
    lines.append('Put them right, or leave them out with on_error="skip".')
    return "\n".join(lines)
