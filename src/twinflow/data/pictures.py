"""A picture file or its bytes as an upright RGB picture of a given size, undistorted."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from twinflow.data.colour_profile import to_srgb

_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF: those that exchange height and width

FLOATS = "it has floating-point numbers: save it with 8 or 16 bits a channel"


def open_picture(source: Path | str | bytes) -> Image.Image:
    """The picture, upright (EXIF) and in RGB."""
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return to_rgb(ImageOps.exif_transpose(image))


def fit(image: Image.Image, sides: tuple[int, int]) -> Image.Image:
    """Resized (Lanczos) until it covers ``sides`` = (height, width), and cropped at the centre."""
    height, width = sides
    return ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)


def to_pixels(image: Image.Image) -> Tensor:
    """An RGB picture as (3, H, W) float32 in [-1, 1]."""
    array = np.asarray(image, dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def upright_sides(image: Image.Image) -> tuple[int, int]:
    """Height and width as it will be seen; nothing is decoded."""
    turned = image.getexif().get(_ORIENTATION) in _TURNED
    return (image.width, image.height) if turned else (image.height, image.width)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as sRGB, by its profile: transparency on white, 16-bit grey scaled (PIL's own conversion clips it).

    ``ValueError`` for floating-point numbers, of which nobody says what is white.
    """
    if image.mode == "F":
        raise ValueError(FLOATS)
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.float64) / 257
        profile = image.info.get("icc_profile")
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
        image.info["icc_profile"] = profile
    colours = to_srgb(image)
    if not image.has_transparency_data:
        return colours
    colours.putalpha(image.convert("RGBA").getchannel("A"))
    return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
