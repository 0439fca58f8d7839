"""What sharded weights (FSDP2) take beyond the share that stays: blocks put together, and gradients on their way.

Read off ``torch.distributed.fsdp`` and compared with real processes in ``tests/planner/test_sharded.py``. In the
forward a block is there twice, as it arrived and as it computes. In the backward the running block is there, the next
one as it arrived, and the gradients of the last one, in fp32, until they have been added up. What lies outside of
blocks is there from the first call of a forward or backward to its end. Blocks that are kept from the forward go one by
one in the backward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from twinflow.planner.network import FakeNetwork
from twinflow.planner.setup import Setup
from twinflow.recipes.sections import Parallel

_SUMMED = torch.float32.itemsize  # gradients are added up in fp32


@dataclass(frozen=True, kw_only=True)
class Passing:
    """Bytes that are there while calls and backward passes run, by the phase of the step."""

    forward: int = 0
    backward: int = 0
    between: int = 0  # while neither runs
    released: int = 0  # of these by each block, at the end of its backward

    @classmethod
    def of(cls, network: FakeNetwork, settings: Parallel, *, shards: int, gpus: int) -> Passing:
        """``network`` in the dtype in which blocks are put together."""
        block, rest = network.largest_block(), network.outside_blocks()
        travelling = _SUMMED * block.count
        if gpus > shards:  # the shares of several copies are added up too
            travelling += _SUMMED * block.count // shards
        if settings.reshard_after_forward:
            return cls(
                forward=2 * block.bytes + rest.bytes,
                backward=2 * block.bytes + travelling + 2 * rest.bytes,
            )
        whole = sum(weight.nbytes for weight in network.weights)
        return cls(
            forward=whole + 2 * block.bytes,
            backward=whole + travelling + rest.bytes,
            between=whole,
            released=(whole - rest.bytes) // max(network.blocks, 1),
        )

    def during(self, phase: str) -> int:
        """``phase`` as segments of a simulated step are labelled."""
        if phase in ("forward", "gradient"):
            return self.forward
        return self.backward if phase == "backward" else self.between


@dataclass(frozen=True, kw_only=True)
class Undivided:
    """Bytes of a step's passing memory that are there in full where processes divide the tokens of rows, but which a
    measured step shows together with what they divide: so much is added to the divided whole."""

    forward: int = 0
    backward: int = 0

    @classmethod
    def of(cls, network: FakeNetwork, setup: Setup, *, context: int) -> Undivided:
        """Weights that autocast has cast for a call, and gradients of a block that is updated in its backward."""
        missing = 1 - 1 / context
        casts = gradients = 0
        if setup.autocast:
            casts = sum(w.numel for w in network.weights) * torch.bfloat16.itemsize
        if setup.optimizer.in_backward:
            gradients = network.largest_block().bytes
        return cls(forward=int(missing * casts), backward=int(missing * gradients))

    def during(self, phase: str) -> int:
        """``phase`` as segments of a simulated step are labelled."""
        if phase in ("forward", "gradient"):
            return self.forward
        return self.backward if phase == "backward" else 0


def opening_bytes(network: FakeNetwork, *, shards: int, on_host: bool) -> int:
    """Of the first GPU when a sharded run starts: the whole transformer, which its process has read for all, and its
    own slices beside (``on_host``: they are kept there); see :func:`twinflow.training.handing_out.hand_out`."""
    whole = sum(weight.nbytes for weight in network.weights)
    return whole + network.buffers + (0 if on_host else whole // shards)
