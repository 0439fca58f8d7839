"""Where a one-step model of ShapeWorld loses: the distance of K jumps from the same noise to 32.

    python benchmarks/jump_errors.py run=runs/shapeworld_twinflow/pipeline --json benchmarks/results/jump_errors.json

Root mean square over latents (standard deviation about 1) of 128 captions. "jumps" are F(x_t, t, r) of length 1 / K,
"field" are Euler steps along F(x_t, t, t). Two more columns compare both, at 32, with the base's own guided flow of 50
steps: a trained field that is far from it has not learnt its guidance.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinflow.data.shapeworld import ShapeWorldDataset
from twinflow.evaluation.models import load_model
from twinflow.evaluation.protocols import run_facts
from twinflow.evaluation.samplers import BASE_GUIDANCE
from twinflow.pipelines import AnyStepPipeline
from twinflow.sampling import seeded_noise

COUNTS, MOST, FLOW_STEPS, CAPTIONS = (1, 2, 4, 8, 16), 32, 50, 128


@torch.no_grad()
def endpoint(pipe: AnyStepPipeline, z: Tensor, cond: Any, count: int, *, jumps: bool) -> Tensor:
    """Latents (N, …) after ``count`` equal pieces from noise ``z``."""
    x, one = z, torch.ones(len(z))
    for k in range(count):
        t, r = one * (1 - k / count), one * (1 - (k + 1) / count)
        x = x - pipe.field(x, t, r if jumps else t, cond) / count
    return x


@torch.no_grad()
def guided_flow(base: AnyStepPipeline, z: Tensor, cond: Any, uncond: Any) -> Tensor:
    x, one = z, torch.ones(len(z))
    for k in range(FLOW_STEPS):
        t = one * (1 - k / FLOW_STEPS)
        v, v_0 = base.field(x, t, t, cond), base.field(x, t, t, uncond)
        x = x - (v_0 + BASE_GUIDANCE * (v - v_0)) / FLOW_STEPS
    return x


def rms(difference: Tensor) -> float:
    return round(float(difference.square().mean().sqrt()), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="NAME=PIPELINE")
    parser.add_argument("--base", default="shapeworld-tiny")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    data = ShapeWorldDataset("tiny", length=CAPTIONS, seed=977)
    captions = [data[i]["caption"] for i in range(CAPTIONS)]
    base = load_model(args.base)
    z = seeded_noise(base.latent_shape, seeds=list(range(CAPTIONS)))
    flow = guided_flow(base, z, base.encode_prompts(captions), base.encode_prompts([""] * CAPTIONS))
    rows = []
    for named in args.models:
        name, _, path = named.partition("=")
        pipe = load_model(path)
        cond = pipe.encode_prompts(captions)
        for kind, jumps in (("jumps", True), ("field", False)):
            last = endpoint(pipe, z, cond, MOST, jumps=jumps)
            row: dict[str, Any] = {"model": name, "kind": kind}
            row |= {str(k): rms(endpoint(pipe, z, cond, k, jumps=jumps) - last) for k in COUNTS}
            row["32 to the base's guided flow"] = rms(last - flow)
            rows.append(row)
            print(row, flush=True)
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "captions": CAPTIONS, **run_facts()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
