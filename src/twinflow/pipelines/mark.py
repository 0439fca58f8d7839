"""A mark in the weights of an export, for when everything beside them is lost.

A note and a scheduler's configuration say that a pipeline is an export, but neither comes along where a transformer is
loaded from a single file, or a LoRA is fused into its base. So the edit that folds the target time (``export.bake``)
also makes the last Linear of the time MLP give nothing for one direction of its input, one of its own for each number
of steps. The network never asks for it: a few embeddings of times in hundreds of dimensions are no multiple of it, and
what it gives for them is prescribed. A trained or random matrix gives for it about what it gives for any other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from twinflow.pipelines.time_path import linears

LARGEST = 16  # steps; who exports for more has no mark
# Of what the layer gives for other directions. What is left of a marked one is rounding: 1e-6 in fp32, 0.005 in bf16.
NOTHING = 0.03


def direction(steps: int, width: int) -> Tensor:
    """(width,) fp64 of length 1, the same on any machine: cosines of square numbers, as good as random."""
    number = torch.arange(1, width + 1, dtype=torch.float64)
    cosines = torch.cos(steps * number**2)
    return cosines / cosines.norm()


@torch.no_grad()
def marked_steps(transformer: Any, time_mlp: str) -> int | None:
    """The number of steps that the weights say they were exported for, or None."""
    last: nn.Linear = linears(transformer.get_submodule(time_mlp))[-1]
    if last.weight.is_meta:
        return None
    given = torch.stack([direction(steps, last.in_features) for steps in range(1, LARGEST + 1)])
    # By a call of the layer, for it may be quantised.
    kind = last.weight.dtype if last.weight.is_floating_point() else torch.float32
    given = given.to(last.weight.device, kind)
    sizes = (last(given).float() - last(torch.zeros_like(given)).float()).norm(dim=1)
    smallest = int(sizes.argmin())
    return smallest + 1 if sizes[smallest] < NOTHING * sizes.median() else None
