"""What ShapeWorld's report says of rows: closed forms of its distances, and of what captions leave open."""

from __future__ import annotations

import pytest

from twinflow.data.shapeworld import get_level
from twinflow.evaluation.scoring import Detection, ImageResult, score_detections
from twinflow.evaluation.shapeworld import expected_colors, expected_shapes, report, total_variation


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
