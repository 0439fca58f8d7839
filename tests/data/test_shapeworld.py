"""ShapeWorld's scenes, pictures and training set."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twinflow.data.relations import relative_position
from twinflow.data.shapeworld import (
    LEVELS,
    TASKS,
    ShapeWorldDataset,
    all_captions,
    draw_scene,
    evaluation_suite,
    get_level,
    render,
)
from twinflow.data.shapeworld.captions import training_captions
from twinflow.data.shapeworld.dataset import EVAL_STREAM, TRAIN_STREAM
from twinflow.data.shapeworld.scenes import SceneObject, coverage, inside
from twinflow.data.shapeworld.world import BACKGROUND, BORDER_MARGIN, OBJECT_GAP, PALETTE

both_levels = pytest.mark.parametrize("level", LEVELS)


@both_levels
@pytest.mark.parametrize("quota", [1, 7, 40])
def test_suite_gives_every_task_its_quota_and_prompts_their_turns(level, quota):
    suite = evaluation_suite(level, quota, seed=4)
    assert [caption["tag"] for caption in suite] == [task for task in TASKS for _ in range(quota)]
    for task in TASKS:
        captions = all_captions(level, task)
        uses = Counter(caption["prompt"] for caption in suite if caption["tag"] == task)
        assert len(uses) == min(quota, len(captions))
        assert max(uses.values()) - min(uses.values()) <= 1


def test_suite_is_a_function_of_its_seed():
    assert evaluation_suite("tiny", 20, seed=1) == evaluation_suite("tiny", 20, seed=1)
    assert evaluation_suite("tiny", 20, seed=1) != evaluation_suite("tiny", 20, seed=2)


@both_levels
def test_every_scene_satisfies_its_caption(level):
    world = get_level(level)
    for i, caption in enumerate(evaluation_suite(level, 24, seed=9)):
        scene = draw_scene(caption, np.random.default_rng(i), level)
        asked = Counter({need["class"]: need["count"] for need in caption["include"]})
        assert Counter(o.shape for o in scene) == asked
        assert all(o.color in world.colors for o in scene)
        for need, o in zip(caption["include"], scene):
            assert "color" not in need or need["color"] == o.color
            if "position" in need:  # the relation holds, and no other
                assert relative_position(o.box, scene[0].box) == {need["position"][0]}


@both_levels
def test_objects_keep_their_distance(level):
    for i, caption in enumerate(evaluation_suite(level, 12, seed=3)):
        size = get_level(level).size
        scene = draw_scene(caption, np.random.default_rng(i), level)
        for o in scene:
            assert min(o.box) >= BORDER_MARGIN - 1e-9
            assert max(o.box) <= size - BORDER_MARGIN + 1e-9
        for a, b in combinations(scene, 2):
            apart = max(abs(a.x - b.x), abs(a.y - b.y)) - a.radius - b.radius
            assert apart >= OBJECT_GAP - 1e-9


def test_what_a_caption_leaves_open_is_random():
    caption = all_captions("full", "single_object")[0]
    scenes = [draw_scene(caption, np.random.default_rng(i), "full")[0] for i in range(400)]
    assert {o.color for o in scenes} == set(PALETTE)
    assert np.std([o.x for o in scenes]) > 3
    assert np.ptp([o.radius for o in scenes]) > 2.5


def test_a_full_pixel_has_the_color_and_an_empty_one_the_background():
    for color, rgb in PALETTE.items():
        picture = render([SceneObject("square", color, 16.0, 16.0, 7.0)], "full")
        assert picture.dtype == np.float32
        assert picture.shape == (32, 32, 3)
        np.testing.assert_allclose(picture[16, 16], rgb, atol=1e-6)
        np.testing.assert_allclose(picture[0, 0], BACKGROUND, atol=1e-6)


AREA = {
    "circle": np.pi,
    "square": 1.72**2,
    "triangle": 1.85,
    "diamond": 2.0,
    "cross": 4 * 0.66 - 0.66**2,
    "ring": 0.75 * np.pi,
}


@settings(max_examples=40)
@given(shape=st.sampled_from(sorted(AREA)), x=st.floats(8, 24), y=st.floats(8, 24), radius=st.floats(4, 7.5))
def test_coverage_has_the_shapes_area(shape, x, y, radius):
    alpha = coverage(shape, cx=x, cy=y, radius=radius, x0=0, y0=0, width=32, height=32)
    assert alpha.min() >= 0
    assert alpha.max() <= 1
    assert alpha.sum() == pytest.approx(AREA[shape] * radius**2, rel=0.05)


def test_coverage_of_a_window_is_the_window_of_the_coverage():
    whole = coverage("ring", cx=14.3, cy=17.9, radius=6.1, x0=0, y0=0, width=32, height=32)
    part = coverage("ring", cx=14.3, cy=17.9, radius=6.1, x0=5, y0=9, width=20, height=11)
    np.testing.assert_array_equal(part, whole[9:20, 5:25])


def test_shapes_stay_in_their_box_and_the_triangle_points_up():
    grid = (np.arange(300) + 0.5) / 97 - 1.55  # no point lies on an outline
    grid = (grid - grid[::-1]) / 2
    x, y = np.meshgrid(grid, grid)
    for shape in AREA:
        mask = inside(shape, x, y)
        assert not mask[np.maximum(abs(x), abs(y)) > 1 + 1e-9].any()
        np.testing.assert_array_equal(mask, mask[:, ::-1])  # all are symmetric
    triangle = inside("triangle", x, y)
    widths = triangle.sum(1)
    assert np.all(np.diff(widths[widths > 0]) >= 0)  # y points down: wider below
    with pytest.raises(ValueError, match="hexagon"):
        inside("hexagon", x, y)


def test_lengths_scale_with_the_size_of_the_picture():
    small, large = get_level("tiny"), replace(get_level("tiny"), size=64)
    caption = all_captions("tiny", "counting")[2]
    for a, b in zip(*(draw_scene(caption, np.random.default_rng(0), level) for level in (small, large))):
        assert (b.x, b.y, b.radius) == pytest.approx((2 * a.x, 2 * a.y, 2 * a.radius))


@both_levels
def test_items_are_pictures_in_range_with_training_captions(level):
    dataset = ShapeWorldDataset(level, length=60)
    allowed = {c["prompt"] for task in TASKS for c in training_captions(level, task)}
    size = get_level(level).size
    for item in (dataset[i] for i in range(len(dataset))):
        assert item["caption"] in allowed
        assert item["pixels"].shape == (3, size, size)
        assert item["pixels"].dtype == torch.float32
        assert item["pixels"].is_contiguous()
        assert item["pixels"].min() >= -1
        assert item["pixels"].max() <= 1
        assert item["pixels"][:, 0, 0].abs().max() < 1e-6  # the background is 0


def test_an_item_depends_on_seed_and_index_alone():
    short, long, other = (ShapeWorldDataset(length=n, seed=s) for n, s in [(10, 0), (1000, 0), (10, 1)])
    for i in (9, 0, 5):
        assert torch.equal(short[i]["pixels"], long[i]["pixels"])
        assert short[i]["caption"] == long[i]["caption"]
        assert not torch.equal(short[i]["pixels"], other[i]["pixels"])
    assert not torch.equal(short[0]["pixels"], short[1]["pixels"])


def test_tasks_come_equally_often():
    dataset = ShapeWorldDataset(length=600)
    tags = {c["prompt"]: task for task in TASKS for c in all_captions("tiny", task)}
    counts = Counter(tags[dataset[i]["caption"]] for i in range(len(dataset)))
    assert set(counts) == set(TASKS)
    assert sum((n - 100) ** 2 / 100 for n in counts.values()) < 20.5  # chi-squared, 5 degrees, p = 0.001


def test_training_and_evaluation_never_draw_from_the_same_stream():
    assert TRAIN_STREAM != EVAL_STREAM
    first = {
        stream: {
            tuple(np.random.default_rng([seed, stream, i]).random(2)) for seed in range(4) for i in range(250)
        }
        for stream in (TRAIN_STREAM, EVAL_STREAM)
    }
    assert len(first[TRAIN_STREAM]) == len(first[EVAL_STREAM]) == 1000
    assert not first[TRAIN_STREAM] & first[EVAL_STREAM]


def test_bad_lengths_and_indices_are_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ShapeWorldDataset(length=0)
    for index in (-1, 5):
        with pytest.raises(IndexError):
            ShapeWorldDataset(length=5)[index]
