"""ShapeWorld: procedural scenes of coloured shapes, captioned and scored like GenEval.

``world``: levels, palette and vocabulary. ``captions``: every caption with GenEval's metadata.
``scenes``: a random scene for a caption, and its picture. ``dataset``: the endless training set.
"""

from twinflow.data.shapeworld.captions import TASKS, all_captions, evaluation_suite, held_out
from twinflow.data.shapeworld.dataset import ShapeWorldDataset, write_folder
from twinflow.data.shapeworld.scenes import SceneObject, draw_scene, render
from twinflow.data.shapeworld.world import LEVELS, Level, get_level

__all__ = [
    "LEVELS",
    "TASKS",
    "Level",
    "SceneObject",
    "ShapeWorldDataset",
    "all_captions",
    "draw_scene",
    "evaluation_suite",
    "get_level",
    "held_out",
    "render",
    "write_folder",
]
