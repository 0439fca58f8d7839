"""Full-parameter TwinFlow of a 20.4 B transformer on one 80 GB GPU: everything that was predicted, measured at once.

    python benchmarks/gpu_20b.py                        # all of it, in about ten minutes on an H100
    python benchmarks/gpu_20b.py --only adamw4bit_512   # one case
    python benchmarks/gpu_20b.py --tiny                 # a dry run of all on the CPU, with a small network

Nothing is downloaded: weights are random, and made on the GPU. Printed, and written to a JSON (but not by a dry run):
for each case the peak of what torch allocates, seconds a step and MFU, losses of a fixed batch, which have to fall
(those of TwinFlow, whose targets move with the weights, by the first update), and beside them what ``twinflow plan``
says and what was predicted for this project from simulations (``SIMULATED``). Our schedule of calls and the
reference's are measured in one run. At the end each claim is said to hold or not; the exit status is 1 if one does not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as the command does

import torch
from qwen20b import Case, measure
from qwen20b_drawing import latency

CASES = {
    "adamw4bit_512": Case(),
    "adamw4bit_1024": Case(size=1024),
    "adafactor_512": Case(optimizer="adafactor"),
    "adafactor_1024": Case(optimizer="adafactor", size=1024),
    "flow_matching_512": Case(),
    "adamw4bit_1024_compiled": Case(size=1024, compile=True),
}
BOTH = "adamw4bit_512"  # which is made by the reference's schedule too
FIXED = (
    "flow_matching_512"  # its targets do not move with the weights: its loss has to fall from step to step
)
LATENCY = "latency_1024"
# Made before for this project: a simulation of all storages of all 60 blocks (GiB), the floor of a step on an H100 at
# 790 TFLOP/s, and a step at the 365 TFLOP/s that stock kernels were said to reach. Of a call: floor, and eager.
SIMULATED: dict[str, dict[str, float]] = {
    "adamw4bit_512": {"allocated_gib": 61.2, "floor_seconds": 0.69, "stock_seconds": 1.5, "speed_up": 1.2},
    "adamw4bit_1024": {"allocated_gib": 67.6, "floor_seconds": 2.72, "stock_seconds": 5.9},
    "adafactor_512": {"allocated_gib": 41.0, "floor_seconds": 0.69, "stock_seconds": 1.5},
    "adafactor_1024": {},
    "flow_matching_512": {},
    "adamw4bit_1024_compiled": {},
    LATENCY: {"floor_seconds": 0.0893, "stock_seconds": 0.19},
}
PEAK_GIB, SPEED_UP = 76.0, 1.2  # the claims


def main() -> None:
    options = parse()
    device = torch.device("cpu" if options.tiny else "cuda")
    if not options.tiny and not torch.cuda.is_available():
        sys.exit("no CUDA device: --tiny makes a dry run on the CPU")
    results: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu, a small network",
        "cases": {},
    }
    for name in options.only:
        results["cases"][name] = run(name, options, device)
        show(name, results["cases"][name])
        results["claims"] = claims(results["cases"], gpu=device.type == "cuda")
        if options.json is not None:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    for claim, holds in results["claims"].items():
        print(f"{'holds' if holds else 'DOES NOT HOLD'}: {claim}")
    sys.exit(0 if all(results["claims"].values()) else 1)


def parse() -> argparse.Namespace:
    names = [*CASES, LATENCY]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="CASE")
    parser.add_argument(
        "--steps", type=int, default=5, help="the first two are not timed, the last is by phase"
    )
    parser.add_argument("--lr", type=float, default=2e-6)
    parser.add_argument("--freeze-modulation", action="store_true")
    parser.add_argument("--offload", action="store_true", help="block boundaries to pinned host memory")
    parser.add_argument("--no-checkpointing", action="store_true")
    parser.add_argument(
        "--compile", action="store_true", help="each block, in all cases; one graph serves all"
    )
    parser.add_argument("--layers", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--gpu", default="h100-80", help="for the prediction")
    parser.add_argument("--tiny", action="store_true", help="a small network on the CPU")
    parser.add_argument("--json", type=Path, help="by default results/gpu_20b.json, but of a dry run none")
    options = parser.parse_args()
    if options.steps < 2:  # found now, and not after them
        parser.error(f"--steps must be at least 2, to see whether the loss falls, got {options.steps}")
    if options.json is None and not options.tiny:
        options.json = Path(__file__).parent / "results" / "gpu_20b.json"
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    return options


def run(name: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """One case; what it raises (too little memory, say) is its result."""
    case = replace(
        CASES.get(name, Case(size=1024)),
        steps=options.steps,
        lr=options.lr if not options.tiny else 1e-3,
        freeze_modulation=options.freeze_modulation,
        offload=options.offload,
        checkpointing=not options.no_checkpointing,
        compile=options.compile or CASES.get(name, Case()).compile,
        layers=options.layers,
        batch=options.batch,
        gpu=options.gpu,
        tiny=options.tiny,
    )
    found: dict[str, Any] = {"simulated": SIMULATED[name]}
    try:
        if name == LATENCY:
            return found | latency(case, device, calls=3 if case.tiny else 10)
        if name == BOTH:
            found["reference"] = measure(case, "reference", device)
        found |= measure(case, "flow_matching" if name == FIXED else "twinflow", device)
        if name == BOTH:
            found["speed_up"] = found["reference"]["step_seconds"] / found["step_seconds"]
    except torch.cuda.OutOfMemoryError as error:
        found["error"] = str(error).splitlines()[0]
        torch.cuda.empty_cache()
    return found


def claims(cases: dict[str, Any], *, gpu: bool) -> dict[str, bool]:
    """What was said of these cases, and whether it is so; without a GPU what does not need one."""
    found: dict[str, bool] = {}
    for name, case in cases.items():
        if "error" in case:
            found[f"{name}: runs ({case['error']})"] = False
            continue
        if name == LATENCY:
            # A constant is the rounded output of a layer at this very time: what follows is the same.
            found[f"{name}: the slim network draws the same (off by {case['slim_difference']:.2g})"] = (
                case["slim_difference"] < 0.02
            )
            share = case["slim_parameters"] / case["parameters"]
            found[f"{name}: a slim export has {share:.0%} of the parameters"] = share < 0.72
            continue
        # TwinFlow's targets move with the weights: that its loss falls is said of an update, not of many.
        first, second, *others = case["losses"]
        last = (second, *others)[-1] if name == FIXED else second
        found[f"{name}: the loss falls, from {first:.5g} to {last:.5g}"] = last < first
        if gpu:
            peak = case["allocated_gib"]
            found[f"{name}: peak of {peak:.1f} GiB, at most {PEAK_GIB:.0f}"] = peak <= PEAK_GIB
            if "speed_up" in case:
                found[f"{name}: {case['speed_up']:.3f} times as fast as the reference's schedule"] = (
                    case["speed_up"] >= SPEED_UP
                )
    return found


def show(name: str, case: dict[str, Any]) -> None:
    """Measured, planned and simulated, beside each other."""
    print(f"{name}:", flush=True)
    for key, value in case.items():
        if not isinstance(value, dict | list):
            print(f"  {key}: {value:.5g}" if isinstance(value, float) else f"  {key}: {value}", flush=True)
    for key, value in case["simulated"].items():
        print(f"  simulated {key}: {value}", flush=True)


if __name__ == "__main__":
    main()
