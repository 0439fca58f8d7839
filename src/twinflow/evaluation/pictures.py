"""Pictures of a benchmark on disk: which there must be, and reading and writing them without a loss.

Pictures are PNG. A file appears under its name when it is whole, and carries a key that says how it was drawn,
so that a run that was stopped knows what it has.
"""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from twinflow.errors import TwinflowError

KEY = "twinflow"  # name of the PNG text chunk that holds the key
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}  # what counts as a picture in a folder


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture that a benchmark asks for."""

    file: str  # relative to the folder of a model's pictures, with "/"
    prompt: str
    seed: int
    skip: int = 0  # pictures of this prompt and seed that draw from the same generator before this one


def save_picture(path: Path, image: Image.Image, *, key: str) -> None:
    """Write a PNG, whole or not at all. The same pixels and key give the same bytes."""
    text = PngImagePlugin.PngInfo()
    text.add_text(KEY, key)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=text)
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    hidden.write_bytes(buffer.getvalue())
    os.replace(hidden, path)


def key_of(path: Path) -> str | None:
    """The key that :func:`save_picture` wrote; ``None`` for another picture, or none. Pixels are not read."""
    try:
        with Image.open(path) as image:
            return getattr(image, "text", {}).get(KEY)
    except (OSError, SyntaxError, ValueError):
        return None


def read_picture(path: Path) -> Image.Image:
    """The picture in RGB; ``TwinflowError`` with its name if it is missing, cut off or no picture."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"can't be read: {error}"
        raise TwinflowError(f"the picture {path} {what}") from error


def to_pixels(image: Image.Image) -> Tensor:
    """(3, H, W) in [-1, 1]."""
    array = np.array(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1


def read_pixels(folder: Path, pictures: Sequence[Picture], *, batch: int = 64) -> Iterator[Tensor]:
    """Batches (N, 3, H, W) in [-1, 1], in order; pictures of another size than those before end a batch."""
    waiting: list[Tensor] = []
    for picture in pictures:
        pixels = to_pixels(read_picture(folder / picture.file))
        if waiting and (len(waiting) == batch or pixels.shape != waiting[0].shape):
            yield torch.stack(waiting)
            waiting = []
        waiting.append(pixels)
    if waiting:
        yield torch.stack(waiting)


def pictures_in(folder: Path) -> set[str]:
    """Names, relative and with "/", of all pictures in ``folder`` and below; hidden files are not counted."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    }


def check_folder(folder: Path, pictures: Sequence[Picture], *, also: Collection[str] = ()) -> None:
    """``TwinflowError`` unless exactly ``pictures`` lie in ``folder``: one too few would move the mean. Those named by
    ``also`` may be there too."""
    if not folder.is_dir():
        raise TwinflowError(f"there is no folder of pictures {folder}")
    wanted, there = {picture.file for picture in pictures}, pictures_in(folder) - set(also)
    for what, names in (("lacks", wanted - there), ("has more than the benchmark's:", there - wanted)):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (" …" if len(names) > 3 else "")
            raise TwinflowError(
                f"{folder} {what} {len(names)} of {len(wanted)} pictures: {shown}. A score over other pictures "
                "than the benchmark's means nothing"
            )
