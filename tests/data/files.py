"""Pictures and lines of metadata as users have them on the disk."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write(path: Path, image: Image.Image | None = None, caption: str | None = "a picture", **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (20, 10), (255, 0, 0))).save(path, **options)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def write_metadata(folder: Path, *entries: dict) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(entry) for entry in entries) + "\n")


def noise_image(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
