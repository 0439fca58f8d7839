"""What the methods of a comparison hold in memory: measured on the small model, planned for Qwen-Image 20B.

    python benchmarks/lab_memory.py

Measured: twelve real steps of each method on the embedded model, then what the trainer holds (an average to draw with
among it); of a finished comparison, --board takes its numbers instead.
Plans are calculated on fake tensors, in minutes on two CPU cores: nothing in them was measured on a GPU. The setting is
that of docs/scaling.md: 512 px, batch 4, checkpointing, 4-bit AdamW in backward, no average of weights to draw with.
Methods that are in the JSON already are not planned again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from twinflow.lab import load_lab
from twinflow.lab.memory import planned
from twinflow.lab.settings import Lab, Method
from twinflow.launch import build_trainer
from twinflow.planner import Backbone, Setup, gpu_named
from twinflow.recipes.sections import Ema, Optimizer

GiB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lab", type=Path, default=Path("recipes/lab_shapeworld.yaml"))
    parser.add_argument(
        "--board", type=Path, help="leaderboard.json of a finished comparison, for what was measured"
    )
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/lab_memory.json"))
    options = parser.parse_args()
    results: dict[str, Any] = {"planned": {}, "measured": {}}
    if options.json.is_file():
        results = json.loads(options.json.read_text())
    results |= {
        "command": " ".join(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "note": "planned: Qwen-Image 20B on one H100, calculated on fake tensors; measured: the embedded model",
    }
    lab = load_lab(options.lab)
    # And the smallest TwinFlow, whose teacher is the student itself, which docs/scaling.md compares with.
    smallest = Method(objective={"name": "twinflow", "teacher": "self", "guidance": 0.6})
    lab = lab.model_copy(update={"methods": {"twinflow_self": smallest, **lab.methods}})
    if options.board is not None:
        for standing in json.loads(options.board.read_text())["standings"]:
            results["measured"][standing["method"]] = standing["holdings"]
    else:
        for name in lab.methods:
            if name not in results["measured"]:
                results["measured"][name] = measure(lab, name)
                options.json.write_text(json.dumps(results, indent=1) + "\n")
                print(f"{name}: {results['measured'][name]}", flush=True)
    wanted = {name: method for name, method in lab.methods.items() if name not in results["planned"]}
    backbone = Backbone.published("qwen-image")
    setup = Setup(
        batch=4,
        steps=10_000,
        optimizer=Optimizer(name="adamw4bit", in_backward=True, clip=None),
        ema=Ema(decay=0),
        checkpointing=True,
        text_tokens=backbone.text_tokens,
    )
    for row in planned(lab.model_copy(update={"methods": wanted}), backbone, setup, gpu_named("h100-80")):
        results["planned"][row.method] = asdict(row)
        options.json.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{row.method}: {row.copies:.2f} copies, peak {row.peak / GiB:.1f} GiB", flush=True)
    options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results, list(lab.methods)))


def measure(lab: Lab, method: str) -> dict[str, int]:
    """What a run of ``method`` holds after enough steps for all of its networks to have been trained."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = lab.recipe(method, seed=0, steps=12, folder=Path(folder) / "run")
        update: dict[str, Any] = {"train": recipe.train.model_copy(update={"batch": 2})}
        update |= {"data": recipe.data.model_copy(update={"length": 4, "encode_batch": 4})}
        trainer = build_trainer(recipe.model_copy(update=update))
        trainer.run()
        return asdict(trainer.holdings())


def table(results: dict[str, Any], methods: list[str]) -> str:
    """The table of docs/lab.md."""
    lines = [
        "| method | trained | frozen | states | at 20 B: copies | weights | states | peak |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    peaks = {name: plan["peak"] for name, plan in results["planned"].items()}
    for name in sorted(methods, key=lambda name: peaks.get(name, 0)):
        held, plan = results["measured"].get(name), results["planned"].get(name)
        left = ["–"] * 3
        if held is not None:
            left = [f"{held['trained'] / 1e6:.2f} M", f"{held['frozen'] / 1e6:.2f} M"]
            left.append(f"{held['optimizer_bytes'] / 1e6:.1f} MB")
        right = ["–"] * 4
        if plan is not None:
            mark = " or more" if plan["forward_mode"] else ""
            right = [f"{plan['copies']:.2f}", f"{plan['parameter_bytes'] / GiB:.1f} GiB"]
            right += [f"{plan['optimizer_bytes'] / GiB:.1f} GiB", f"{plan['peak'] / GiB:.1f} GiB{mark}"]
        lines.append(f"| `{name}` | {' | '.join([*left, *right])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
