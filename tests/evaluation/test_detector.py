"""The pixel detector: finds exactly what the renderer drew, and nothing where nothing was drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from twinflow.data.shapeworld import LEVELS, SceneObject, evaluation_suite, get_level, render
from twinflow.data.shapeworld.world import PALETTE
from twinflow.evaluation.detector import (
    DetectorSettings,
    ShapeDetector,
)
from twinflow.evaluation.scoring import score_detections

from .scenes import scenes_of

FULL = get_level("full")


def matched(scene: list[SceneObject], detector: ShapeDetector, picture: np.ndarray):
    """Pairs (drawn, found) by nearest centre; the counts must agree."""
    found = detector.detect(picture)
    assert len(found) == len(scene)

    def distance(drawn, detection):
        x1, y1, x2, y2 = detection.box
        return np.hypot((x1 + x2) / 2 - drawn.x, (y1 + y2) / 2 - drawn.y)

    return [(drawn, min(found, key=lambda d: distance(drawn, d))) for drawn in scene]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [32, 64])
def test_finds_what_was_drawn(level, size):
    world = replace(get_level(level), size=size)
    detector = ShapeDetector(world)
    for scene in scenes_of(world, 6):
        for drawn, found in matched(scene, detector, render(scene, world)):
            assert (found.class_name, found.color) == (drawn.shape, drawn.color)
            assert found.score > 0.9
            np.testing.assert_allclose(found.box, drawn.box, atol=0.6 * world.scale)


@pytest.mark.parametrize("shape", FULL.shapes)
@pytest.mark.parametrize("color", FULL.colors)
def test_every_shape_in_every_color(shape, color):
    (found,) = ShapeDetector("full").detect(render([SceneObject(shape, color, 15.3, 16.8, 4.6)], "full"))
    assert (found.class_name, found.color) == (shape, color)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x, rng: x + rng.normal(0, 0.05, x.shape),
        lambda x, rng: x + rng.normal(0, 0.10, x.shape),
        lambda x, rng: ndimage.gaussian_filter(x, (0.7, 0.7, 0)),
        lambda x, rng: ndimage.gaussian_filter(x, (1.0, 1.0, 0)),
        lambda x, rng: x + rng.normal(0, 0.05, 3),
        lambda x, rng: 0.5 + 0.7 * (x - 0.5),
        lambda x, rng: np.round(x * 255) / 255,
    ],
    ids=["noise 0.05", "noise 0.10", "blur 0.7", "blur 1.0", "tint", "contrast 0.7", "uint8"],
)
def test_forgives_what_does_not_change_the_scene(spoil):
    detector, rng = ShapeDetector("full"), np.random.default_rng(0)
    for scene in scenes_of(FULL, 3, seed=2):
        for drawn, found in matched(scene, detector, spoil(render(scene, FULL), rng)):
            assert (found.class_name, found.color) == (drawn.shape, drawn.color)


def test_touching_objects_of_different_colors_are_two():
    scene = [SceneObject("square", "red", 10, 16, 5), SceneObject("circle", "blue", 19.3, 16, 5)]
    picture = render(scene, FULL)
    assert ndimage.label(np.abs(picture - 0.5).max(-1) > 0.26)[1] == 1
    found = ShapeDetector("full").detect(picture)
    assert {(d.class_name, d.color) for d in found} == {("square", "red"), ("circle", "blue")}


@pytest.mark.parametrize(("strength", "clear"), [(0.05, True), (0.2, False)])
def test_a_blotched_shape_has_no_color_of_its_own(strength, clear):
    """Its mean colour may be right: what counts is how far its pixels are from it."""
    picture = render([SceneObject("circle", "green", 16, 16, 7)], FULL)
    blotches = np.random.default_rng(0).normal(0, strength, (11, 11, 3)).repeat(3, 0).repeat(3, 1)[:32, :32]
    inside = np.linalg.norm(picture - 0.5, axis=-1, keepdims=True) > 0.2
    (found,) = ShapeDetector("full").detect(np.clip(picture + inside * blotches, 0, 1))
    assert (found.class_name, found.clear) == ("circle", clear)
    assert found.color == ("green" if clear else None)


def test_a_blob_with_too_few_votes_for_any_color_has_that_with_most():
    detector = ShapeDetector("full")
    errors = np.ones((100, len(FULL.colors)))
    assert detector._colors_present(errors) == []
    errors[7, 3] = 0
    assert detector._colors_present(errors) == [3]
    errors[:2, 0] = 0
    assert detector._colors_present(errors) == [0]
    errors[20:40, 5], errors[40:52, 1] = 0, 0
    assert detector._colors_present(errors) == [5, 1]


def test_an_averaged_mode_is_not_an_object():
    """The mean of many scenes, which an untrained one-step generator draws, must not count."""
    one, empty = render([SceneObject("circle", "red", 16, 16, 7)], FULL), render([], FULL)
    detector = ShapeDetector("full")
    assert len(detector.detect(one)) == 1
    assert detector.detect(0.5 * one + 0.5 * empty) == []
    mean = np.mean([render(scene, FULL) for scene in scenes_of(FULL, 8)], axis=0)
    assert detector.detect(mean) == []


@pytest.mark.parametrize("level", LEVELS)
def test_finds_nothing_in_noise_and_in_empty_pictures(level):
    detector, rng = ShapeDetector(level), np.random.default_rng(0)
    shape = (32, 32, 3)
    junk = [rng.normal(0.5, sigma, shape) for sigma in (0.1, 0.2, 0.3, 0.5) for _ in range(6)]
    junk += [rng.uniform(size=shape), rng.integers(0, 2, shape), np.zeros(shape), np.ones(shape)]
    junk += [np.full(shape, 0.5), np.broadcast_to(np.array(PALETTE["red"]), shape)]
    junk += [np.linspace(0, 1, 32)[:, None, None] * np.ones(shape)]
    assert [[f for f in detector.detect(picture) if f.clear] for picture in junk] == [[]] * len(junk)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_finds_nothing_in_the_pictures_of_a_model_that_diverged(value):
    picture = render([SceneObject("circle", "red", 16, 16, 7)], FULL)
    picture[3, 4, 1] = value
    assert ShapeDetector("full").detect(picture) == []


def test_too_large_and_too_small_are_no_objects():
    detector = ShapeDetector("full")
    for radius in (2.0, 12.5):
        assert detector.detect(render([SceneObject("circle", "red", 16, 16, radius)], FULL)) == []


def test_own_vocabulary_by_default_and_the_full_one_on_request():
    cross = render([SceneObject("cross", "red", 16, 16, 7)], "full")
    assert ShapeDetector("tiny").detect(cross) == []
    (found,) = ShapeDetector("tiny", full_vocabulary=True).detect(cross)
    assert (found.class_name, found.color) == ("cross", "red")
    brown = render([SceneObject("circle", "brown", 16, 16, 7)], "full")
    assert [d.color for d in ShapeDetector("tiny").detect(brown)] in ([], [None])
    assert [d.color for d in ShapeDetector("tiny", full_vocabulary=True).detect(brown)] == ["brown"]


def test_detections_are_deterministic_sorted_and_leave_the_picture_alone():
    picture = render(scenes_of(FULL, 4)[10], FULL).astype(np.float64) + np.random.default_rng(0).normal(
        0, 0.1, (32, 32, 3)
    )
    before = picture.copy()
    first = ShapeDetector("full").detect(picture)
    assert first == ShapeDetector("full").detect(picture)
    assert [d.score for d in first] == sorted((d.score for d in first), reverse=True)
    np.testing.assert_array_equal(picture, before)


def test_mirroring_the_picture_mirrors_the_boxes():
    for scene in scenes_of(FULL, 2, seed=3):
        picture = render(scene, FULL)
        found = sorted((d.class_name, *d.box) for d in ShapeDetector("full").detect(picture))
        mirrored = ShapeDetector("full").detect(picture[:, ::-1])
        back = sorted((d.class_name, 32 - d.box[2], d.box[1], 32 - d.box[0], d.box[3]) for d in mirrored)
        assert [name for name, *_ in back] == [name for name, *_ in found]
        np.testing.assert_allclose([box for _, *box in back], [box for _, *box in found], atol=1e-3)


def test_a_stricter_threshold_keeps_fewer():
    picture = render(scenes_of(FULL, 4)[10], FULL) + np.random.default_rng(0).normal(0, 0.1, (32, 32, 3))
    counts = [
        len(ShapeDetector("full", settings=DetectorSettings(score=s)).detect(picture)) for s in (0.8, 1.0)
    ]
    assert counts[0] > counts[1] == 0


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\(32, 32, 3\), got \(3, 32, 32\)"):
        ShapeDetector("tiny").detect(np.zeros((3, 32, 32)))


def test_a_circle_of_two_colors_is_no_clear_object():
    """Either half alone has no shape of this world, and together they have no one colour."""
    picture = render([SceneObject("circle", "yellow", 16, 16, 7)], FULL)
    other = render([SceneObject("circle", "green", 16, 16, 7)], FULL)
    picture[::2] = other[::2]
    (found,) = ShapeDetector("full").detect(picture)
    assert (found.class_name, found.color, found.clear) == ("circle", None, False)


def blended_circle(one: str, other: str, *, cx: float, cy: float, radius: float = 5.0) -> np.ndarray:
    """A picture of a circle whose colour runs from one colour to another, (32, 32, 3)."""
    rows, columns = np.mgrid[:32, :32] + 0.5
    share = np.clip((columns - cx + radius) / (2 * radius), 0, 1)[..., None]
    mask = np.hypot(columns - cx, rows - cy) <= radius
    image = np.full((32, 32, 3), 0.5)
    image[mask] = ((1 - share) * PALETTE[one] + share * PALETTE[other])[mask]
    return image


@pytest.mark.parametrize(
    "colors", [("red", "yellow"), ("white", "yellow"), ("green", "blue"), ("red", "white")]
)
def test_an_object_of_blended_colours_is_there_but_not_clear(colors):
    (found,) = ShapeDetector("tiny").detect(blended_circle(*colors, cx=16, cy=16))
    assert not found.clear
    assert found.color is None
    assert found.class_name == "circle"
    np.testing.assert_allclose(found.box, (11, 11, 21, 21), atol=1.5)


def test_a_blended_circle_beside_three_is_one_too_many():
    scene = [
        SceneObject(shape="circle", color="red", x=x, y=y, radius=4.0) for x, y in ((7, 7), (24, 7), (7, 24))
    ]
    caption = next(c for c in evaluation_suite("tiny", 200) if c["prompt"] == "a photo of three circles")
    picture = render(scene, "tiny")
    detector = ShapeDetector("tiny")
    assert score_detections(detector.detect(picture), caption).strict
    blend = blended_circle("white", "yellow", cx=24, cy=24)
    picture = np.where(blend == 0.5, picture, blend)
    verdict = score_detections(detector.detect(picture), caption)
    assert not verdict.correct
    assert "found 4" in verdict.reason
