"""Put a trained ShapeWorld pipeline into the package as its embedded model: half precision, with its model card.

python tools/embed_model.py runs/shapeworld_base/pipeline --card tools/model_card.md
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

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
    # The text encoders stay in fp32: transformers loads them in the dtype of the file, and a pipeline of two
    # dtypes does not run. Half the size of the other two is what counts.
    for part in (pipe.pipe.transformer, pipe.pipe.vae):
        part.to(torch.float16)
    shutil.rmtree(target, ignore_errors=True)
    pipe.save_pretrained(target)
    for config in target.rglob("*.json"):
        forget_origin(config)
    shutil.copy(args.card, target / "README.md")
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target}: {size / 1e6:.2f} MB")
    if size > LIMIT:
        raise SystemExit(f"larger than {LIMIT / 1e6:.0f} MB")


def forget_origin(config: Path) -> None:
    """Take out where the weights lay on the machine that saved them."""
    values = json.loads(config.read_text())
    if values.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
