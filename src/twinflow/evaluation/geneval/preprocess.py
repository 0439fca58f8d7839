"""A picture as GenEval's detector was fed: OpenMMLab's test pipeline (mmdet 2.x), in torch, on any device.

Read as RGB bytes with the EXIF rotation applied and alpha dropped; resized so that the short side is 800 and the
long side at most 1333; padded at the right and bottom to multiples of 32 with gray 128; normalised.

The resizing is OpenCV's ``INTER_LINEAR`` on bytes: bilinear *without* antialiasing, in fixed-point arithmetic.
Antialiasing resizers (Pillow's, torchvision's, transformers' processors) differ from it by up to 8 grey levels where
a 1024 picture is made smaller; this one is equal to OpenCV's byte for byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from twinflow.errors import TwinflowError

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
LONG_SIDE, SHORT_SIDE = 1333, 800
DIVISOR, GRAY = 32, 128.0
WEIGHT_BITS = 11  # OpenCV's fixed-point weights are multiples of 1 / 2048
MODES = ("RGB", "RGBA", "L", "LA", "P", "1")  # of eight bits


@dataclass(frozen=True, kw_only=True)
class DetectorInput:
    """What the detector gets, and what is needed to take its masks back to the picture."""

    pixels: Tensor  # (1, 3, padded_height, padded_width) fp32, normalised
    resized: tuple[int, int]  # (height, width) before padding
    original: tuple[int, int]  # (height, width) of the picture

    @property
    def padded(self) -> tuple[int, int]:
        return self.pixels.shape[-2], self.pixels.shape[-1]


def read_image(path: str | Path) -> Image.Image:
    """The picture in RGB, rotated as its EXIF data says, alpha dropped.

    Raises TwinflowError, naming the file, if it can't be read or has more than eight bits.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            mode = image.mode
            rgb = image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's errors for broken files
        raise TwinflowError(f"{path} can't be read as a picture: {error}. Draw it again.") from error
    if mode not in MODES:
        raise TwinflowError(f"{path} has mode {mode}; write pictures as PNG with eight bits a channel")
    return rgb


def detector_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of the resized picture: as large as fits into 1333 x 800, either way round."""
    factor = min(LONG_SIDE / max(height, width), SHORT_SIDE / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def preprocess(image: Image.Image, device: torch.device | str = "cpu") -> DetectorInput:
    """The detector's input of a picture."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).to(device).permute(2, 0, 1)  # (3, H, W) bytes
    original = (pixels.shape[1], pixels.shape[2])
    resized = detector_size(*original)
    values = resize_linear(pixels, resized).float()
    below, right = -resized[0] % DIVISOR, -resized[1] % DIVISOR
    values = F.pad(values, (0, right, 0, below), value=GRAY)
    mean = torch.tensor(MEAN, device=values.device).view(3, 1, 1)
    std = torch.tensor(STD, device=values.device).view(3, 1, 1)
    return DetectorInput(pixels=((values - mean) / std)[None], resized=resized, original=original)


def resize_linear(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """OpenCV's ``resize(…, INTER_LINEAR)`` of bytes (C, H, W) to ``size`` (height, width), equal byte for byte."""
    if pixels.dtype != torch.uint8 or pixels.ndim != 3:
        raise ValueError(f"expected bytes (C, H, W), got {pixels.dtype} {tuple(pixels.shape)}")
    height, width = pixels.shape[1:]
    if (height, width) == size:
        return pixels
    values = pixels.to(torch.int32)
    if (height, width) == (2 * size[0], 2 * size[1]):  # where OpenCV takes means of areas instead
        quads = values.unfold(1, 2, 2).unfold(2, 2, 2)
        return ((quads.sum((-2, -1)) + 2) >> 2).to(torch.uint8)
    left, right, share = _weights(width, size[1], values.device)
    top, bottom, share_y = _weights(height, size[0], values.device)
    one = 1 << WEIGHT_BITS
    rows = values[:, :, left] * (one - share) + values[:, :, right] * share  # 8 + 11 bits
    rows = rows >> 4  # OpenCV's vertical pass has 16-bit lanes
    above = (rows[:, top] * (one - share_y)[:, None]) >> 16
    beneath = (rows[:, bottom] * share_y[:, None]) >> 16
    return ((above + beneath + 2) >> 2).clamp(0, 255).to(torch.uint8)


def _weights(source: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each target pixel, its two source pixels and the second one's weight in units of 1 / 2048."""
    # Pixel centres, in the precisions and the order of operations of OpenCV.
    scale = 1.0 / (target / source)
    position = ((torch.arange(target, dtype=torch.float64) + 0.5) * scale - 0.5).float()
    first = position.floor()
    weight = ((position - first) * (1 << WEIGHT_BITS)).round().to(torch.int32)  # half to even: cvRound
    near, far = (first.long() + step for step in (0, 1))
    last = source - 1
    return near.clamp(0, last).to(device), far.clamp(0, last).to(device), weight.to(device)
