"""A folder of pictures with captions, all of them checked before anything expensive begins."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from twinflow.data.captioned_files import METADATA_FILE, CaptionedFile, Problem, list_captioned_files
from twinflow.data.encoding import caption_at
from twinflow.errors import TwinflowError

SHOWN_PROBLEMS = 5
logger = logging.getLogger(__name__)


class FolderDataset:
    """Map-style dataset; item -> {"pixels": (3, H, W) float32 in [-1, 1], "caption": str}.

    ``path`` holds pictures, in subfolders too, each with a caption in a ``.txt`` file of the same stem; or a
    ``metadata.jsonl`` of lines ``{"file_name": "a.png", "text": "…"}``, where ``text`` may be a list of
    captions. Of several captions one is chosen by a hash of (seed, epoch, index): see :meth:`set_epoch`.

    ``size`` is the side, or (height, width). Pictures are turned upright (EXIF), put on white where they are
    transparent, resized (Lanczos) until they cover ``size``, and cropped at the centre.

    Building the dataset decodes every file. Missing pictures, missing or empty captions and files that cannot
    be read are one :class:`TwinflowError` that names them; with ``on_error="skip"`` they are logged and left
    out.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        size: int | tuple[int, int],
        on_error: Literal["raise", "skip"] = "raise",
        seed: int = 0,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error must be "raise" or "skip", got {on_error!r}')
        self.size = _height_width(size)
        self.path, self.seed = Path(path), seed
        if not self.path.is_dir():
            raise TwinflowError(f"{self.path} is not a folder: give a folder of pictures with captions")
        listing = list_captioned_files(self.path)
        readable, unreadable = _check_pictures(self.path, listing.files)
        problems = listing.problems + unreadable
        if problems and on_error == "raise":
            raise TwinflowError(_describe(self.path, problems, total=len(readable) + len(problems)))
        if problems:
            lines = "\n".join(f"  {problem}" for problem in problems)
            logger.warning("%s: left out %d files\n%s", self.path, len(problems), lines)
        if not readable:
            raise TwinflowError(
                f"{self.path} has no usable picture: add pictures, each with a caption in a .txt file of the same "
                f"stem or in {METADATA_FILE}"
            )
        self.files: list[CaptionedFile] = readable
        # In shared memory, so that worker processes of a loader that outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose captions anew; call it before iterating over the epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        file = self.files[index]
        item = {"pixels": load_pixels(file.path, size=self.size), "caption": self.caption(index)}
        return item | ({"captions": file.captions} if len(file.captions) > 1 else {})

    def caption(self, index: int) -> str:
        """The caption of item ``index`` in this epoch."""
        captions = self.files[index].captions
        return caption_at(captions, seed=self.seed, epoch=int(self._epoch), row=index)


def load_pixels(path: Path, *, size: tuple[int, int]) -> Tensor:
    """The picture as (3, H, W) float32 in [-1, 1], covering ``size`` = (H, W)."""
    with Image.open(path) as image:
        upright = to_rgb(ImageOps.exif_transpose(image))
    height, width = size
    fitted = ImageOps.fit(upright, (width, height), method=Image.Resampling.LANCZOS)
    array = np.asarray(fitted, dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: transparency on white, 16-bit grey scaled (PIL's own conversion clips it)."""
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.float64) / 257
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _check_pictures(folder: Path, files: list[CaptionedFile]) -> tuple[list[CaptionedFile], list[Problem]]:
    # Threads: decoding releases the interpreter lock, and reading waits for the disk.
    with ThreadPoolExecutor() as pool:
        reasons = list(pool.map(_why_unreadable, [file.path for file in files]))
    readable = [file for file, reason in zip(files, reasons, strict=True) if reason is None]
    problems = [
        Problem(
            name=os.path.relpath(file.path, folder),  # metadata may name files elsewhere
            text=f"the picture cannot be read ({reason}): replace or remove it",
        )
        for file, reason in zip(files, reasons, strict=True)
        if reason is not None
    ]
    return readable, problems


def _why_unreadable(path: Path) -> str | None:
    """Read the whole file as cheaply as its format allows; ``None`` if it is sound."""
    try:
        with Image.open(path) as image:
            if image.format == "PNG":
                image.verify()  # checksums of all chunks
            else:
                image.draft("RGB", (1, 1))  # JPEG: decode at an eighth of the size; others: no effect
                image.load()  # verify() does not notice a truncated JPEG
    except Exception as error:  # decoders raise whatever a broken file leads them to
        return f"{type(error).__name__}: {error}".replace(str(path), path.name)
    return None


def _describe(folder: Path, problems: list[Problem], *, total: int) -> str:
    lines = [f"{len(problems)} of {total} entries of {folder} cannot be used:"]
    lines += [f"  {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"  and {len(problems) - SHOWN_PROBLEMS} more")
    lines.append('Put them right, or leave them out with on_error="skip".')
    return "\n".join(lines)


def _height_width(size: int | tuple[int, int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"size must be a side in pixels or (height, width), got {size!r}")
    return sides[0], sides[1]
