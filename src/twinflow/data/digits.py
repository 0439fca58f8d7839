"""Handwritten digits: 1797 real scans of 8 x 8 pixels that scikit-learn ships (UCI Optical Recognition)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twinflow.errors import TwinflowError

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_CAPTIONS = tuple(f"a handwritten {name}" for name in DIGIT_NAMES)
_LEVELS = 16  # scans hold whole numbers from 0 (paper) to 16 (ink)


class DigitsDataset:
    """Map-style dataset; item -> {"pixels": (channels, 8, 8) float32 in [-1, 1], "caption": "a handwritten seven"}.

    Ink is 1 and paper -1. With 3 channels the grey value is repeated, for networks of colour pictures.
    ``labels`` (1797,) int64 are the digits. The order is the source's, always the same.
    """

    def __init__(self, *, channels: int = 1) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (the grey value repeated), got {channels}")
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise TwinflowError(
                "the digits come with scikit-learn, which is not installed: pip install twinflow[digits]"
            ) from error
        scans = load_digits()
        grey = torch.from_numpy(scans.images).to(torch.float32)[:, None] * (2 / _LEVELS) - 1
        self._pixels: Tensor = grey.repeat(1, channels, 1, 1)  # (1797, channels, 8, 8)
        self.labels: Tensor = torch.from_numpy(scans.target).to(torch.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        # A copy: whoever augments an item in place must not change the next epoch.
        return {"pixels": self._pixels[index].clone(), "caption": DIGIT_CAPTIONS[int(self.labels[index])]}
