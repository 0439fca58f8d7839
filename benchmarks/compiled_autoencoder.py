"""Has a compiled autoencoder the gradients of the code as it is written? With torch 2.13 on a CPU it has not.

    python benchmarks/compiled_autoencoder.py --json benchmarks/results/compiled_autoencoder.json

The embedded autoencoder reconstructs random pictures, in fp32 and under bf16 autocast. Each of torch's steps from code
to kernels is a backend of its own: the graph alone ("eager"), with derivatives ("aot_eager"), with decompositions, and
with generated kernels ("inductor"). Said is how many weights have a gradient as written and none compiled. If Inductor
has them all, recipes need not refuse ``train.compile`` for autoencoders.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from twinflow.assets import locate
from twinflow.evaluation.protocols import run_facts
from twinflow.training.parts.autoencoder import AutoencoderNetwork

BACKENDS = ("eager", "aot_eager", "aot_eager_decomp_partition", "inductor")


def gradients(network: nn.Module, pixels: Tensor, *, bf16: bool) -> dict[str, Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        reconstruction, _ = network(pixels)
    (reconstruction - pixels).square().mean().backward()
    named = network.named_parameters()
    return {name: parameter.grad for name, parameter in named if parameter.grad is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    pipe = DiffusionPipeline.from_pretrained(locate("shapeworld-tiny"), torch_dtype=torch.float32)
    network = AutoencoderNetwork(pipe.vae.train())
    pixels = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rows = []
    for bf16 in (False, True):
        written = gradients(copy.deepcopy(network), pixels, bf16=bf16)
        for backend in BACKENDS:
            torch._dynamo.reset()
            compiled = copy.deepcopy(network)
            compiled.compile(backend=backend)
            found = gradients(compiled, pixels, bf16=bf16)
            lost = [name for name, g in written.items() if g.any() and not found[name].any()]
            row = {"precision": "bf16" if bf16 else "fp32", "backend": backend, "weights": len(written)}
            rows.append(row | {"without_gradient": len(lost), "names": lost})
            print(
                f"{row['precision']}  {backend:28s} {len(lost):3d} of {len(written)} without a gradient",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, **run_facts()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
