"""Options that only a GPU shows, in short runs of the embedded model: do they train as the plain run does?

    python benchmarks/cuda_options.py            # some minutes on a GPU; half of it waits for the compiler
    python benchmarks/cuda_options.py --steps 4  # also without one: of the same options, on the host

Each option is set alone beside a run without it, from the same seed: averages on the host, activations
kept on the host, moments of 8 and of 4 bits, bf16 weights with extra bits, a LoRA over int8 weights, blocks compiled.
Printed, and written to a JSON: losses of the first and the last steps, how far weights end from those of the other run
(over how far these have moved; not of a LoRA, which is no whole network), peak of what torch allocates, and seconds of
the run with what it waits for the compiler. Where the two should be equal, the exit status is 1 if they are not.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from twinflow.assets import locate
from twinflow.config import load_recipe
from twinflow.evaluation.protocols import run_facts
from twinflow.launch import build_trainer

RECIPE = Path(__file__).parent.parent / "recipes" / "shapeworld_twinflow.yaml"
PLAIN = "plain"
BF16 = "model.dtype=bf16"
LORA = ["model.train=lora", "optimizer.lr=2.0e-3"]
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Option:
    """What is set, and the run that it is compared with, by name."""

    changes: list[str]
    beside: str = PLAIN
    within: float | None = None  # largest distance of the weights, in units of how far the other run has gone


OPTIONS = {
    PLAIN: Option([]),
    "again": Option([], within=1e-2),  # what the device itself does not repeat
    "averages on the host": Option(["ema.on_host=true"], within=1e-2),
    "activations on the host": Option(
        ["train.gradient_checkpointing=true", "train.offload=true"], within=1e-2
    ),
    "blocks compiled": Option(["train.compile=blocks"]),
    "moments of 8 bits": Option(["optimizer.name=adamw8bit"]),
    "moments of 4 bits": Option(["optimizer.name=adamw4bit"]),
    "bf16 weights, 16 extra bits": Option([BF16, "optimizer.extra_bits=16"]),
    "bf16 weights, 8 extra bits": Option([BF16, "optimizer.extra_bits=8"]),
    "LoRA": Option(LORA),
    "LoRA over int8 weights": Option([*LORA, "model.quantize=int8"], beside="LoRA"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--only", nargs="*", choices=list(OPTIONS), default=list(OPTIONS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    start = load_file(Path(locate("shapeworld-tiny")) / "transformer" / WEIGHTS)
    ends: dict[str, dict[str, torch.Tensor]] = {}
    rows: dict[str, Any] = {}
    holds = True
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            option = OPTIONS[name]
            output = Path(folder) / name.replace(" ", "_")
            rows[name] = measure(option, output, steps=args.steps, batch=args.batch)
            file = output / "pipeline" / "transformer" / WEIGHTS
            if file.is_file():
                ends[name] = load_file(file)
            if option.beside != name and name in ends and option.beside in ends:
                gap = apart(ends[name], ends[option.beside]) / apart(ends[option.beside], start)
                rows[name] |= {"beside": option.beside, "weights_apart": gap}
                if option.within is not None:
                    rows[name]["holds"] = gap <= option.within
                    holds = holds and gap <= option.within
            print(f"{name}: {rows[name]}", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(run_facts() | {"options": rows}, indent=1) + "\n")
    raise SystemExit(0 if holds else 1)


def measure(option: Option, output: Path, *, steps: int, batch: int) -> dict[str, Any]:
    """Train by ``option``; what is said of it."""
    recipe = load_recipe(
        RECIPE,
        [
            f"train.steps={steps}",
            f"train.batch={batch}",
            "data.cache=true",
            f"data.length={4 * batch}",
            "optimizer.warmup_steps=0",
            "log.every=1",
            "log.tensorboard=false",
            "preview.every=0",
            "checkpoint.every=0",
            f"output={output}",
            *option.changes,
        ],
    )
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    trainer = build_trainer(recipe)
    began = time.perf_counter()
    result = trainer.run()
    lines = [json.loads(line) for line in (result.output / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    part = max(1, len(losses) // 5)
    row: dict[str, Any] = {
        "changes": option.changes,
        "first_losses": losses[:3],
        "loss_of_the_first_fifth": sum(losses[:part]) / part,
        "loss_of_the_last_fifth": sum(losses[-part:]) / part,
        "seconds": time.perf_counter() - began,
    }
    if cuda:
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return row


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Distance of the weights that both have."""
    both = one.keys() & other.keys()
    return float(sum((one[name].double() - other[name].double()).pow(2).sum() for name in both) ** 0.5)


if __name__ == "__main__":
    main()
