"""What the pixel detector is made of: noise, tints, templates, moments, colours."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from twinflow.data.shapeworld import SceneObject, get_level, render
from twinflow.evaluation.detector import (
    DetectorSettings,
    color_spread,
    denoise,
    noise_level,
    ray_distance,
    remove_tint,
)
from twinflow.evaluation.shape_fit import SUPERSAMPLE, blurred, soft_iou, templates, unit_moments

from .scenes import scenes_of

FULL = get_level("full")


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.2])
def test_noise_level_is_the_standard_deviation_whatever_the_scene(sigma):
    rng = np.random.default_rng(0)
    levels = [
        noise_level(render(scene, FULL) + rng.normal(0, sigma, (32, 32, 3))) for scene in scenes_of(FULL, 2)
    ]
    assert np.mean(levels) == pytest.approx(sigma, rel=0.1)


def test_a_clean_picture_is_left_alone():
    for scene in scenes_of(FULL, 2):
        picture = render(scene, FULL)
        out, width = denoise(picture, 0.015, 1.0)
        assert width == 0
        assert out is picture


def test_a_small_tint_is_removed_and_a_large_one_stays():
    picture = np.full((8, 8, 3), 0.5)
    np.testing.assert_allclose(remove_tint(picture + 0.1, 0.2), 0, atol=1e-12)
    np.testing.assert_allclose(remove_tint(picture + 0.2, 0.2), 0.2, atol=1e-12)


def test_ray_distance_is_the_distance_to_the_nearest_point_of_the_ray():
    rng = np.random.default_rng(0)
    rays, points = FULL.palette - 0.5, rng.uniform(-0.5, 0.5, (50, 3))
    reaches = np.linspace(0.65, 1.1, 4001)
    along = reaches[:, None, None] * rays  # (4001, C, 3)
    brute = np.stack([np.linalg.norm(p - along, axis=-1).min(0) for p in points])
    np.testing.assert_allclose(ray_distance(points, rays), brute, atol=1e-5)


def test_templates_are_what_the_renderer_draws():
    shapes, places = (
        FULL.shapes,
        np.array([[9.3, 7.1], [8.0, 8.0], [7.7, 8.9], [8.1, 8.3], [9.0, 7.2], [8.5, 8.5]]),
    )
    radii = np.full((6, 1), 6.0)
    drawn = templates(shapes, places[:, :1], places[:, 1:], radii, (17, 18))
    for shape, (x, y), template in zip(shapes, places, drawn[:, 0]):
        picture = render([SceneObject(shape, "white", x, y, 6.0)], FULL)[:17, :18, 0]
        # both count points of a grid: an outline along a grid line may move by half a step of each
        assert np.abs(2 * picture - 1 - template).max() <= 1 / SUPERSAMPLE
        assert np.abs(2 * picture - 1 - template).mean() < 0.02


def test_blurs_are_gaussian_filters():
    image = np.random.default_rng(0).uniform(size=(2, 14, 17)).astype(np.float32)
    for width, ours in zip((0.0, 0.6, 1.0), blurred(image, [0.0, 0.6, 1.0])):
        theirs = image if not width else ndimage.gaussian_filter(image, (0, width, width), mode="constant")
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_soft_iou_of_masks_is_their_iou_and_contrast_is_free():
    a, b = np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32)
    a[:4], b[2:6] = 1, 1
    assert soft_iou(a, a[None])[0] == pytest.approx(1.0)
    assert soft_iou(0.7 * a, a[None])[0] == pytest.approx(1.0)
    assert soft_iou(0.5 * a, a[None])[0] < 0.9  # beyond the contrasts that are allowed
    # the fit takes a contrast of 0.6 here: shared 16 * 0.6, union 32 + 32 * 0.6 - shared
    assert soft_iou(a, b[None])[0] == pytest.approx(9.6 / (32 + 19.2 - 9.6))


def test_moments_of_the_unit_shapes():
    assert unit_moments("circle").area == pytest.approx(np.pi, rel=0.01)
    assert unit_moments("triangle").area == pytest.approx(1.85, rel=0.01)
    assert unit_moments("triangle").y == pytest.approx(0.85 - 1.85 / 3, abs=0.01)
    for shape in FULL.shapes:
        assert unit_moments(shape).x == pytest.approx(0, abs=1e-4)


def test_color_spread_is_zero_for_shades_of_one_color_and_not_for_two():
    red, blue = FULL.palette[0] - 0.5, FULL.palette[4] - 0.5
    shades = np.linspace(0.3, 1.0, 9)[:, None] * red
    assert color_spread(shades, red) == pytest.approx(0.0, abs=1e-12)
    assert color_spread(np.stack([red, blue]), red) > DetectorSettings().spread
