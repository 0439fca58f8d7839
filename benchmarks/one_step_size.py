"""Does a larger network come nearer to its base in one step? Base and TwinFlow of one size, in minutes of a GPU.

    python benchmarks/one_step_size.py --layers 10 --width 256 --minutes 3 --runs runs/size

A base of that size is trained from random weights for so many minutes, then TwinFlow on it for as many, then both are
scored. The pipeline is the embedded one but for its transformer. A short run before each stage finds out how many steps
that is.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from deep_base import make

from twinflow.config import load_recipe
from twinflow.evaluation.protocols import run_facts
from twinflow.evaluation.runner import evaluate_models
from twinflow.launch import launch

RECIPES = Path(__file__).parent.parent / "recipes"
# Large batches of a network that a GPU has done before the host asks for more; AdamW, as Muon is many small kernels.
BASE = ["optimizer.name=adamw", "optimizer.lr=1.0e-3", "train.precision=bf16"]
ONE_STEP = ["optimizer.lr=5.0e-4", "ema.decay=0.99"]
COMMON = ["preview.every=0", "checkpoint.every=0", "log.tensorboard=false"]
PROBE, LATE = 60, 30  # steps of the short run, the last of which are timed: compiling is over by then


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--width", type=int, default=256, help="a multiple of 32, the width of a head")
    parser.add_argument("--minutes", type=float, default=3, help="of each of the two stages")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--compile", default="blocks", choices=["blocks", "true", "false"])
    parser.add_argument("--length", type=int, default=40000, help="scenes")
    parser.add_argument("--images-per-task", type=int, default=200)
    parser.add_argument("--runs", type=Path, default=Path("runs/size"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    start = args.runs / "start"
    parameters = make(start, layers=args.layers, width=args.width)
    done: dict[str, dict[str, float]] = {}

    def stage(name: str, recipe: str, model: Path, *changes: str) -> Path:
        own = [
            *changes,
            *COMMON,
            f"train.compile={args.compile}",
            f"train.batch={args.batch}",
            f"model.path={model}",
        ]

        def train(output: Path, *, steps: int, length: int, every: int) -> Path:
            size = [f"train.steps={steps}", f"data.length={length}", f"log.every={every}", f"output={output}"]
            warmup = [f"optimizer.warmup_steps={min(100, steps // 10)}"]
            result = launch(load_recipe(RECIPES / f"{recipe}.yaml", [*own, *size, *warmup]))
            if result.pipeline is None:
                raise SystemExit("interrupted")
            return result.pipeline

        train(args.runs / f"{name}_speed", steps=PROBE, length=4 * args.batch, every=LATE)
        lines = (args.runs / f"{name}_speed" / "metrics.jsonl").read_text().splitlines()
        rate = json.loads(lines[-1])["rows_per_second"] / args.batch
        steps = max(int(args.minutes * 60 * rate), 10)
        done[name] = {"steps": steps, "steps_per_second": rate}
        print(f"{name}: {rate:.3g} steps/s, {steps} steps", flush=True)
        return train(args.runs / name, steps=steps, length=args.length, every=100)

    base = stage("base", "shapeworld_base", start, *BASE)
    one = stage("one_step", "shapeworld_twinflow", base, *ONE_STEP)
    rows = []
    for name, model, nfe in (("base", base, (1, 100)), ("one_step", one, (1, 2, 4))):
        output, images = args.runs / f"eval_{name}", args.images_per_task
        table = evaluate_models([f"{name}={model}"], nfe=nfe, images_per_task=images, output=output)
        rows += [asdict(row) | {"samples": [], "failures": []} for row in table.rows]
    whole = next(row["overall"] for row in rows if row["nfe"] == 100)
    for row in rows:
        share = f", {row['overall'] / whole:.0%} of the base" if whole else ""
        print(
            f"{row['model']:8s} {row['nfe']:4d} NFE  {row['overall']:.3f} ± {row['overall_error']:.3f}{share}"
        )
    if args.json:
        options = {"layers": args.layers, "width": args.width, "batch": args.batch, "parameters": parameters}
        record = {**options, "stages": done, "rows": rows, **run_facts()}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
