"""Why Stable Diffusion 3 has no slim export: how much its modulation depends on the prompt once the time is fixed.

    python benchmarks/slim_sd3.py

At t = 1, r = 0 a modulation of SD3 is ``W silu(e + T(pooled)) + b`` with the time's embedding ``e`` a constant, but not
the prompt's ``T(pooled)``. Measured on the embedded model, over all captions of its level: how far modulations are from
their mean, the rank of what they see, and what a mean in their place does to the one-step data estimate. Counted on the
published configurations, without weights: the share of the modulation, and what could go exactly, which is the time MLP
(into a bias of ``T``) and what the last block computes in vain. Writes benchmarks/results/slim_sd3.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from twinflow.data.shapeworld import TASKS, all_captions
from twinflow.evaluation.protocols import run_facts
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.slim import replace_by_constants
from twinflow.sampling import sample, seeded_noise

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/slim_sd3.json"
PUBLISHED = json.loads((ROOT / "src/twinflow/planner/published.json").read_text())
MODELS = ("sd3.5-medium", "sd3.5-large")
DRAWN = 64  # pictures whose data estimate is compared
IN_VAIN = ("attn.add_q_proj", "attn.norm_added_q")  # of the last block, see AnyStepPipeline.freeze_unused


def modulations(transformer: nn.Module) -> dict[str, nn.Linear]:
    """The Linears that see time and pooled text alone."""
    return {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear"))
    }  # fmt: skip


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def on_prompts(pipe: AnyStepPipeline, prompts: list[str]) -> dict[str, Any]:
    layers = modulations(pipe.pipe.transformer)
    given: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            given[name], made[name] = args[0], output

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    cond = pipe.encode_prompts(prompts)
    ones = torch.ones(len(prompts))
    noise = seeded_noise(pipe.latent_shape, range(len(prompts)))
    pipe.field(noise, ones, torch.zeros_like(ones), cond)
    for handle in handles:
        handle.remove()
    means = {name: output.mean(0, keepdim=True) for name, output in made.items()}
    spread = {name: float((made[name] - means[name]).norm() / made[name].norm()) for name in made}
    seen = next(iter(given.values())).double()
    values = torch.linalg.svdvals(seen)
    some = cond.take(torch.arange(0, len(prompts), max(1, len(prompts) // DRAWN))[:DRAWN])
    start = noise[: len(some)]
    own = sample(pipe.field, start, some, nfe=1)
    replace_by_constants(pipe.pipe.transformer, means)
    off = sample(pipe.field, start, some, nfe=1) - own
    return {
        "prompts": len(prompts),
        "relative_spread": {"smallest": min(spread.values()), "largest": max(spread.values())},
        "rank_of_inputs": int((values > 1e-6 * values[0]).sum()),
        "width": seen.shape[1],
        "data_estimate_by_the_mean": float(off.norm() / own.norm()),
    }


def count(name: str) -> dict[str, int]:
    with torch.device("meta"):
        transformer: Any = diffusers.SD3Transformer2DModel(**PUBLISHED[name]["config"])
    last = transformer.transformer_blocks[-1]
    return {
        "parameters": parameters(transformer),
        "modulation": sum(map(parameters, modulations(transformer).values())),
        "removable_exactly": parameters(transformer.time_text_embed.timestep_embedder)
        + sum(parameters(last.get_submodule(path)) for path in IN_VAIN),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    pipe = AnyStepPipeline.from_pretrained("shapeworld-tiny")
    prompts = sorted({caption["prompt"] for task in TASKS for caption in all_captions("tiny", task)})
    record = {
        **run_facts(),
        "shapeworld": on_prompts(pipe, prompts),
        "published": {n: count(n) for n in MODELS},
    }
    args.json.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
