"""Noise that depends on a picture's seed alone: not on its batch, the device or the dtype of the state.

Every row has a generator of its own, on the CPU, and draws in fp32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

RowGenerators = Generator | Sequence[Generator]


def seeded_noise(
    shape: Sequence[int],
    seeds: Sequence[int],
    *,
    skip: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Normal noise (len(seeds), *shape): row i is a function of ``seeds[i]`` and ``shape`` alone.

    With ``skip`` it is what the generator of that seed gives after ``skip[i]`` others of the shape: rows that one
    generator would give one after another, each without the others.
    """
    rows = []
    for i, seed in enumerate(seeds):
        generator = Generator().manual_seed(int(seed))
        for _ in range(skip[i] if skip else 0):
            torch.randn(shape, generator=generator)
        rows.append(torch.randn(shape, generator=generator))
    return (torch.stack(rows) if rows else torch.empty((0, *shape))).to(device, dtype)


def row_generators(seeds: Sequence[int]) -> list[Generator]:
    """One generator a row, for the noise that a stochastic sampler adds on its way.

    Its stream is not that of :func:`seeded_noise` with the same seed: a picture re-noised with the very
    noise that it began from would not be re-noised at all.
    """
    return [Generator().manual_seed(_hashed(f"re-noise {int(seed)}".encode())) for seed in seeds]


def generators_from(noise: Tensor) -> list[Generator]:
    """One generator a row, seeded by the values of the row of initial ``noise`` (B, …).

    The same initial noise is then always re-noised in the same way, in any batch, with nothing to pass
    along. Waits for the device once.
    """
    rows = noise.detach().to("cpu", torch.float32)
    return [Generator().manual_seed(_hashed(row.numpy().tobytes())) for row in rows]


def fresh_noise(like: Tensor, generator: RowGenerators) -> Tensor:
    """Normal noise of the shape, dtype and device of ``like`` (B, …), drawn in fp32.

    With one generator for all rows, what a row gets depends on the rows before it.
    """
    if isinstance(generator, Generator):
        noise = torch.randn(like.shape, generator=generator, device=generator.device)
    else:
        rows = [torch.randn(like.shape[1:], generator=own, device=own.device) for own in generator]
        noise = torch.stack(rows) if rows else like.new_empty(like.shape)
    return noise.to(like.device, like.dtype, non_blocking=True)


def _hashed(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1  # 63 bits
