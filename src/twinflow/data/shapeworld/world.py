"""Levels, palette and vocabulary of ShapeWorld. All lengths are pixels of a 32 x 32 picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# GenEval's ten colours, as far apart as RGB allows: the closest pair is 0.44 apart.
PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.08, 0.08),
    "orange": (1.00, 0.50, 0.00),
    "yellow": (1.00, 0.95, 0.10),
    "green": (0.05, 0.65, 0.15),
    "blue": (0.10, 0.20, 0.95),
    "purple": (0.55, 0.05, 0.70),
    "pink": (1.00, 0.55, 0.80),
    "brown": (0.42, 0.22, 0.05),
    "black": (0.00, 0.00, 0.00),
    "white": (1.00, 1.00, 1.00),
}
BACKGROUND = (0.5, 0.5, 0.5)
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five")

# Half-extent of a shape by the number of objects in the scene: four small ones fit, one may be large.
RADII = {1: (5.0, 8.0), 2: (4.75, 6.5), 3: (4.5, 5.5), 4: (4.5, 5.25)}
BORDER_MARGIN = 1.0  # between a bounding box and the border
OBJECT_GAP = 2.0  # between two bounding boxes


@dataclass(frozen=True)
class Level:
    """How rich the world is: which shapes and colours there are, and how large a picture is."""

    name: str
    shapes: tuple[str, ...]
    colors: tuple[str, ...]
    size: int = 32
    max_count: int = 4

    @property
    def palette(self) -> np.ndarray:
        """RGB in [0, 1] of this level's colours, (C, 3)."""
        return np.array([PALETTE[color] for color in self.colors])

    @property
    def scale(self) -> float:
        """Pixels per unit length."""
        return self.size / 32.0


LEVELS = {
    "tiny": Level("tiny", ("circle", "square", "triangle"), ("red", "yellow", "green", "blue", "white")),
    "full": Level("full", ("circle", "square", "triangle", "diamond", "cross", "ring"), tuple(PALETTE)),
}


def get_level(name: str | Level) -> Level:
    """The level of that name; ValueError names those that exist."""
    if isinstance(name, Level):
        return name
    if name not in LEVELS:
        raise ValueError(f"unknown ShapeWorld level {name!r}: choose one of {', '.join(LEVELS)}")
    return LEVELS[name]


def plural(shape: str) -> str:
    """GenEval's naive plural, right for every shape of this world."""
    return shape + ("es" if shape.endswith("s") else "s")


def with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun
