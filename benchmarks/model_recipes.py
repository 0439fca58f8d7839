"""What ``twinflow plan`` says of the recipes for published models, ``recipes/models``; written to a JSON.

    python benchmarks/model_recipes.py

It writes the table of docs/guides/models.md too. Calculated on fake tensors, in minutes on two CPU cores: none of
these recipes was run at its size.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pages import fill, markdown

from twinflow.config import load_recipe
from twinflow.planner import gpu_named, plan_recipe
from twinflow.planner.plan import size
from twinflow.planner.tables import duration
from twinflow.quantities import parameters

ROOT = Path(__file__).resolve().parents[1]
RECIPES, DOCS = ROOT / "recipes" / "models", ROOT / "docs" / "guides" / "models.md"
RESULTS = ROOT / "benchmarks" / "results" / "model_recipes.json"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a recipe is meant to run, and the published configuration that stands for its model."""

    config: str
    gpu: str = "h100-80"
    gpus: int = 1


PLACES = {
    "qwen_image_lora": Place(config="qwen-image"),
    "qwen_image_full": Place(config="qwen-image", gpus=8),
    "qwen_image_full_one_gpu": Place(config="qwen-image"),
    "qwen_image_edit_lora": Place(config="qwen-image-edit"),
    "sana_1.6b": Place(config="sana-1.6b"),
    "sd3.5_medium": Place(config="sd3.5-medium"),
    "z_image_lora": Place(config="z-image", gpu="rtx4090-24"),
    "flux.1_dev_lora": Place(config="flux.1-dev", gpu="l40s-48"),
    "wan2.1_1.3b": Place(config="wan2.1-1.3b"),
    "wan2.1_14b_lora": Place(config="wan2.1-14b", gpus=8),
}


def table(rows: dict[str, Any]) -> str:
    """What docs/guides/models.md shows of the results."""
    heads = ("recipe", "trained", "GPUs", "peak of each", "pictures a step", "steps", "floor of the run")
    return markdown(heads, (cells(name, row) for name, row in rows.items()))


def cells(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    host = f", and {size(row['host'])} of the host" if row["host"] else ""
    return (
        f"`{name}`",
        f"{parameters(row['trained'], digits=3)} of {parameters(row['parameters'], digits=3)}",
        f"{row['gpus']} x {row['gpu']}",
        f"{size(row['peak'])} of {size(row['available'])}{host}",
        f"{row['rows']}",
        f"{row['steps']:,}",
        duration(row["run_seconds"]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows: dict[str, Any] = {}
    results = {
        "command": " ".join(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "note": "calculated on fake tensors; no GPU was used",
        "recipes": rows,
    }
    for name, place in PLACES.items():
        recipe = load_recipe(RECIPES / f"{name}.yaml")
        _, plan = plan_recipe(recipe, gpu=gpu_named(place.gpu), gpus=place.gpus, config=place.config)
        rows[name] = {"rows": plan.rows, "steps": plan.setup.steps, **plan.to_json()}
        print(
            f"{name}: {plan.gpus} x {plan.gpu.name}, peak {size(plan.peak)}, "
            f"{'fits' if plan.fits else 'DOES NOT FIT'}, host {size(plan.host)}, floor {plan.step_seconds:.3g} s, "
            f"{plan.run_seconds / 3600:.3g} h",
            flush=True,
        )
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.json == RESULTS:
        fill(DOCS, table=table(rows))


if __name__ == "__main__":
    main()
