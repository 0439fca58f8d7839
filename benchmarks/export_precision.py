"""How much of the difference between the trainer's pictures and an export's is rounding: the same in fp32 and in fp64.

    twinflow train recipes/shapeworld_twinflow.yaml        # any checkpoint of it will do
    python benchmarks/export_precision.py --model runs/shapeworld_twinflow/pipeline

Final latents of sixteen prompts at 1, 2 and 4 steps: by the trainer's sampling, with the model's equal padding tokens
computed once (as it trains) and all of them (as stock code does), and by the stock pipeline that an export is, in this
process. In fp64 all networks are; states stay in fp32, as the noise is. Writes
benchmarks/results/export_precision.json:
largest differences, what one unit in the last place of every weight does, and how far the trainer's pictures are from
its own of the same seeds and noise, drawn one at a time: a matrix product of one picture's rows is a sum in another
order than one of sixteen's. The same for the time's embeddings.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinflow.data.shapeworld import evaluation_suite
from twinflow.evaluation.protocols import run_facts
from twinflow.export.diffusers_folder import baked_stock
from twinflow.export.stock import recommended_call, run_steps
from twinflow.pipelines import AnyStepPipeline
from twinflow.sampling import seeded_noise

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/export_precision.json"
STEPS, COUNT, RENOISE_SEED = (1, 2, 4), 16, 7
DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


def opened(model: str, *, folded: bool, dtype: torch.dtype) -> AnyStepPipeline:
    pipe = AnyStepPipeline.from_pretrained(model, fold_padding=folded)
    pipe.pipe.to(dtype)
    return pipe


def trainers(pipe: AnyStepPipeline, prompts: list[str], nfe: int) -> Tensor:
    generator = torch.Generator().manual_seed(RENOISE_SEED)
    return pipe(
        prompts, nfe=nfe, seeds=range(len(prompts)), generator=generator, output_type="latent"
    ).latents


def stock(
    pipe: AnyStepPipeline, prompts: list[str], nfe: int, *, embeddings: list[Tensor] | None = None
) -> Tensor:
    """``embeddings``: of the time, one a step, in the place of the folded layers' own."""
    exported, _ = baked_stock(pipe, nfe=nfe)
    if embeddings is not None:
        given = iter(embeddings)
        mlp = exported.transformer.get_submodule(pipe.adapter.wiring.time_path.mlp)
        mlp.register_forward_hook(lambda *_: next(given))
    exported.set_progress_bar_config(disable=True)
    latents = seeded_noise(pipe.latent_shape, range(len(prompts))).to(pipe.pipe.transformer.dtype)
    torch.manual_seed(RENOISE_SEED)
    call = recommended_call(pipe) | {"num_inference_steps": nfe, "output_type": "latent"}
    return exported(prompts, latents=latents, **call).images


def another_batch(pipe: AnyStepPipeline, prompts: list[str], nfe: int) -> float:
    """Largest difference of latents drawn one at a time from the same drawn together."""
    together, alone = (
        pipe(prompts, nfe=nfe, seeds=range(len(prompts)), batch_size=size, output_type="latent").latents
        for size in (len(prompts), 1)
    )
    return float((together - alone).abs().max())


def time_embeddings(pipe: AnyStepPipeline, transformer: Any, run: Callable[[], Tensor]) -> list[Tensor]:
    """What the time MLP of ``transformer`` gives in each step of ``run``, a row for each picture."""
    seen: list[Tensor] = []
    mlp = transformer.get_submodule(pipe.adapter.wiring.time_path.mlp)
    handle = mlp.register_forward_hook(lambda module, args, output: seen.append(output.detach().clone()))
    run()
    handle.remove()
    return seen


def embeddings(pipe: AnyStepPipeline, prompts: list[str], nfe: int) -> dict[str, float]:
    """Largest differences of time embeddings, branch and fold, and of one picture and sixteen; and of latents where
    stock code is given the branch's.
    """

    def branch(rows: int) -> list[Tensor]:
        return time_embeddings(pipe, pipe.pipe.transformer, lambda: trainers(pipe, prompts[:rows], nfe))

    ours, alone = branch(COUNT), branch(1)
    exported, _ = baked_stock(pipe, nfe=nfe)
    folded = time_embeddings(pipe, exported.transformer, lambda: run_steps(pipe, exported, prompts, nfe=nfe))
    same = trainers(pipe, prompts, nfe) - stock(pipe, prompts, nfe, embeddings=ours)

    def largest(one: list[Tensor], other: list[Tensor]) -> float:
        return max(float((a[:1] - b[:1]).abs().max()) for a, b in zip(one, other, strict=True))

    return {
        "largest": max(float(value.abs().max()) for value in ours),
        "trainer_and_stock": largest(ours, folded),
        "one_picture_and_sixteen": largest(ours, alone),
        "latents_with_the_trainers": float(same.abs().max()),
    }


@torch.no_grad()
def one_unit_off(pipe: AnyStepPipeline) -> AnyStepPipeline:
    """Every weight of fp32 moved to a neighbour, up or down by chance, in place."""
    generator = torch.Generator().manual_seed(0)
    for weight in pipe.network.parameters():
        up = torch.rand(weight.shape, generator=generator) < 0.5
        ends = torch.where(up, torch.inf, -torch.inf).to(weight.dtype)
        weight.copy_(torch.nextafter(weight, ends))
    return pipe


def measure(model: str, prompts: list[str]) -> dict[str, Any]:
    pipes = {
        (folded, name): opened(model, folded=folded, dtype=dtype)
        for folded in (True, False)
        for name, dtype in DTYPES.items()
    }
    off = one_unit_off(opened(model, folded=False, dtype=torch.float32))
    rows = {}
    for nfe in STEPS:
        ours = {key: trainers(pipe, prompts, nfe).double() for key, pipe in pipes.items()}
        theirs = {name: stock(pipes[False, name], prompts, nfe).double() for name in DTYPES}

        def largest(one: Tensor, other: Tensor) -> float:
            return float((one - other).abs().max())

        row: dict[str, Any] = {
            name: {
                "trainer_and_stock": largest(ours[True, name], theirs[name]),
                "without_folding": largest(ours[False, name], theirs[name]),
            }
            for name in DTYPES
        }
        row["fp32_and_fp64"] = {
            "trainer": largest(ours[True, "fp32"], ours[True, "fp64"]),
            "without_folding": largest(ours[False, "fp32"], ours[False, "fp64"]),
            "stock": largest(theirs["fp32"], theirs["fp64"]),
        }
        row["fp32_one_at_a_time"] = {
            "trainer": another_batch(pipes[True, "fp32"], prompts, nfe),
            "without_folding": another_batch(pipes[False, "fp32"], prompts, nfe),
        }
        row["fp32_time_embedding"] = embeddings(pipes[False, "fp32"], prompts, nfe)
        row["weights_one_unit_off"] = largest(trainers(off, prompts, nfe).double(), ours[False, "fp32"])
        rows[str(nfe)] = row
        print(nfe, json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    suite = evaluation_suite("tiny")
    prompts = [caption["prompt"] for caption in suite[:: len(suite) // COUNT]][:COUNT]
    record = {**run_facts(), "prompts": prompts, "steps": measure(args.model, prompts)}
    args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
