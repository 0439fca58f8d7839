"""How good would one-step samples of ShapeWorld be if each could follow its own Delta_v?

    python benchmarks/rectified_samples.py runs/shapeworld_twinflow/pipeline \
        --json benchmarks/results/rectified_samples.json

L_rectify (eq. 9 of arXiv 2512.05150) moves the network that draws the samples, and so all of them at once. Here the
network stands still, and the samples x_hat themselves go down the same gradient, by steps of ``--size``:

    x_hat <- x_hat - size Delta_v,   Delta_v = F_real(x', t', t') - F(x', -t', -t'),   x' = t' z' + (1 - t') x_hat

with fresh z' in each step and t' uniform in a range. F_real is the model's own field, or the base's, guided. What it
says: which t' are worth something, and how much is lost in the network and not in Delta_v.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from shapeworld_failures import scored
from torch import Tensor

from twinflow import AnyStepPipeline
from twinflow.evaluation.protocols import run_facts
from twinflow.evaluation.shapeworld_benchmark import ShapeWorldBenchmark
from twinflow.flow import data_estimate, interpolate
from twinflow.sampling import seeded_noise

RANGES = (
    (0.15, 0.15),
    (0.3, 0.3),
    (0.45, 0.45),
    (0.6, 0.6),
    (0.75, 0.75),
    (0.9, 0.9),
    (0.02, 1.0),
    (0.1, 0.6),
)


class Samples:
    """The one-step samples of a model for a benchmark's prompts and seeds, and the two fields at them."""

    def __init__(
        self, model: AnyStepPipeline, base: AnyStepPipeline, benchmark: ShapeWorldBenchmark, scale: float
    ):
        self.model, self.base, self.benchmark, self.scale = model, base, benchmark, scale
        prompts = [picture.prompt for picture in benchmark.pictures]
        self.cond, self.uncond = model.encode_prompts(prompts), model.encode_prompts([""] * len(prompts))
        z = seeded_noise(model.latent_shape, seeds=[picture.seed for picture in benchmark.pictures])
        one = torch.ones(len(prompts))
        self.drawn = data_estimate(z, model.field(z, one, 0 * one, self.cond), one)

    def score(self, x: Tensor) -> float:
        return scored(self.benchmark, self.model.decode(x).clamp(-1, 1)).official.overall

    def real(self, x_t: Tensor, t: Tensor, *, by_base: bool) -> Tensor:
        if not by_base:
            return self.model.field(x_t, t, t, self.cond)
        uncond = self.base.field(x_t, t, t, self.uncond)
        return uncond + self.scale * (self.base.field(x_t, t, t, self.cond) - uncond)

    def moved(self, low: float, high: float, *, by_base: bool, steps: int, size: float) -> Tensor:
        random, x = torch.Generator().manual_seed(1), self.drawn
        for _ in range(steps):
            t = low + (high - low) * torch.rand(len(x), generator=random)
            x_t = interpolate(x, torch.randn(x.shape, generator=random), t)
            fake = self.model.field(x_t, -t, -t, self.cond)
            x = x - size * (self.real(x_t, t, by_base=by_base) - fake)
        return x


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--base", default="shapeworld-tiny")
    parser.add_argument("--scale", type=float, default=2.5, help="of the base's guidance")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--size", type=float, default=0.15)
    parser.add_argument("--images-per-task", type=int, default=50)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    benchmark = ShapeWorldBenchmark("tiny", images_per_task=args.images_per_task)
    model, base = (AnyStepPipeline.from_pretrained(path) for path in (args.model, args.base))
    samples = Samples(model, base, benchmark, args.scale)
    record: dict[str, Any] = {
        "pictures": len(benchmark.pictures),
        "steps": args.steps,
        "size": args.size,
        "guidance_scale": args.scale,
        "drawn": samples.score(samples.drawn),
        "rows": [],
    }
    for by_base in (False, True):
        for low, high in RANGES:
            x = samples.moved(low, high, by_base=by_base, steps=args.steps, size=args.size)
            distance = float((x - samples.drawn).square().mean().sqrt())
            row = {
                "real": "base, guided" if by_base else "model",
                "times": [low, high],
                "score": samples.score(x),
            }
            record["rows"].append(row | {"moved_rms": distance})
            print(row | {"moved_rms": round(distance, 3)}, flush=True)
    if args.json:
        args.json.write_text(json.dumps(record | run_facts(), indent=1) + "\n")


if __name__ == "__main__":
    main()
