"""The ShapeWorld benchmark: pictures and captions in, GenEval's scores and some of our own out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from torch import Tensor

from twinflow.data.shapeworld import Level, draw_scene, get_level, held_out
from twinflow.data.shapeworld.captions import Caption
from twinflow.data.shapeworld.dataset import EVAL_STREAM, ShapeWorldDataset
from twinflow.evaluation.benchmark import Progress, silent
from twinflow.evaluation.detector import ShapeDetector
from twinflow.evaluation.diversity import Box, layout_diversity
from twinflow.evaluation.results_file import read_results, write_results
from twinflow.evaluation.scoring import (
    ImageResult,
    Metadata,
    Summary,
    score_detections,
    summarize,
)

REFERENCE_SCENES = 16  # of a prompt, for the renderer's own diversity
TRAINING_SCENES = (
    2000  # the first of the training set of seed 0: all of one small enough to be learnt by heart
)
CELLS = 8  # of a side, into which places are counted

Layouts = Sequence[Sequence[Box]]  # the boxes of each picture


@dataclass(frozen=True, kw_only=True)
class Report:
    """Scores of a set of pictures. Distances are total variations: 0 for the same distribution, 1 for apart."""

    level: Level
    rows: list[ImageResult]  # one a picture, in order
    official: Summary  # GenEval's rule
    strict: Summary  # no object beyond the caption
    seen_summary: Summary | None  # coloured captions whose (shape, colour) pairs training names
    held_out_summary: Summary | None  # those with a pair that training never names
    detection_score: (
        float  # mean fit of all objects found, about 1 for the renderer: how clean the shapes are
    )
    count_distance: float  # number of objects in a picture
    shape_distance: float  # shapes of all objects
    color_distance: float  # colours of all objects, "unknown" being one
    layout_diversity: float | None  # spread over pictures of a prompt, 1 = the renderer's own
    placement_entropy: float | None  # of where objects lie in any picture, 1 = the renderer's own
    training_distance: float | None  # to the nearest training layout; 1 as of unseen scenes, 0: copies

    @property
    def seen(self) -> float | None:
        return self.seen_summary.overall if self.seen_summary else None

    @property
    def held_out(self) -> float | None:
        return self.held_out_summary.overall if self.held_out_summary else None

    def write_jsonl(self, path: str | Path) -> None:
        """The rows as GenEval's results file."""
        write_results(path, self.rows)

    @classmethod
    def read_jsonl(cls, path: str | Path, level: str | Level = "tiny") -> Report:
        """The report on the rows of a results file."""
        return report(read_results(path), level)


def score_images(
    images: Tensor,
    captions: Sequence[Caption],
    level: str | Level = "tiny",
    *,
    detector: ShapeDetector | None = None,
    filenames: Sequence[str] | None = None,
    progress: Progress = silent,
) -> Report:
    """Score pictures (N, 3, size, size) in [-1, 1], each against its caption.

    Captions are those of :func:`twinflow.data.shapeworld.evaluation_suite`. ``filenames`` go into the rows,
    by default "00000.png" and so on.
    """
    world = get_level(level)
    expected = (len(captions), 3, world.size, world.size)
    if tuple(images.shape) != expected:
        raise ValueError(
            f"{len(captions)} captions of level {world.name!r} need pictures {expected}, got {tuple(images.shape)}"
        )
    names = filenames if filenames is not None else [f"{i:05}.png" for i in range(len(captions))]
    if len(names) != len(captions):
        raise ValueError(f"{len(captions)} pictures need as many file names, got {len(names)}")
    detector = detector or ShapeDetector(world)
    pixels = (images.detach().float().cpu().permute(0, 2, 3, 1).numpy() + 1) / 2
    rows = []
    for image, caption, name in zip(pixels, captions, names):
        found = detector.detect(image)
        verdict = score_detections(found, caption)
        rows.append(ImageResult(filename=name, metadata=caption, verdict=verdict, detections=found))
        progress(len(rows), len(captions))
    return report(rows, world)


def report(rows: Sequence[ImageResult], level: str | Level = "tiny") -> Report:
    """All scores of rows that were scored before."""
    world, rows = get_level(level), list(rows)
    colored = [row for row in rows if any("color" in need for need in row.metadata["include"])]
    unseen = [row for row in colored if held_out(world, dict(row.metadata))]
    seen = [row for row in colored if not held_out(world, dict(row.metadata))]
    found = [detection for row in rows for detection in row.detections]
    captions = [row.metadata for row in rows]
    layouts = [[detection.box for detection in row.detections] for row in rows]
    real = unseen_layouts(captions, world)
    return Report(
        level=world,
        rows=rows,
        official=summarize(rows),
        strict=summarize(rows, strict=True),
        seen_summary=summarize(seen) if seen else None,
        held_out_summary=summarize(unseen) if unseen else None,
        detection_score=float(np.mean([d.score for d in found])) if found else 0.0,
        count_distance=total_variation(
            Counter(len(row.detections) for row in rows),
            Counter(sum(need["count"] for need in caption["include"]) for caption in captions),
        ),
        shape_distance=total_variation(Counter(d.class_name for d in found), expected_shapes(captions)),
        color_distance=total_variation(
            Counter(d.color or "unknown" for d in found), expected_colors(captions, world)
        ),
        layout_diversity=relative_layout_diversity(rows, world),
        placement_entropy=relative_placement_entropy(layouts, real, world),
        training_distance=relative_training_distance(layouts, real, world),
    )


