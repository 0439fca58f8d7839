"""The ShapeWorld benchmark: the renderer is perfect, noise scores nothing, and every score means what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from twinflow.data.shapeworld import (
    LEVELS,
    TASKS,
    all_captions,
    draw_scene,
    evaluation_suite,
    get_level,
    held_out,
    render,
)
from twinflow.data.shapeworld.captions import Caption
from twinflow.data.shapeworld.dataset import EVAL_STREAM
from twinflow.evaluation.detector import DetectorSettings, ShapeDetector
from twinflow.evaluation.scoring import Detection, score_detections
from twinflow.evaluation.shapeworld import (
    Report,
    expected_colors,
    expected_shapes,
    report,
    score_images,
    total_variation,
)

both_levels = pytest.mark.parametrize("level", LEVELS)


def draw(captions: list[Caption], level, seed: int = 0) -> Tensor:
    """The renderer's pictures of the captions, (N, 3, size, size) in [-1, 1]."""
    rngs = (np.random.default_rng([seed, EVAL_STREAM, i]) for i in range(len(captions)))
    pictures = [render(draw_scene(caption, rng, level), level) for caption, rng in zip(captions, rngs)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) * 2 - 1


@cache
def perfect(level: str) -> Report:
    suite = evaluation_suite(level, 34, seed=0)
    return score_images(draw(suite, level, seed=5), suite, level)


@both_levels
def test_the_renderer_is_perfect(level):
    result = perfect(level)
    assert result.official.tasks == dict.fromkeys(TASKS, 1.0)
    assert result.official.overall == result.strict.overall == result.seen == result.held_out == 1.0
    assert result.official.prompts.value == 1.0
    assert result.detection_score > 0.95
    assert result.count_distance == 0.0
    assert result.shape_distance < 1e-9
    assert result.color_distance < 0.15  # colours that captions leave open are random
    assert result.layout_diversity == pytest.approx(1.0, abs=0.2)
    assert result.placement_entropy == pytest.approx(1.0, abs=0.05)
    assert result.training_distance == pytest.approx(1.0, abs=0.2)


@both_levels
def test_noise_scores_nothing(level):
    suite = evaluation_suite(level, 34, seed=0)
    size = get_level(level).size
    result = score_images(
        0.5 * torch.randn(len(suite), 3, size, size, generator=torch.Generator().manual_seed(0)), suite, level
    )
    assert result.official.overall == result.strict.overall == 0.0
    assert result.official.images.correct == 0
    assert result.detection_score == 0.0
    assert result.count_distance == pytest.approx(1.0)
    assert result.shape_distance == result.color_distance == 1.0
    assert result.layout_diversity is None
    assert result.placement_entropy is None
    assert result.training_distance is None


def hard_negatives(caption: Caption, level: str) -> list[Caption]:
    """The caption with one attribute changed."""
    world, include = get_level(level), caption["include"]

    def changed(index: int, **new) -> Caption:
        needs = [need | new if i == index else need for i, need in enumerate(include)]
        return {"tag": caption["tag"], "include": needs, "prompt": "a photo of something else"}

    used = {need["class"] for need in include}
    captions = [
        changed(i, **{"class": s}) for i in range(len(include)) for s in world.shapes if s not in used
    ]
    for i, need in enumerate(include):
        if "color" in need:
            captions += [changed(i, color=c) for c in world.colors if c != need["color"]]
        if "position" in need:
            others = {"left of", "right of", "above", "below"} - {need["position"][0]}
            captions += [changed(i, position=[relation, 0]) for relation in sorted(others)]
    if caption["tag"] == "counting":
        (need,) = include
        captions.append(changed(0, count=need["count"] + 1))
        fewer = need | {"count": need["count"] - 1}
        captions.append(caption | {"include": [fewer], "exclude": [need]})
    if caption["tag"] == "color_attr":
        first, second = include
        swapped = [first | {"color": second["color"]}, second | {"color": first["color"]}]
        captions.append(caption | {"include": swapped})
    return captions


@both_levels
def test_captions_with_one_attribute_changed_are_wrong(level):
    """The layout itself proves them wrong, and so does the picture."""
    asked = 0
    for row, caption in zip(perfect(level).rows, evaluation_suite(level, 34, seed=0)):
        for negative in hard_negatives(caption, level):
            assert not score_detections(row.detections, negative).correct, (caption, negative)
            asked += 1
    assert asked > 1000


def test_each_picture_is_scored_alone():
    suite = evaluation_suite("tiny", 3, seed=2)
    images = draw(suite, "tiny")
    whole = score_images(images, suite, "tiny").rows
    parts = [score_images(images[i : i + 1], suite[i : i + 1], "tiny").rows[0] for i in range(len(suite))]
    assert [r.detections for r in whole] == [r.detections for r in parts]
    flipped = score_images(images.flip(0), suite[::-1], "tiny")
    assert [r.detections for r in flipped.rows] == [r.detections for r in whole[::-1]]


def test_wrong_captions_for_right_pictures():
    """A model that draws perfect scenes but ignores the caption is near the floor."""
    suite = evaluation_suite("full", 30, seed=0)
    images = draw(suite, "full")
    order = np.random.default_rng(0).permutation(len(suite))
    result = score_images(images[order], suite, "full")
    assert result.official.overall < 0.15
    assert result.detection_score > 0.95


