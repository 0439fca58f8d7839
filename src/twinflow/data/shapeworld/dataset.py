"""The endless training set: scene ``i`` is a pure function of (seed, i)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from twinflow.data.shapeworld.captions import TASKS, Caption, training_captions
from twinflow.data.shapeworld.scenes import SceneObject, draw_scene, render
from twinflow.data.shapeworld.world import Level, get_level

# Training scenes use even entropy words and evaluation scenes odd ones, so that the two never share a scene.
TRAIN_STREAM, EVAL_STREAM = 0, 1


class ShapeWorldDataset:
    """Map-style dataset of ``length`` scenes; item -> {"pixels": (3, H, W) float32 in [-1, 1], "caption": str}.

    Tasks are drawn uniformly, then a caption of the task, then a scene. Items do not depend on ``length``:
    a longer set begins with the shorter one.
    """

    def __init__(self, level: str | Level = "tiny", *, length: int = 50_000, seed: int = 0) -> None:
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        self.level, self.length, self.seed = get_level(level), length, seed
        self._captions = [training_captions(self.level, task) for task in TASKS]

    def __len__(self) -> int:
        return self.length

    def scene(self, index: int) -> tuple[Caption, list[SceneObject]]:
        """What item ``index`` shows."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, TRAIN_STREAM, index])
        captions = self._captions[rng.integers(len(TASKS))]
        caption = captions[rng.integers(len(captions))]
        return caption, draw_scene(caption, rng, self.level)

    def __getitem__(self, index: int) -> dict[str, Any]:
        caption, scene = self.scene(index)
        image = render(scene, self.level)
        pixels = torch.from_numpy(image).permute(2, 0, 1) * 2 - 1
        return {"pixels": pixels.contiguous(), "caption": caption["prompt"]}


def write_folder(path: str | Path, *, count: int, level: str = "tiny", seed: int = 0) -> Path:
    """Write the first ``count`` scenes as ``000000.png`` with its caption in ``000000.txt``, and so on.

    Such a folder trains as any other: ``data: {kind: folder, path: …, size: 32}``.
    """
    folder, scenes = Path(path), ShapeWorldDataset(level, length=count, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        scene = scenes[index]
        array = ((scene["pixels"] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / f"{index:06}.png")
        (folder / f"{index:06}.txt").write_text(scene["caption"] + "\n")
    return folder
