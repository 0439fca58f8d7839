"""Handwritten digits: Fréchet distance in pixel space between samples and the data, base and one-step model.

    twinflow train recipes/digits_vae.yaml && twinflow train recipes/digits_base.yaml
    twinflow train recipes/digits_twinflow.yaml
    python benchmarks/digits.py --json benchmarks/results/digits.json

Pixels are grey in [-1, 1]; 1,000 samples with the labels of the data in turn, against all 1,797 scans. The
distance between two random halves of the data and that of the autoencoder's reconstructions say what is small.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from twinflow.data.digits import DigitsDataset
from twinflow.evaluation.frechet import frechet_distance, image_statistics
from twinflow.evaluation.models import load_model
from twinflow.evaluation.protocols import run_facts
from twinflow.pipelines import AnyStepPipeline

SAMPLES = 1000


def grey(pixels: Tensor) -> Tensor:
    return pixels.mean(1, keepdim=True)


def draw(pipe: AnyStepPipeline, prompts: list[str], nfe: int, style: str, seed: int) -> Tensor:
    seeds = [seed * 1_000_003 + i for i in range(len(prompts))]
    return grey(pipe(prompts, nfe=nfe, seeds=seeds, style=style).pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="runs/digits_base/pipeline")
    parser.add_argument("--trained", default="runs/digits_twinflow/pipeline")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    data = DigitsDataset(channels=3)
    scans = torch.stack([data[i]["pixels"] for i in range(len(data))])
    prompts = [data[i]["caption"] for i in range(SAMPLES)]
    reference = image_statistics([grey(scans)])
    shuffled = scans[torch.randperm(len(scans), generator=torch.Generator().manual_seed(args.seed))]
    halves = [image_statistics([grey(half)]) for half in shuffled.chunk(2)]

    def distance(pixels: Tensor) -> float:
        return frechet_distance(image_statistics([pixels]), reference)

    base, trained = load_model(args.base), load_model(args.trained)
    rows = {
        "two halves of the data": frechet_distance(*halves),
        "autoencoder": distance(grey(base.decode(base.encode_images(scans)))),
        "base, 1 step": distance(draw(base, prompts, 1, "multi", args.seed)),
        "base, 50 steps": distance(draw(base, prompts, 50, "multi", args.seed)),
        "twinflow, 1 step": distance(draw(trained, prompts, 1, "few", args.seed)),
        "twinflow, 2 steps": distance(draw(trained, prompts, 2, "few", args.seed)),
        "twinflow, 4 steps, any": distance(draw(trained, prompts, 4, "any", args.seed)),
    }
    for name, value in rows.items():
        print(f"{name:26s} {value:7.3f}")
    if args.json:
        record = {"frechet_distance": rows, "samples": SAMPLES, "seed": args.seed, **run_facts()}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
