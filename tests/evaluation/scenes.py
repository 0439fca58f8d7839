"""Scenes of an evaluation suite."""

from __future__ import annotations

import numpy as np

from twinflow.data.shapeworld import SceneObject, draw_scene, evaluation_suite
from twinflow.data.shapeworld.dataset import EVAL_STREAM


def scenes_of(level, images_per_task: int, seed: int = 1) -> list[list[SceneObject]]:
    suite = evaluation_suite(level, images_per_task, seed)
    rngs = (np.random.default_rng([seed, EVAL_STREAM, i]) for i in range(len(suite)))
    return [draw_scene(caption, rng, level) for caption, rng in zip(suite, rngs)]
