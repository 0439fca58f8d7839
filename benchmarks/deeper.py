"""Whether depth limits one step: a Stable Diffusion 3 pipeline with more blocks that draws what it did.

    twinflow copy-model shapeworld-tiny runs/base
    python benchmarks/deeper.py runs/base runs/deeper --copies 1
    twinflow train recipes/shapeworld_twinflow.yaml model.path=runs/deeper

After each block but the last come copies of it whose gates are zero: they do nothing until training opens them.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, SD3Transformer2DModel
from torch import nn

GATES = (2, 5)  # of attention and of the feed-forward layer, among AdaLayerNormZero's six parts


def closed(block: nn.Module) -> nn.Module:
    """A copy of ``block`` that adds nothing to either stream."""
    twin: Any = copy.deepcopy(block)
    for modulation in (twin.norm1.linear, twin.norm1_context.linear):
        for values in (modulation.weight, modulation.bias):
            parts = values.data.chunk(6)
            for gate in GATES:
                parts[gate].zero_()
    return twin


def deeper(transformer: Any, copies: int) -> Any:
    """``transformer`` with ``copies`` closed copies after each block but the last."""
    *blocks, last = transformer.transformer_blocks
    more = nn.ModuleList(
        [part for block in blocks for part in (block, *(closed(block) for _ in range(copies)))] + [last]
    )
    made = SD3Transformer2DModel.from_config(transformer.config, num_layers=len(more)).to(transformer.dtype)
    rest = {k: v for k, v in transformer.state_dict().items() if not k.startswith("transformer_blocks.")}
    made.load_state_dict(rest, strict=False)
    made.transformer_blocks.load_state_dict(more.state_dict())
    return made.eval()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--copies", type=int, default=1)
    args = parser.parse_args()
    pipe = DiffusionPipeline.from_pretrained(args.model)
    before, after = pipe.transformer.eval(), deeper(pipe.transformer, args.copies)
    sizes = before.config
    call = {
        "hidden_states": torch.randn(2, sizes.in_channels, sizes.sample_size, sizes.sample_size),
        "timestep": torch.tensor([300.0, 700.0]),
        "encoder_hidden_states": torch.randn(2, 8, sizes.joint_attention_dim),
        "pooled_projections": torch.randn(2, sizes.pooled_projection_dim),
    }
    assert torch.equal(before(**call).sample, after(**call).sample)
    pipe.register_modules(transformer=after)
    pipe.save_pretrained(args.output)
    print(f"{args.output}: {len(after.transformer_blocks)} blocks for {len(before.transformer_blocks)}")


if __name__ == "__main__":
    main()
