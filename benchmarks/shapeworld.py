"""ShapeWorld from nothing to one step: train every stage by its recipe, TwinFlow with several seeds, score all.

    python benchmarks/shapeworld.py --runs runs/tiny --json benchmarks/results/shapeworld.json
    python benchmarks/shapeworld.py --level full --runs runs/full --json benchmarks/results/shapeworld_full.json
    python benchmarks/shapeworld.py --base shapeworld-tiny …      # skip the base's own stages

Hours on two CPU cores, minutes on a GPU. Every stage resumes where it was stopped, so the same command goes on.
`--set base:train.steps=100` changes a stage's recipe.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from twinflow.config import load_recipe
from twinflow.evaluation.protocols import run_facts
from twinflow.evaluation.runner import evaluate_models
from twinflow.launch import launch

RECIPES = Path(__file__).parent.parent / "recipes"
STAGES = {
    "tiny": ("shapeworld_text", "shapeworld_vae_start", "shapeworld_vae", "shapeworld_base"),
    "full": (
        "shapeworld_full_text",
        "shapeworld_full_vae_start",
        "shapeworld_full_vae",
        "shapeworld_full_base",
    ),
}
NFE = {"base": (1, 2, 4, 100), "one": (1, 2, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--level", choices=STAGES, default="tiny")
    parser.add_argument("--base", help="a trained base to start from")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--images-per-task", type=int, default=200)
    parser.add_argument("--runs", type=Path, default=Path("runs/shapeworld"))
    parser.add_argument("--set", action="append", default=[], metavar="STAGE:KEY=VALUE")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    seconds: dict[str, float] = {}

    def train(stage: str, recipe: str, *changes: str, name: str | None = None) -> str:
        own = [change.split(":", 1)[1] for change in args.set if change.startswith(f"{stage}:")]
        output = args.runs / (name or stage)
        result = launch(load_recipe(RECIPES / f"{recipe}.yaml", [*changes, f"output={output}", *own]))
        if result.pipeline is None:
            raise SystemExit("interrupted: the same command goes on")
        seconds[name or stage] = round(result.seconds, 1)
        return str(result.pipeline)

    base = args.base
    if base is None:
        for stage, recipe in zip(("text", "vae_start", "vae", "base"), STAGES[args.level], strict=True):
            base = train(stage, recipe, *([f"model.path={base}"] if base else []))
    level = f"data.level={args.level}"
    trained = [
        train("one", "shapeworld_twinflow", f"model.path={base}", level, f"train.seed={s}", name=f"seed{s}")
        for s in map(int, args.seeds.split(","))
    ]
    names = [f"seed{s}" for s in args.seeds.split(",")]
    rows = []
    for group, models in (("base", [f"base={base}"]), ("one", [f"{n}={m}" for n, m in zip(names, trained)])):
        table = evaluate_models(
            models,
            nfe=NFE[group],
            level=args.level,
            images_per_task=args.images_per_task,
            output=args.runs / f"eval_{group}",
        )
        rows += [asdict(row) | {"samples": [], "failures": []} for row in table.rows]
    for row in rows:
        print(f"{row['model']:8s} {row['nfe']:4d} NFE  {row['overall']:.3f} ± {row['overall_error']:.3f}")
    if args.json:
        record = {"rows": rows, "training_seconds": seconds, "changes": args.set, **run_facts()}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
