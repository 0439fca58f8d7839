"""What ShapeWorld's report says of rows: closed forms of its distances, and of what captions leave open."""

from __future__ import annotations

import math

import pytest

from twinflow.data.shapeworld import evaluation_suite, get_level
from twinflow.evaluation.scoring import Detection, ImageResult, score_detections
from twinflow.evaluation.shapeworld import (
    expected_colors,
    expected_shapes,
    nearest_layouts,
    placement_entropy,
    relative_placement_entropy,
    relative_training_distance,
    report,
    total_variation,
    training_layouts,
    unseen_layouts,
)


def row(include: list[dict], found: list[tuple[str, str | None, float]], prompt: str = "a") -> ImageResult:
    metadata = {"tag": "counting", "include": include, "prompt": prompt}
    detections = [
        Detection(class_name=shape, box=(10.0 * i, 0.0, 10.0 * i + 8, 8.0), score=score, color=color)
        for i, (shape, color, score) in enumerate(found)
    ]
    verdict = score_detections(detections, metadata)
    return ImageResult(filename="0.png", metadata=metadata, verdict=verdict, detections=detections)


def test_total_variation_of_weights() -> None:
    a, b = {"x": 3, "y": 1}, {"x": 1, "y": 1}
    assert (
        total_variation(a, b) == total_variation(b, a) == pytest.approx(1 / 4)
    )  # the most that any event differs by
    assert total_variation(a, {key: 10 * weight for key, weight in a.items()}) == 0
    assert total_variation({"x": 2}, {"y": 5}) == 1
    assert total_variation({"x": 1}, {"x": 1, "y": 1, "z": 2}) == pytest.approx(3 / 4)
    assert total_variation({}, {"x": 0}) == 0
    assert total_variation({}, a) == total_variation(a, {"x": 0}) == 1


def test_what_a_caption_leaves_open_is_uniform() -> None:
    level = get_level("tiny")
    shapes, colors = level.shapes[:2], level.colors
    captions = [
        {"include": [{"class": shapes[0], "count": 3, "color": colors[0]}]},
        {"include": [{"class": shapes[0], "count": 1}, {"class": shapes[1], "count": 2, "color": colors[1]}]},
    ]
    assert expected_shapes(captions) == {shapes[0]: 4, shapes[1]: 2}
    found = expected_colors(captions, level)
    assert sum(found.values()) == pytest.approx(6)
    asked = {colors[0]: 3, colors[1]: 2}
    assert found == pytest.approx({color: asked.get(color, 0) + 1 / len(colors) for color in colors})


def test_distances_are_those_of_counts_shapes_and_colours_of_all_pictures() -> None:
    one, other = get_level("tiny").shapes[:2]
    red, blue = get_level("tiny").colors[:2]
    asked = [{"class": one, "count": 2, "color": red}]
    rows = [
        row(asked, [(one, red, 0.9), (one, red, 0.7)]),
        row(asked, [(one, red, 0.8), (other, None, 0.4)]),
        row(asked, [(one, blue, 0.6)]),
    ]
    found = report(rows, "tiny")
    assert found.detection_score == pytest.approx((0.9 + 0.7 + 0.8 + 0.4 + 0.6) / 5)
    assert found.count_distance == pytest.approx(1 / 3)  # one picture of three has one object, and not two
    assert found.shape_distance == pytest.approx(1 / 5)
    assert found.color_distance == pytest.approx(2 / 5)  # one blue, one unknown, of five that should be red
    assert found.official.images.value == pytest.approx(1 / 3)


def box(x: float, y: float, radius: float = 1.0) -> tuple[float, float, float, float]:
    return (x - radius, y - radius, x + radius, y + radius)


def test_placement_entropy_counts_the_cells_that_are_used() -> None:
    cells = [[box(4 * i + 2, 4 * j + 1)] for i in range(8) for j in range(8)]
    assert placement_entropy(cells, 32) == pytest.approx(6)
    every = [boxes[0] for boxes in cells]
    assert placement_entropy([every] * 3, 32) == pytest.approx(6)  # however they are shared out
    assert placement_entropy(cells, 32, cells=2) == pytest.approx(2)
    assert placement_entropy([[box(4, 4)], [box(7.9, 4.1, 3)], []], 32) == 0
    quarters = 2 - 0.75 * math.log2(3)
    assert placement_entropy([[box(2, 2)] * 3, [box(30, 2)]], 32) == pytest.approx(quarters)
    assert placement_entropy([[box(-1, 2)], [box(32, 2)]], 32) == 1  # the border's cells reach beyond it
    with pytest.raises(ValueError, match="no object"):
        placement_entropy([[], []], 32)


def test_the_nearest_layout_has_as_many_objects_in_whatever_order() -> None:
    training = [[box(4, 4)], [box(9, 4)], [box(4, 5), box(20, 9)], []]
    found = [[box(8, 6, 3)], [box(20, 10, 2), box(7, 5)], [box(20, 9), box(4, 5)], [box(1, 1)] * 3, []]
    assert nearest_layouts(found, training) == [1 + 2, (3 + 1) / 2, 0, None, None]


def test_copies_of_training_layouts_are_told_from_scenes_that_no_training_shows() -> None:
    level, captions = get_level("tiny"), evaluation_suite("tiny", 40)
    real, copies = unseen_layouts(captions, level), training_layouts(level)[:240]
    assert relative_training_distance(real, real, level) == pytest.approx(1)
    assert relative_training_distance(copies, real, level) == 0
    half = [*copies[:120], *real[:120]]
    assert 0.3 < relative_training_distance(half, real, level) < 0.7  # type: ignore[operator]
    assert relative_training_distance([[box(4, 4)] * 6], real, level) is None


def test_places_are_compared_with_those_of_as_many_real_scenes() -> None:
    level, captions = get_level("tiny"), evaluation_suite("tiny", 40)
    real = unseen_layouts(captions, level)
    assert relative_placement_entropy(real, real, level) == 1
    assert relative_placement_entropy([[box(9, 9)]] * 240, real, level) == 0
    assert relative_placement_entropy([[]] * 240, real, level) is None
    assert relative_placement_entropy([[box(9, 9)]], real[:1], level) is None  # one place says nothing
