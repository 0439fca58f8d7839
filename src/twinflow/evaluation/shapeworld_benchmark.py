"""The ShapeWorld benchmark as one that can be drawn and scored: prompts, seeds, files, scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from twinflow.data.shapeworld import Level, evaluation_suite, get_level
from twinflow.errors import TwinflowError
from twinflow.evaluation.benchmark import Benchmark, Finding, Progress, Scores, prompts_hash, silent
from twinflow.evaluation.detector import ShapeDetector
from twinflow.evaluation.pictures import Picture, read_picture, to_pixels
from twinflow.evaluation.results import Metric
from twinflow.evaluation.scoring import ImageResult
from twinflow.evaluation.shapeworld import score_images

RESULTS = "results.jsonl"


class ShapeWorldBenchmark(Benchmark):
    """``images_per_task`` pictures of each of the six tasks, fixed seeds.

    Picture i has caption i of ``evaluation_suite(level, images_per_task, seed)`` and noise seed
    ``seed * 1_000_003 + i``, for every model, NFE and batch size: rows compare picture by picture.
    """

    name = "shapeworld"

    def __init__(self, level: str | Level = "tiny", *, images_per_task: int = 200, seed: int = 0) -> None:
        if images_per_task < 1:
            raise TwinflowError(f"images_per_task must be at least 1, got {images_per_task}")
        if seed < 0:
            raise TwinflowError(f"shapeworld's seed must be at least 0, got {seed}")
        try:
            self.level = get_level(level)
        except ValueError as error:
            raise TwinflowError(str(error)) from error
        self.images_per_task, self.seed = images_per_task, seed
        self.captions = evaluation_suite(self.level, images_per_task, seed)
        self.pictures = [
            Picture(file=f"{i:05}.png", prompt=caption["prompt"], seed=seed * 1_000_003 + i)
            for i, caption in enumerate(self.captions)
        ]

    @property
    def protocol(self) -> dict[str, Any]:
        return {
            "level": self.level.name,
            "images_per_task": self.images_per_task,
            "seed": self.seed,
            "prompts": prompts_hash(self.pictures),
            "detector": "ShapeWorld pixel verifier 1",
        }

    def score(self, folder: Path, *, keep: Path | None = None, progress: Progress = silent) -> Scores:
        side = self.level.size
        pixels = []
        for picture in self.pictures:
            image = read_picture(folder / picture.file)
            if image.size != (side, side):
                width, height = image.size
                raise TwinflowError(
                    f"{folder / picture.file} has {width} x {height} pixels, and level {self.level.name!r} has "
                    f"{side} x {side}: the verifier knows the shapes at that size alone"
                )
            pixels.append(to_pixels(image))
        names = [picture.file for picture in self.pictures]
        detector = ShapeDetector(self.level)
        report = score_images(
            torch.stack(pixels),
            self.captions,
            self.level,
            detector=detector,
            filenames=names,
            progress=progress,
        )
        report.write_jsonl((keep or folder) / RESULTS)
        official = report.official
        spread = (
            ("placement_entropy", "Placement entropy", report.placement_entropy),
            ("training_distance", "Distance from training layouts", report.training_distance),
        )
        return Scores(
            overall=official.overall,
            overall_error=official.overall_error,
            strict=report.strict.overall,
            strict_error=report.strict.overall_error,
            tasks=dict(official.tasks),
            task_images={task: proportion.total for task, proportion in official.by_task.items()},
            held_out=report.held_out,
            diversity=report.layout_diversity,
            metrics={
                "detection": Metric(report.detection_score, "Shape fit", "higher", 3),
                **{name: Metric(value, title) for name, title, value in spread if value is not None},
            },
            findings=[finding(row) for row in report.rows],
        )


def finding(row: ImageResult) -> Finding:
    """A scored picture as the page shows it."""
    labels = [
        " ".join(filter(None, (d.color if d.clear else "blended", d.class_name))) for d in row.detections
    ]
    boxes = [(label, [float(x) for x in d.box], d.score) for label, d in zip(labels, row.detections)]
    return Finding(
        file=row.filename, prompt=row.prompt, correct=row.correct, reason=row.verdict.reason, boxes=boxes
    )
