"""How good is a ShapeWorld model by other samplers than the report's: along its field, with other guidance.

    python benchmarks/shapeworld_samplers.py one=runs/shapeworld_twinflow/pipeline --samplers 32@multi,8@any \
        --json benchmarks/results/shapeworld_samplers.json
    python benchmarks/shapeworld_samplers.py base=shapeworld-tiny --samplers 64@multi@2.5,32@multi --append --json …

A sampler is NFE@style, or NFE@style@guidance scale. "multi" follows F(x_t, t, t), "any" and "few" jump.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from twinflow.evaluation.models import load_model
from twinflow.evaluation.protocols import run_facts
from twinflow.evaluation.runner import evaluate_pipeline
from twinflow.evaluation.samplers import Sampler
from twinflow.evaluation.shapeworld_benchmark import ShapeWorldBenchmark


def sampler(text: str) -> Sampler:
    nfe, style, *guidance = text.split("@")
    return Sampler(nfe=int(nfe), guidance=float(guidance[0]) if guidance else 1.0, options={"style": style})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="NAME=PIPELINE")
    parser.add_argument("--samplers", required=True)
    parser.add_argument("--images-per-task", type=int, default=100)
    parser.add_argument("--append", action="store_true", help="to the rows that the file has")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    benchmark = ShapeWorldBenchmark("tiny", images_per_task=args.images_per_task)
    rows: list[dict[str, Any]] = json.loads(args.json.read_text())["rows"] if args.append else []
    for named in args.models:
        name, _, path = named.partition("=")
        pipe = load_model(path)
        for text in args.samplers.split(","):
            with tempfile.TemporaryDirectory() as home:
                row = evaluate_pipeline(benchmark, pipe, sampler(text), model=name, home=Path(home))
            found = {
                "model": name,
                "sampler": text,
                "images": row.images,
                "overall": round(row.overall or 0, 3),
            }
            found |= {"error": round(row.overall_error or 0, 3), "diversity": round(row.diversity or 0, 2)}
            rows.append(found | {"tasks": {task: round(value, 2) for task, value in row.tasks.items()}})
            print(rows[-1], flush=True)
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, **run_facts()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