def test_held_out_pairs_are_told_apart():
    """Pictures of seen pairs right, those of held-out pairs blank."""
    suite = evaluation_suite("tiny", 30, seed=1)
    images = draw(suite, "tiny")
    reference = perfect("tiny")
    assert (
        set(reference.seen_summary.tasks) == set(reference.held_out_summary.tasks) == {"colors", "color_attr"}
    )
    unseen = torch.tensor([held_out("tiny", caption) for caption in suite])
    assert 0 < unseen.sum() < 60
    result = score_images(torch.where(unseen[:, None, None, None], 0.0, images), suite, "tiny")
    assert (result.seen, result.held_out) == (1.0, 0.0)
    alone = score_images(images[:30], suite[:30], "tiny")  # no coloured caption
    assert (alone.seen, alone.held_out, alone.seen_summary) == (None, None, None)


def test_the_same_layout_for_every_seed_has_no_diversity():
    captions = all_captions("tiny", "position")[:5]
    result = score_images(draw(captions, "tiny").repeat(4, 1, 1, 1), captions * 4, "tiny")
    assert result.official.overall == 1.0
    assert result.layout_diversity == pytest.approx(0.0, abs=1e-9)


def test_marginals_notice_a_collapse_that_scores_cannot_see():
    """Single objects of any colour are right, even if all are blue."""
    captions = all_captions("tiny", "single_object") * 20
    world = replace(get_level("tiny"), colors=("blue",))
    result = score_images(draw(captions, world), captions, "tiny")
    assert result.official.overall == 1.0
    assert result.color_distance == pytest.approx(0.8)
    assert result.shape_distance == pytest.approx(0.0)


def test_extra_objects_cost_the_strict_score_alone():
    single, pairs = all_captions("tiny", "single_object"), all_captions("tiny", "two_object")
    by_first = [next(p for p in pairs if p["include"][0] == s["include"][0]) for s in single]
    result = score_images(draw(by_first, "tiny"), single, "tiny")
    assert (result.official.overall, result.strict.overall) == (1.0, 0.0)
    assert result.count_distance == 1.0


def test_rows_are_written_and_read(tmp_path):
    result = perfect("tiny")
    result.write_jsonl(tmp_path / "results.jsonl")
    again = Report.read_jsonl(tmp_path / "results.jsonl", "tiny")
    assert again == result
    first = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])
    assert first["filename"] == "00000.png"
    assert list(first)[:7] == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]


def test_other_sizes_dtypes_and_detectors():
    large = replace(get_level("tiny"), size=48)
    suite = evaluation_suite(large, 2)
    images = draw(suite, large)
    assert score_images(images, suite, large).strict.overall == 1.0
    assert score_images(images.double(), suite, large).strict.overall == 1.0
    assert score_images(images.bfloat16(), suite, large).strict.overall == 1.0
    blind = ShapeDetector(large, settings=DetectorSettings(score=1.01))
    assert score_images(images, suite, large, detector=blind).strict.overall == 0.0
    named = score_images(images[:1], suite[:1], large, filenames=["a.png"])
    assert named.rows[0].filename == "a.png"


def test_wrong_shapes_are_refused():
    suite = evaluation_suite("tiny", 1)
    with pytest.raises(ValueError, match=r"need pictures \(6, 3, 32, 32\), got \(6, 32, 32, 3\)"):
        score_images(torch.zeros(6, 32, 32, 3), suite, "tiny")
    with pytest.raises(ValueError, match="as many file names, got 1"):
        score_images(torch.zeros(6, 3, 32, 32), suite, "tiny", filenames=["a.png"])
    with pytest.raises(ValueError, match="no rows"):
        report([], "tiny")


def test_total_variation():
    assert total_variation({"a": 1, "b": 1}, {"a": 10, "b": 10}) == 0.0
    assert total_variation({"a": 1}, {"b": 2}) == 1.0
    assert total_variation({"a": 3, "b": 1}, {"a": 1, "b": 3}) == 0.5
    assert total_variation({}, {"a": 1}) == total_variation({"a": 1}, {"a": 0}) == 1.0
    assert total_variation({}, {}) == 0.0


@both_levels
def test_expected_marginals_are_those_of_the_renderer(level):
    world = get_level(level)
    suite = evaluation_suite(level, 80, seed=3)
    scenes = [draw_scene(c, np.random.default_rng([9, EVAL_STREAM, i]), level) for i, c in enumerate(suite)]
    objects = [o for scene in scenes for o in scene]
    shapes = {s: sum(o.shape == s for o in objects) for s in world.shapes}
    colors = {c: sum(o.color == c for o in objects) for c in world.colors}
    assert expected_shapes(suite) == shapes
    assert sum(expected_colors(suite, world).values()) == pytest.approx(len(objects))
    assert total_variation(colors, expected_colors(suite, world)) < 0.08


def test_an_oracle_detector_agrees_with_the_pixels():
    """Verdicts from pixels equal verdicts from the layout, for right and for random captions."""
    suite = evaluation_suite("full", 20, seed=7)
    rng = np.random.default_rng(0)
    detector = ShapeDetector("full")
    for i, caption in enumerate(suite):
        scene = draw_scene(caption, np.random.default_rng([7, EVAL_STREAM, i]), "full")
        truth = [Detection(class_name=o.shape, box=o.box, score=1.0, color=o.color) for o in scene]
        found = detector.detect(render(scene, "full"))
        pool = all_captions("full", caption["tag"])
        for asked in (caption, pool[rng.integers(len(pool))]):
            expected, verdict = score_detections(truth, asked), score_detections(found, asked)
            assert (verdict.correct, verdict.strict) == (expected.correct, expected.strict)
