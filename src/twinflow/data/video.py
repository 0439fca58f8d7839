"""Clips of videos with captions: frames at a given rate, read by PyAV."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from twinflow.data.buckets import Buckets
from twinflow.data.captioned_files import VIDEO_SUFFIXES, CaptionedFiles, list_captioned_files
from twinflow.data.encoding import caption_at
from twinflow.data.folder import Check, OnError, readable_files
from twinflow.data.pictures import fit, to_pixels, to_rgb
from twinflow.errors import TwinflowError

# By degrees, counterclockwise.
TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True, kw_only=True)
class Video:
    """What the container says of a video, and what reading it showed."""

    seconds: float
    height: int
    width: int


class VideoDataset:
    """Map-style dataset of clips; item -> {"pixels": (3, frames, H, W) float32 in [-1, 1], "caption": str}.

    ``path`` is a folder as :class:`twinflow.data.folder.FolderDataset` takes it, of videos. Each video gives as
    many clips as follow one another in it, ``clips`` at most (``None``: all). A clip shows ``frames`` pictures,
    1 / ``fps`` seconds apart: of each moment the frame that a player would show. With ``first_frame`` an item has the
    first of them as "source", a PIL picture, for pipelines that set a picture in motion.

    Building the dataset decodes every video, or with ``check="headers"`` the first frame of each, and believes what
    the file says of its length.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        size: int | tuple[int, int] | Buckets,
        frames: int,
        fps: float,
        clips: int | None = 1,
        on_error: OnError = "raise",
        seed: int = 0,
        first_frame: bool = False,
        check: Check = "all",
    ) -> None:
        if frames < 1 or not fps > 0 or (clips is not None and clips < 1):
            raise ValueError(
                f"frames and clips must be at least 1 and fps above 0, got {frames}, {clips} and {fps}"
            )
        _av()
        self.buckets = size if isinstance(size, Buckets) else Buckets.fixed(size)
        self.path, self.frames, self.fps, self.seed = Path(path), frames, fps, seed
        self.first_frame = first_frame
        found: dict[Path, Video] = {}
        files = readable_files(
            self.path,
            partial(list_captioned_files, suffixes=VIDEO_SUFFIXES),
            lambda file: [file.path] if file.path else [],
            partial(self._why_unusable, check=check, found=found),
            on_error=on_error,
            kind="video",
        )
        self.files = CaptionedFiles(files)
        videos = [found[file.path] for file in files if file.path is not None]
        counts = [min(there, clips or there) for there in map(self._fitting, videos)]
        self._first = np.cumsum([0, *counts])  # clip of each video, and how many there are
        buckets = [self.buckets.nearest(video.height, video.width) for video in videos]
        self.bucket_of: list[int] = np.repeat(buckets, counts).tolist()

    def __len__(self) -> int:
        return len(self.bucket_of)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        video = int(np.searchsorted(self._first, index, side="right")) - 1
        file, number = self.files[video], index - int(self._first[video])
        assert file.path is not None
        start = number * self.frames / self.fps
        try:
            shown = read_clip(file.path, start=start, frames=self.frames, fps=self.fps)
        except TwinflowError:
            raise
        except Exception as error:  # decoders raise whatever a broken file leads them to
            reason = f"{type(error).__name__}: {error}"
            raise TwinflowError(
                f"{file.path} cannot be read ({reason}): put it right, or start again without it"
            ) from error
        sides = self.buckets.sides[self.bucket_of[index]]
        pictures = [fit(picture, sides) for picture in shown]
        item: dict[str, Any] = {"pixels": torch.stack([to_pixels(picture) for picture in pictures], dim=1)}
        item["caption"] = caption_at(file.captions, seed=self.seed, epoch=0, row=index)
        if self.first_frame:
            item["source"] = pictures[0]
        return item | ({"captions": file.captions} if len(file.captions) > 1 else {})

    def _fitting(self, video: Video) -> int:
        """How many clips follow one another in it; the last frame is shown until the end."""
        return math.floor(video.seconds * self.fps / self.frames + 1e-6)

    def _why_unusable(self, path: Path, *, check: Check, found: dict[Path, Video]) -> str | None:
        try:
            video = examine(path, check=check)
        except Exception as error:  # decoders raise whatever a broken file leads them to
            return f"{type(error).__name__}: {error}".replace(str(path), path.name)
        if self._fitting(video) < 1:
            return (
                f"it is {video.seconds:.2f} s long, and {self.frames} frames at {self.fps:g} a second need "
                f"{self.frames / self.fps:.2f} s"
            )
        found[path] = video
        return None


