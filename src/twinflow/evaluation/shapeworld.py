"""The ShapeWorld benchmark: pictures and captions in, GenEval's scores and some of our own out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from twinflow.data.shapeworld import Level, draw_scene, get_level, held_out
from twinflow.data.shapeworld.captions import Caption
from twinflow.data.shapeworld.dataset import EVAL_STREAM
from twinflow.evaluation.benchmark import Progress
from twinflow.evaluation.detector import ShapeDetector
from twinflow.evaluation.diversity import layout_diversity
from twinflow.evaluation.results_file import read_results, write_results
from twinflow.evaluation.scoring import (
    ImageResult,
    Metadata,
    Summary,
    score_detections,
    summarize,
)

REFERENCE_SCENES = 16  # of a prompt, for the renderer's own diversity


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
    progress: Progress | None = None,
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
        if progress is not None:
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
