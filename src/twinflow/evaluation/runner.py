"""Draw a benchmark's pictures with a pipeline at several NFE, score them, and keep what a reader wants to see."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinflow.data.shapeworld import Level, evaluation_suite
from twinflow.evaluation.results import EvaluationRow
from twinflow.evaluation.shapeworld import score_images
from twinflow.pipelines import AnyStepPipeline, to_pil


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a model is sampled in an evaluation; ``nfe`` counts every network evaluation of a picture."""

    nfe: int
    guidance: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)  # for twinflow.sampling.sample


@dataclass(kw_only=True)
class ShapeWorldEvaluation:
    """The ShapeWorld benchmark: ``images_per_task`` pictures of each of the six tasks, fixed seeds.

    Picture i has caption i of ``evaluation_suite(level, images_per_task, seed)`` and noise seed
    ``seed * 1_000_003 + i``, for every model, NFE and batch size: rows compare picture by picture.
    """

    level: str | Level = "tiny"
    images_per_task: int = 200
    seed: int = 0
    batch_size: int = 256
    shown: int = 48  # pictures written for the page

    def __post_init__(self) -> None:
        if self.images_per_task < 1:
            raise ValueError(f"images_per_task must be at least 1, got {self.images_per_task}")
        self.captions = evaluation_suite(self.level, self.images_per_task, self.seed)
        self.seeds = [self.seed * 1_000_003 + i for i in range(len(self.captions))]

    def run(
        self,
        pipe: AnyStepPipeline,
        sampler: Sampler,
        *,
        model: str,
        folder: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> EvaluationRow:
        """Score ``pipe``; with ``folder``, write the rows as JSONL and some pictures there."""
        pixels, seconds = self.draw(pipe, sampler, progress=progress)
        return self.score(pixels, sampler, model=model, folder=folder, seconds=seconds)

    def draw(
        self, pipe: AnyStepPipeline, sampler: Sampler, *, progress: Callable[[int, int], None] | None = None
    ) -> tuple[Tensor, float]:
        """All pictures (N, 3, H, W) in [-1, 1], and seconds a picture."""
        prompts = [caption["prompt"] for caption in self.captions]
        parts, start = [], time.perf_counter()
        for first in range(0, len(prompts), self.batch_size):
            rows = slice(first, first + self.batch_size)
            result = pipe(
                prompts[rows],
                nfe=sampler.nfe,
                seeds=self.seeds[rows],
                guidance=sampler.guidance,
                **sampler.options,
            )
            parts.append(result.pixels)
            if progress is not None:
                progress(min(first + self.batch_size, len(prompts)), len(prompts))
        return torch.cat(parts), (time.perf_counter() - start) / len(prompts)

    def score(
        self, pixels: Tensor, sampler: Sampler, *, model: str, folder: Path | None, seconds: float | None
    ) -> EvaluationRow:
        report = score_images(pixels, self.captions, level=self.level)
        row = EvaluationRow(
            model=model,
            nfe=sampler.nfe,
            images=len(self.captions),
            overall=report.official.overall,
            overall_error=report.official.overall_error,
            strict=report.strict.overall,
            tasks=dict(report.official.tasks),
            style=sampler.options.get("style", "few" if sampler.guidance == 1.0 else "multi"),
            guidance=sampler.guidance,
            held_out=report.held_out,
            diversity=report.layout_diversity,
            seconds_per_image=seconds,
        )
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            report.write_jsonl(folder / "results.jsonl")
            for i in self.shown_rows():
                file = folder / f"{i:05}.png"
                to_pil(pixels[i : i + 1])[0].save(file)
                row.samples.append(
                    {
                        "prompt": self.captions[i]["prompt"],
                        "file": f"{folder.name}/{file.name}",
                        "correct": report.rows[i].correct,
                    }
                )
        return row

    def shown_rows(self) -> Sequence[int]:
        """Evenly spread over the tasks, the same for every model."""
        count = len(self.captions)
        return [i * count // self.shown for i in range(min(self.shown, count))]