def examine(path: Path, *, check: Check = "all") -> Video:
    """Decode the whole video, or its first frame, and say what it is; raises what the decoder raises.

    A file that does not say how long it is has to be decoded.
    """
    first: Image.Image | None = None
    end = 0.0
    with _av().open(str(path)) as container:
        stream = container.streams.video[0]
        said = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 10**6
        begun: float | None = None
        for frame in container.decode(stream):
            if begun is None:
                begun, first = float(frame.time), as_shown(frame, pixel=_pixel(stream))
            end = float(frame.time) - begun + _length(stream)
            if check == "headers" and said:
                end = float(said)
                break
    if first is None:
        raise ValueError("it has no frame")
    return Video(seconds=end, height=first.height, width=first.width)


def read_clip(path: Path, *, start: float, frames: int, fps: float) -> list[Image.Image]:
    """The RGB frames that are shown ``start``, ``start`` + 1 / ``fps``, … seconds after the first one."""
    moments = [start + k / fps + 1e-6 for k in range(frames)]
    shown = _shown(path, moments, leap=start > 0) or _shown(path, moments, leap=False)
    if not shown:
        raise TwinflowError(f"{path} ends before {start + frames / fps:.2f} s: has it changed? Start again")
    return shown


def _shown(path: Path, moments: list[float], *, leap: bool) -> list[Image.Image]:
    """What is shown at ``moments``; ``leap``: read from the last key frame before them, instead of from the start.

    Nothing if the frames end before them, or if the leap went too far, as it does in AVI and MPEG-TS.
    """
    shown: list[Image.Image] = []
    with _av().open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        pixel = _pixel(stream)
        coming = container.decode(stream)
        latest = next(coming, None)
        # Time is counted from the first frame: the container's own note of where it begins may be another.
        begun = float(latest.time) if latest is not None else 0.0
        if leap:
            container.seek(int((begun + moments[0]) / stream.time_base), stream=stream, backward=True)
            coming, latest = container.decode(stream), None
        for frame in coming:
            time = float(frame.time) - begun
            if latest is None and time > moments[0]:
                return []
            while latest is not None and len(shown) < len(moments) and moments[len(shown)] < time:
                shown.append(to_rgb(as_shown(latest, pixel=pixel)))
            latest = frame
            if len(shown) == len(moments):
                break
        if latest is not None and moments[-1] > float(latest.time) - begun + _length(stream) + 0.01:
            return []
        while latest is not None and len(shown) < len(moments):
            shown.append(to_rgb(as_shown(latest, pixel=pixel)))
    return shown


def as_shown(frame: Any, *, pixel: float) -> Image.Image:
    """The picture as a player shows it. ``pixel``: width of its pixels by their height, made square here. Phones
    store what was filmed on edge lying, with a note of how to turn it."""
    picture: Image.Image = frame.to_image()
    if pixel != 1:
        width, height = picture.size
        sides = (round(width * pixel), height) if pixel > 1 else (width, round(height / pixel))
        picture = picture.resize(sides, Image.Resampling.LANCZOS)
    turn = TURNS.get(getattr(frame, "rotation", 0) % 360)  # PyAV 14.0 does not know it
    return picture if turn is None else picture.transpose(turn)


def _length(stream: Any) -> float:
    """Seconds that the last frame is shown for."""
    return 1 / float(stream.average_rate or stream.guessed_rate or 25)


def _pixel(stream: Any) -> float:
    return float(stream.sample_aspect_ratio or 1)


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise TwinflowError(
            "videos are read by PyAV, which is not installed: pip install twinflow[video]"
        ) from error
    return av
