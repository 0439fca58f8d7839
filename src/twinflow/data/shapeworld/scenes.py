"""Random scenes for a caption, and their pictures.

Whatever the caption leaves open (colours, places, sizes) is random. Drawing is anti-aliased by 8 x 8
supersampling of the exact shape inside its bounding box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twinflow.data.relations import relative_position
from twinflow.data.shapeworld.captions import Caption
from twinflow.data.shapeworld.world import (
    BACKGROUND,
    BORDER_MARGIN,
    OBJECT_GAP,
    PALETTE,
    RADII,
    Level,
    get_level,
)

SUPERSAMPLE = 8


@dataclass(frozen=True)
class SceneObject:
    """A shape on the picture: centre and half-extent in pixels, y pointing down."""

    shape: str
    color: str
    x: float
    y: float
    radius: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        return (self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius)


def inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points lie in the unit shape (bounding half-extent about 1; x right, y down)."""
    ax, ay = np.abs(x), np.abs(y)
    match shape:
        case "circle":
            return x * x + y * y <= 1.0
        case "square":
            return np.maximum(ax, ay) <= 0.86
        case "triangle":  # apex up
            return (y <= 0.85) & (ax <= (y + 1.0) / 1.85)
        case "diamond":
            return ax + ay <= 1.0
        case "cross":
            return (np.minimum(ax, ay) <= 0.33) & (np.maximum(ax, ay) <= 1.0)
        case "ring":
            return (x * x + y * y <= 1.0) & (x * x + y * y >= 0.25)
    raise ValueError(f"unknown shape {shape!r}")


def coverage(
    shape: str,
    *,
    cx: float,
    cy: float,
    radius: float,
    x0: int,
    y0: int,
    width: int,
    height: int,
    supersample: int = SUPERSAMPLE,
) -> np.ndarray:
    """Covered fraction of each pixel of the window [x0, x0+width) x [y0, y0+height): (height, width)."""
    offsets = (np.arange(supersample) + 0.5) / supersample
    xs = (x0 + np.arange(width)[:, None] + offsets).ravel()
    ys = (y0 + np.arange(height)[:, None] + offsets).ravel()
    mask = inside(shape, (xs[None] - cx) / radius, (ys[:, None] - cy) / radius)
    rows = mask.view(np.uint8).reshape(height, supersample, -1).sum(1, dtype=np.uint16)  # side by side: fast
    return rows.reshape(height, width, supersample).sum(2, dtype=np.uint32) / supersample**2


def _place_objects(
    rng: np.random.Generator, count: int, size: int, gap: float = OBJECT_GAP
) -> list[tuple[float, float, float]]:
    """(x, y, radius) of ``count`` objects that touch neither each other nor the border."""
    scale = size / 32.0
    low, high = RADII[count]
    for _ in range(1000):
        placed: list[tuple[float, float, float]] = []
        for _ in range(200):
            of_radius, of_x, of_y = rng.random(3).tolist()  # plain numbers: one call, and no arrays below
            radius = (low + (high - low) * of_radius) * scale
            margin = BORDER_MARGIN * scale + radius
            x = margin + ((size - margin) - margin) * of_x
            y = margin + ((size - margin) - margin) * of_y
            if all(max(abs(x - a), abs(y - b)) - radius - q >= gap * scale for a, b, q in placed):
                placed.append((x, y, radius))
                if len(placed) == count:
                    return placed
    raise RuntimeError(f"no room for {count} objects in {size} pixels")


def draw_scene(
    caption: Caption, rng: np.random.Generator, level: str | Level, *, gap: float = OBJECT_GAP
) -> list[SceneObject]:
    """A random scene that satisfies the caption, and no other relation than the one it names.

    ``gap`` is the least distance of two bounding boxes, in pixels of a 32 x 32 picture.
    """
    world = get_level(level)
    needs = [need for need in caption["include"] for _ in range(need["count"])]
    for _ in range(500):
        places = _place_objects(rng, len(needs), world.size, gap)
        free = rng.permutation(world.colors)
        scene = [
            SceneObject(need["class"], need.get("color") or str(rng.choice(free)), *place)
            for need, place in zip(needs, places)
        ]
        if caption["tag"] != "position":
            return scene
        reference, placed = scene
        if relative_position(placed.box, reference.box) == {caption["include"][1]["position"][0]}:
            return scene
    raise RuntimeError(f"no scene found for {caption['prompt']!r}")


def render(scene: list[SceneObject], level: str | Level) -> np.ndarray:
    """The scene's picture: float32 (size, size, 3) in [0, 1]."""
    size = get_level(level).size
    image = np.full((size, size, 3), BACKGROUND)
    for o in scene:
        x0, y0 = max(int(o.box[0]) - 1, 0), max(int(o.box[1]) - 1, 0)
        x1, y1 = min(int(o.box[2]) + 2, size), min(int(o.box[3]) + 2, size)
        alpha = coverage(
            o.shape, cx=o.x, cy=o.y, radius=o.radius, x0=x0, y0=y0, width=x1 - x0, height=y1 - y0
        )[..., None]
        window = image[y0:y1, x0:x1]
        image[y0:y1, x0:x1] = window * (1 - alpha) + np.array(PALETTE[o.color]) * alpha
    return image.astype(np.float32)
