"""How good would one-step samples of ShapeWorld be if each could follow its own Delta_v?

    python benchmarks/rectified_samples.py runs/shapeworld_twinflow/pipeline \
        --json benchmarks/results/rectified_samples.json

L_rectify (eq. 9 of arXiv 2512.05150) moves the network that draws the samples, and so all of them at once. Here the
network stands still, and the samples x_hat themselves go down the same gradient, by steps of ``--size``:

    x_hat <- x_hat - size Delta_v,   Delta_v = F_real(x', t', t') - F(x', -t', -t'),   x' = t' z' + (1 - t') x_hat

with fresh z' in each step and t' uniform in a range. F_real is the model's own field, or the base's, guided. What it
says: which t' are worth something, and how much is lost in the network and not in Delta_v. Then the network follows,
with both fields as they were: ``--network-steps`` of Adam on eq. 9 alone, t' in the last range; its average draws.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from shapeworld_failures import scored
from torch import Generator, Tensor

from twinflow import AnyStepPipeline
from twinflow.conditions import concat_rows, take_rows
from twinflow.data.shapeworld import ShapeWorldDataset
from twinflow.evaluation.protocols import run_facts
from twinflow.evaluation.shapeworld_benchmark import ShapeWorldBenchmark
from twinflow.flow import data_estimate, interpolate
from twinflow.objectives.losses import barron, rms
from twinflow.sampling import seeded_noise
from twinflow.training.ema import ParameterAverage

EARLY = (0.1, 0.6)
RANGES = (*((t, t) for t in (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)), (0.02, 1.0), EARLY)
BATCH, LR, AVERAGE, CAPTIONS = 64, 5e-5, 0.95, 3000


class Fields:
    """The two fields of Delta_v. They stand still; ``real`` is "model" or "base"."""

    def __init__(self, model: AnyStepPipeline, base: AnyStepPipeline, *, scale: float) -> None:
        self.model, self.base, self.scale = model, base, scale
        self.nothing = model.encode_prompts([""])

    @torch.no_grad()
    def delta_v(
        self, x: Tensor, cond: Any, times: tuple[float, float], real: str, random: Generator
    ) -> Tensor:
        """Delta_v of samples ``x`` (B, …), re-noised once."""
        low, high = times
        t = low + (high - low) * torch.rand(len(x), generator=random)
        x_t = interpolate(x, torch.randn(x.shape, generator=random), t)
        if real == "model":
            v = self.model.field(x_t, t, t, cond)
        else:
            v_0 = self.base.field(x_t, t, t, take_rows(self.nothing, torch.zeros(len(x), dtype=torch.long)))
            v = v_0 + self.scale * (self.base.field(x_t, t, t, cond) - v_0)
        return v - self.model.field(x_t, -t, -t, cond)


def draw(pipe: AnyStepPipeline, z: Tensor, cond: Any) -> Tensor:
    one = torch.ones(len(z))
    return data_estimate(z, pipe.field(z, one, 0 * one, cond), one)


def samples_follow(
    fields: Fields, x: Tensor, cond: Any, times: tuple[float, float], real: str, *, steps: int, size: float
) -> Tensor:
    random = Generator().manual_seed(1)
    for _ in range(steps):
        x = x - size * fields.delta_v(x, cond, times, real, random)
    return x


def network_follows(fields: Fields, student: AnyStepPipeline, real: str, *, steps: int) -> None:
    """Give ``student`` the average of its weights over ``steps`` of eq. 9."""
    random = Generator().manual_seed(2)
    data = ShapeWorldDataset("tiny", length=CAPTIONS, seed=77)
    captions = [data[i]["caption"] for i in range(CAPTIONS)]
    parts = range(0, CAPTIONS, 200)
    cond = concat_rows([fields.model.encode_prompts(captions[i : i + 200]) for i in parts])
    weights, average = list(student.network.parameters()), ParameterAverage(student.network, decay=AVERAGE)
    optimizer = torch.optim.AdamW(weights, lr=LR, betas=(0.9, 0.95), weight_decay=0)
    for _ in range(steps):
        rows = take_rows(cond, torch.randint(CAPTIONS, (BATCH,), generator=random))
        z = torch.randn(BATCH, *student.latent_shape, generator=random)
        one = torch.ones(BATCH)
        jump = student.field(z, one, 0 * one, rows)
        delta_v = fields.delta_v(data_estimate(z, jump.detach(), one), rows, EARLY, real, random)
        optimizer.zero_grad()
        barron(jump, jump.detach() + delta_v, c=0.5).mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        average.update()
    average.swap()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--base", default="shapeworld-tiny")
    parser.add_argument("--scale", type=float, default=2.5, help="of the base's guidance")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--size", type=float, default=0.15)
    parser.add_argument("--network-steps", type=int, nargs="*", default=[25, 100])
    parser.add_argument("--images-per-task", type=int, default=50)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    benchmark = ShapeWorldBenchmark("tiny", images_per_task=args.images_per_task)
    model, base = (AnyStepPipeline.from_pretrained(path) for path in (args.model, args.base))
    fields = Fields(model, base, scale=args.scale)
    cond = model.encode_prompts([picture.prompt for picture in benchmark.pictures])
    z = seeded_noise(model.latent_shape, seeds=[picture.seed for picture in benchmark.pictures])
    rows: list[dict[str, Any]] = []

    @torch.no_grad()
    def note(x: Tensor, real: str, times: tuple[float, float], **how: int) -> None:
        random = Generator().manual_seed(3)
        row = {
            "real": real,
            "times": list(times),
            **how,
            "score": scored(benchmark, model.decode(x).clamp(-1, 1)).official.overall,
            "moved_rms": float(rms(x - drawn)),
            "delta_v_rms": float(rms(fields.delta_v(x, cond, times, real, random))),
        }
        rows.append(row)
        print(
            {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()},
            flush=True,
        )

    with torch.no_grad():
        drawn = draw(model, z, cond)
    for real in ("model", "base"):
        for times in RANGES:
            note(drawn, real, times)
            x = samples_follow(fields, drawn, cond, times, real, steps=args.steps, size=args.size)
            note(x, real, times, sample_steps=args.steps)
        for steps in args.network_steps:
            student = AnyStepPipeline.from_pretrained(args.model)
            network_follows(fields, student, real, steps=steps)
            with torch.no_grad():
                x = draw(student, z, cond)
            note(x, real, EARLY, network_steps=steps)
    if args.json:
        record = {
            "pictures": len(benchmark.pictures),
            "size": args.size,
            "guidance_scale": args.scale,
            "rows": rows,
        }
        args.json.write_text(json.dumps(record | run_facts(), indent=1) + "\n")


if __name__ == "__main__":
    main()
