"""What is drawn fast is what the plain code draws, number for number: a data set is a function of its seed."""

from __future__ import annotations

import numpy as np
import pytest

from twinflow.data.shapeworld.scenes import _place_objects, coverage, inside
from twinflow.data.shapeworld.world import BORDER_MARGIN, OBJECT_GAP, RADII, get_level


@pytest.mark.parametrize("shape", get_level("full").shapes)
def test_a_pixel_is_covered_by_the_mean_of_its_points(shape: str) -> None:
    points = (np.arange(10 * 8) + 0.5) / 8
    mask = inside(shape, (points[None] + 3 - 7.3) / 3.9, (points[:, None] + 2 - 6.1) / 3.9)
    found = coverage(shape, cx=7.3, cy=6.1, radius=3.9, x0=3, y0=2, width=10, height=10)
    assert np.array_equal(found, mask.reshape(10, 8, 10, 8).mean((1, 3)))
    assert 0 < found.mean() < 1


@pytest.mark.parametrize("count", [1, 2, 4])
def test_places_are_those_of_uniform_draws(count: int) -> None:
    def plain(rng: np.random.Generator, size: int) -> list[tuple[float, float, float]]:
        while True:
            placed: list[tuple[float, float, float]] = []
            for _ in range(200):
                radius = rng.uniform(*RADII[count]) * size / 32
                margin = BORDER_MARGIN * size / 32 + radius
                x, y = rng.uniform(margin, size - margin, 2)
                gap = OBJECT_GAP * size / 32
                if all(max(abs(x - a), abs(y - b)) - radius - q >= gap for a, b, q in placed):
                    placed.append((x, y, radius))
                    if len(placed) == count:
                        return placed

    for seed in range(50):
        ours, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
        assert _place_objects(ours, count, 32) == plain(theirs, 32)
        assert ours.random() == theirs.random()  # both have drawn as many numbers