def expected_shapes(captions: Iterable[Metadata]) -> Counter[str]:
    """How often each shape is asked for."""
    shapes: Counter[str] = Counter()
    for caption in captions:
        for need in caption["include"]:
            shapes[need["class"]] += need["count"]
    return shapes


def expected_colors(captions: Iterable[Metadata], level: Level) -> dict[str, float]:
    """How often each colour is expected: what a caption leaves open is uniform over the level's colours."""
    colors = dict.fromkeys(level.colors, 0.0)
    for caption in captions:
        for need in caption["include"]:
            for color in [need["color"]] if "color" in need else level.colors:
                colors[color] += need["count"] / (1 if "color" in need else len(level.colors))
    return colors


def total_variation(a: dict, b: dict) -> float:
    """Half the L1 distance of two distributions given by weights; 1 if only one of them has any."""
    total_a, total_b = sum(a.values()), sum(b.values())
    if not total_a or not total_b:
        return float(bool(total_a) != bool(total_b))
    return 0.5 * sum(abs(a.get(key, 0) / total_a - b.get(key, 0) / total_b) for key in {*a, *b})


def relative_layout_diversity(rows: Sequence[ImageResult], level: Level) -> float | None:
    """Layout diversity of the pictures over that of real scenes of the same prompts.

    None where no prompt has two pictures with equally many objects.
    """
    prompts: list[Hashable] = [row.prompt for row in rows]
    try:
        found = layout_diversity([[d.box for d in row.detections] for row in rows], prompts)
    except ValueError:  # nothing to compare
        return None
    captions = {row.prompt: dict(row.metadata) for row in rows if row.prompt in found.prompts}
    rng = np.random.default_rng([0, EVAL_STREAM])
    drawn = [prompt for prompt in captions for _ in range(REFERENCE_SCENES)]
    real = [[o.box for o in draw_scene(captions[prompt], rng, level)] for prompt in drawn]
    return found.mean / layout_diversity(real, drawn).mean


def placement_entropy(layouts: Layouts, size: float, *, cells: int = CELLS) -> float:
    """Entropy in bits of the cell, of ``cells`` x ``cells`` on a picture of side ``size``, that a centre lies in.

    0 where all objects of all pictures lie in one cell, ``2 log2(cells)`` where every cell has as many. Unlike
    :func:`layout_diversity` it needs no two pictures of a prompt, and can't tell seeds from prompts.
    """
    centres = np.array([_centre(box) for boxes in layouts for box in boxes])
    if not len(centres):
        raise ValueError("no object in any picture: nothing has a place")
    column, row = np.clip(centres * cells / size, 0, cells - 1).astype(int).T
    shares = np.bincount(row * cells + column) / len(centres)
    return float(-sum(share * np.log2(share) for share in shares if share > 0))


def nearest_layouts(layouts: Layouts, training: Layouts) -> list[float | None]:
    """How far each layout is from the nearest of ``training`` with as many objects, None where there is none.

    Distances are those of :func:`layout_diversity`: |dx| + |dy| of sorted centres, in the mean over objects.
    """
    known: dict[int, list[np.ndarray]] = {}
    for boxes in training:
        known.setdefault(len(boxes), []).append(_sorted_centres(boxes))
    stacks = {count: np.stack(centres) for count, centres in known.items() if count > 0}
    found: list[float | None] = []
    for boxes in layouts:
        others = stacks.get(len(boxes))
        if others is None:
            found.append(None)
        else:
            found.append(float(np.abs(others - _sorted_centres(boxes)).sum(-1).mean(-1).min()))
    return found


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _sorted_centres(boxes: Sequence[Box]) -> np.ndarray:
    return np.array(sorted(map(_centre, boxes)))  # (K, 2)


def unseen_layouts(captions: Iterable[Metadata], level: Level) -> Layouts:
    """A real scene of each caption that no training shows."""
    rng = np.random.default_rng([1, EVAL_STREAM])
    return [[o.box for o in draw_scene(dict(caption), rng, level)] for caption in captions]


@cache
def training_layouts(level: Level) -> Layouts:
    """The first ``TRAINING_SCENES`` training scenes."""
    scenes = ShapeWorldDataset(level, length=TRAINING_SCENES)
    return [[o.box for o in scenes.scene(i)[1]] for i in range(len(scenes))]


def relative_placement_entropy(layouts: Layouts, real: Layouts, level: Level) -> float | None:
    """Entropy of places over that of ``real`` ones, both of as many pictures; None where there is nothing to find."""
    if not any(layouts) or not (of_real := placement_entropy(real, level.size)):
        return None
    return placement_entropy(layouts, level.size) / of_real


def relative_training_distance(layouts: Layouts, real: Layouts, level: Level) -> float | None:
    """Mean distance to the nearest training layout over that of ``real``, unseen scenes of as many objects.

    None where no picture has as many objects as a real one.
    """

    def by_count(some: Layouts) -> dict[int, list[float]]:
        distances: dict[int, list[float]] = {}
        for boxes, distance in zip(some, nearest_layouts(some, training_layouts(level))):
            if distance is not None:
                distances.setdefault(len(boxes), []).append(distance)
        return distances

    ours, theirs = by_count(layouts), by_count(real)
    ratios = [d / float(np.mean(theirs[count])) for count in ours if count in theirs for d in ours[count]]
    return float(np.mean(ratios)) if ratios else None
