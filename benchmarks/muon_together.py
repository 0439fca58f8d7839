"""How long does a step of Muon take, matrix by matrix as torch does it, and with matrices of one shape together?

    python benchmarks/muon_together.py --json benchmarks/results/muon_together.json

Both take turns on the matrices of the same transformer's blocks, with the same gradients; how far apart their weights
end is said too.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import nn

from twinflow.assets import locate
from twinflow.evaluation.protocols import run_facts
from twinflow.training.optim_muon import Muon

SETTINGS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.01, "adjust_lr_fn": "match_rms_adamw"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=11)
    parser.add_argument("--width", type=int, default=96, help="a multiple of 32, the width of a head")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ours, theirs = (matrices(args.layers, args.width, device) for _ in range(2))
    optimizers = {"together": Muon(ours, **SETTINGS), "one by one": torch.optim.Muon(theirs, **SETTINGS)}
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    generator = torch.Generator(device).manual_seed(1)
    for step in range(args.steps + 2):
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn(own.shape, generator=generator, device=device)
            other.grad = own.grad.clone()
        for name, optimizer in optimizers.items():
            if device == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()
            if step >= 2:  # the first set up states and libraries
                seconds[name].append(time.perf_counter() - began)
    apart = max((own - other).abs().max().item() for own, other in zip(ours, theirs, strict=True))
    result = {
        "matrices": len(ours),
        "layers": args.layers,
        "width": args.width,
        "milliseconds": {name: 1e3 * median(times) for name, times in seconds.items()},
        "ratio": median(seconds["one by one"]) / median(seconds["together"]),
        "largest_difference": apart,
    }
    print(result)
    if args.json is not None:
        args.json.write_text(json.dumps(run_facts() | {"threads": args.threads} | result, indent=1) + "\n")


def matrices(layers: int, width: int, device: str) -> list[nn.Parameter]:
    """Those of the blocks of the embedded transformer, in other sizes."""
    config = SD3Transformer2DModel.load_config(Path(locate("shapeworld-tiny")) / "transformer")
    torch.manual_seed(0)
    made = SD3Transformer2DModel.from_config(
        config, num_layers=layers, num_attention_heads=width // 32, caption_projection_dim=width
    ).to(device)
    return [p for p in made.transformer_blocks.parameters() if p.dim() == 2]


if __name__ == "__main__":
    main()
