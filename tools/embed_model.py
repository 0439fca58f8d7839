"""Put a trained ShapeWorld pipeline into the package as its embedded model: half precision, with its model card.

python tools/embed_model.py runs/shapeworld_base/pipeline --card tools/model_card.md
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from twinflow.assets import ROOT
from twinflow.pipelines import AnyStepPipeline

LIMIT = 10_000_000  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--card", type=Path, required=True)
    parser.add_argument("--name", default="shapeworld-tiny")
    args = parser.parse_args()
    target = ROOT / args.name
    pipe = AnyStepPipeline.from_pretrained(args.pipeline, target_time=False, fold_padding=False)
    shutil.rmtree(target, ignore_errors=True)
    pipe.save_pretrained(target)
    for config in target.rglob("*.json"):
        forget_origin(config)
    for weights in target.rglob("*.safetensors"):
        halve(weights)
    shutil.copy(args.card, target / "README.md")
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target}: {size / 1e6:.2f} MB")
    if size > LIMIT:
        raise SystemExit(f"larger than {LIMIT / 1e6:.0f} MB")


def halve(weights: Path) -> None:
    """Round a file's weights to fp16. Its configuration goes on naming the dtype to load them in: transformers would
    else take that of the file, and a pipeline of two dtypes does not run."""
    values = {name: value.to(torch.float16) for name, value in load_file(weights).items()}
    save_file(values, weights, metadata={"format": "pt"})


def forget_origin(config: Path) -> None:
    """Take out where the weights lay on the machine that saved them."""
    values = json.loads(config.read_text())
    if values.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
