"""What is wrong with the wrong pictures of a ShapeWorld model, and how much noise its autoencoder bears.

    python benchmarks/shapeworld_failures.py runs/shapeworld_twinflow/pipeline --nfe 1,8 \
        --json benchmarks/results/shapeworld_failures.json

Of each wrong picture: whether a named shape is missing in every colour, is there in another colour alone, or is there
with a wrong count or place; and whether an object's colour is blended. Then true scenes of the same captions, encoded,
disturbed by normal noise in the latents, whose deviation is 1, and decoded: the share of them that are still right.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twinflow import AnyStepPipeline
from twinflow.data.shapeworld import draw_scene, render
from twinflow.evaluation.detector import ShapeDetector
from twinflow.evaluation.pictures import to_pixels
from twinflow.evaluation.protocols import run_facts
from twinflow.evaluation.shapeworld import ImageResult, Report, score_images
from twinflow.evaluation.shapeworld_benchmark import ShapeWorldBenchmark

NOISE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
BATCH = 100


def scored(benchmark: ShapeWorldBenchmark, pixels: Tensor) -> Report:
    names = [picture.file for picture in benchmark.pictures]
    detector = ShapeDetector(benchmark.level)
    return score_images(pixels, benchmark.captions, benchmark.level, detector=detector, filenames=names)


def drawn(pipe: AnyStepPipeline, benchmark: ShapeWorldBenchmark, nfe: int) -> Tensor:
    images: list[Any] = []
    for start in range(0, len(benchmark.pictures), BATCH):
        part = benchmark.pictures[start : start + BATCH]
        images += pipe([p.prompt for p in part], nfe=nfe, seeds=[p.seed for p in part]).images
    return torch.stack([to_pixels(image) for image in images])


def failure(row: ImageResult, caption: Any) -> str:
    """The first of what is wrong with a picture."""
    found = {detection.class_name for detection in row.detections}
    wanted = caption["include"]
    if any(need["class"] not in found for need in wanted):
        return "a named shape is missing"
    colours = {(d.class_name, d.color) for d in row.detections}
    if any("color" in need and (need["class"], need["color"]) not in colours for need in wanted):
        return "it is there in another colour alone"
    return "count or place"


def failures(report: Report, captions: list[Any]) -> dict[str, Any]:
    wrong = [(row, caption) for row, caption in zip(report.rows, captions, strict=True) if not row.correct]
    return {
        "pictures": len(report.rows),
        "wrong": len(wrong),
        "why": dict(Counter(failure(row, caption) for row, caption in wrong)),
        "wrong_with_a_blended_colour": sum(any(not d.clear for d in row.detections) for row, _ in wrong),
    }


@torch.no_grad()
def tolerance(pipe: AnyStepPipeline, benchmark: ShapeWorldBenchmark) -> dict[str, float]:
    rng, generator = np.random.default_rng(5), torch.Generator().manual_seed(0)
    scenes = [render(draw_scene(c, rng, benchmark.level), benchmark.level) for c in benchmark.captions]
    latents = pipe.encode_images(torch.stack([torch.from_numpy(s).permute(2, 0, 1) * 2 - 1 for s in scenes]))
    rights = {}
    for deviation in NOISE:
        noise = torch.randn(latents.shape, generator=generator)
        report = scored(benchmark, pipe.decode(latents + deviation * noise).clamp(-1, 1))
        rights[str(deviation)] = round(sum(row.correct for row in report.rows) / len(report.rows), 4)
    return rights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--nfe", default="1,8")
    parser.add_argument("--images-per-task", type=int, default=50)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    benchmark = ShapeWorldBenchmark("tiny", images_per_task=args.images_per_task)
    pipe = AnyStepPipeline.from_pretrained(args.model)
    record: dict[str, Any] = {"right_after_noise": tolerance(pipe, benchmark), "by_nfe": {}}
    for nfe in map(int, args.nfe.split(",")):
        report = scored(benchmark, drawn(pipe, benchmark, nfe))
        record["by_nfe"][str(nfe)] = failures(report, benchmark.captions)
    print(json.dumps(record, indent=1))
    if args.json:
        args.json.write_text(json.dumps(record | run_facts(), indent=1) + "\n")


if __name__ == "__main__":
    main()
