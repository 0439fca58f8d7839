"""Folders of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from twinflow.evaluation.pictures import Picture


def folder_of(path: Path, count: int, *, seed: int, prompts: int = 2) -> list[Picture]:
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True)
    pictures = []
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path / f"{i}.png")
        pictures.append(Picture(file=f"{i}.png", prompt=("a red circle", "blue")[i % prompts], seed=i))
    return pictures
