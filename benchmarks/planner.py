"""What ``twinflow plan`` says of published models, and the rungs of Qwen-Image 20B; written to a JSON.

    python benchmarks/planner.py --json benchmarks/results/planner.json

Calculated on fake tensors, in minutes on two CPU cores: nothing in here was measured on a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from twinflow.objectives import TwinFlow
from twinflow.objectives.presets import preset
from twinflow.planner import Backbone, Plan, Planner, Setup, find_remedies, gpu_named
from twinflow.planner.comparison import compare
from twinflow.planner.plan import size
from twinflow.recipes.sections import Ema, Lora, Optimizer

QWEN = "qwen-image"
ADAFACTOR = Optimizer(name="adafactor", in_backward=True, clip=None)
FOUR = Optimizer(name="adamw4bit", in_backward=True, clip=None)
EIGHT = Optimizer(name="adamw8bit", in_backward=True, clip=None)
# Name, GPU, how many, changes.
RUNGS: tuple[tuple[str, str, int, dict[str, Any]], ...] = (
    (
        "NF4 and a LoRA of rank 16",
        "rtx4090-24",
        1,
        {"lora": Lora(), "quantize": "nf4", "optimizer": Optimizer()},
    ),
    ("LoRA of rank 16", "a6000-48", 1, {"lora": Lora(), "optimizer": Optimizer()}),
    ("Adafactor, offload", "a6000-48", 1, {"optimizer": ADAFACTOR, "offload": True}),
    ("4-bit AdamW", "h100-80", 1, {"optimizer": FOUR}),
    ("4-bit AdamW, offload, batch 16", "h100-80", 1, {"optimizer": FOUR, "offload": True, "batch": 16}),
    ("8-bit AdamW, frozen modulation", "h100-80", 1, {"optimizer": EIGHT, "freeze": ("*_mod.*",)}),
    ("8-bit AdamW", "h200-141", 1, {"optimizer": EIGHT}),
    ("8-bit AdamW, bf16 average", "h200-141", 1, {"optimizer": EIGHT, "ema": Ema()}),
    ("FSDP2, 8-bit AdamW, clip", "h100-80", 8, {"optimizer": Optimizer(name="adamw8bit")}),
    (
        "FSDP2, fp32 weights under autocast, AdamW, clip",
        "h100-80",
        8,
        {"optimizer": Optimizer(), "dtype": "fp32", "autocast": True},
    ),
)
MODELS = ("sana-1.6b", "sd3.5-medium", "z-image", "wan2.1-14b")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/planner.json"))
    parser.add_argument("--models", nargs="*", default=[QWEN, *MODELS])
    options = parser.parse_args()
    results: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "note": "calculated on fake tensors; no GPU was used",
        "rungs": [],
        "models": [],
    }
    for name in options.models:
        backbone = Backbone.published(name)
        planner = Planner(backbone, TwinFlow(**preset("twinflow", "paper_qwen")))
        start = Setup(
            batch=4 if name != "wan2.1-14b" else 1,
            steps=10_000,
            ema=Ema(decay=0),
            checkpointing=True,
            height=backbone.size,
            width=backbone.size,
            frames=backbone.frames,
            text_tokens=backbone.text_tokens,
        )
        if name == QWEN:
            for rung, gpu, gpus, changes in RUNGS:
                for pixels in (512, 1024):
                    setup = replace(start, height=pixels, width=pixels, **changes)
                    plan = timed(planner, setup, gpu, gpus)
                    results["rungs"].append({"rung": rung, **plan.to_json(), "compared": rows(planner, plan)})
                    show(f"{rung} at {pixels}", plan)
                    options.json.write_text(json.dumps(results, indent=1) + "\n")
        plan = timed(planner, start, "h100-80", 1)
        entry = {**plan.to_json(), "compared": rows(planner, plan), "remedies": []}
        if not plan.fits:
            for tried in find_remedies(planner, plan):
                entry["remedies"].append({"change": tried.remedy.overrides, **tried.plan.to_json()})
                show(f"  with {tried.remedy.overrides}", tried.plan)
        results["models"].append(entry)
        show(name, plan)
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def timed(planner: Planner, setup: Setup, gpu: str, gpus: int) -> Plan:
    started = time.process_time()
    plan = planner.plan(setup, gpu_named(gpu), gpus)
    print(f"({time.process_time() - started:.1f} s of CPU time)", end=" ")
    return plan


def rows(planner: Planner, plan: Plan) -> list[dict[str, Any]]:
    return [row.__dict__ for row in compare(planner, plan)]


def show(name: str, plan: Plan) -> None:
    fits = "fits" if plan.fits else "does not fit"
    print(
        f"{name}: {plan.gpus} x {plan.gpu.name}, peak {size(plan.peak)}, {fits}, host {size(plan.host)}, "
        f"floor {plan.step_seconds:.3g} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
