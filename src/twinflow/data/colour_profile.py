"""The colour profile that a picture brings along: what its numbers mean, and the same colours in sRGB."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

logger = logging.getLogger(__name__)

MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # by the space that a profile is of
# A profile that moves no colour further is one of the many of sRGB, which differ in the rounding of their tables.
# Pictures stay as they are then, and are read as quickly as those without profile.
SAME = 2  # of 255


def to_srgb(image: Image.Image) -> Image.Image:
    """``image`` in RGB, without transparency; by its profile if that says something else than sRGB.

    A profile that can't be read, or is of another kind of picture, is left out of account: the former with a warning.
    """
    data = image.info.get("icc_profile")
    profile = _conversion(data) if data else None
    grey = image.mode in ("1", "L", "LA")
    if profile is None or (profile.mode == "L") > grey or (profile.mode == "CMYK") != (image.mode == "CMYK"):
        return image.convert("RGB")
    return profile.transform.apply(image.convert(profile.mode))


@dataclass(frozen=True)
class _Conversion:
    mode: str  # of pictures that it is for
    transform: ImageCms.ImageCmsTransform  # from there to RGB


@lru_cache(maxsize=64)
def _conversion(data: bytes) -> _Conversion | None:
    """By the profile ``data``; None if there is none, or if it changes nothing."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        mode = MODES[profile.profile.xcolor_space.strip()]
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, KeyError) as error:
        logger.warning("a colour profile can't be read (%s): such pictures are taken for sRGB", error)
        return None
    colours = _all_over(mode)
    moved = np.asarray(transform.apply(colours), int) - np.asarray(colours.convert("RGB"), int)
    return None if np.abs(moved).max() <= SAME else _Conversion(mode, transform)


def _all_over(mode: str) -> Image.Image:
    """A picture of colours from all over the space of ``mode``."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    levels = [np.linspace(0, 255, 9)] * bands
    grid = np.stack(np.meshgrid(*levels), axis=-1).round().astype(np.uint8).reshape(1, -1, bands)
    planes = [Image.fromarray(np.ascontiguousarray(grid[..., band])) for band in range(bands)]
    return Image.merge(mode, planes)
