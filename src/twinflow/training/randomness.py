"""Random number generators: seeded by (seed, rank), saved as tensors and restored."""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from torch import Generator, Tensor


def seed_all(seed: int, rank: int = 0) -> Generator:
    """Seed the generators of torch, numpy and python, and return a new one for the objective."""
    words = np.random.SeedSequence([seed, rank]).generate_state(4, np.uint64)
    torch.manual_seed(int(words[0] >> np.uint64(1)))
    np.random.seed(int(words[1] & np.uint64(2**32 - 1)))  # noqa: NPY002 - what other libraries draw from
    random.seed(int(words[2]))
    # On the CPU, so that the objectives never wait for the device.
    return Generator().manual_seed(int(words[3] >> np.uint64(1)))


def random_state(generator: Generator) -> dict[str, Tensor]:
    """The state of all generators, of the same shapes in every process."""
    _, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    _, words, gauss = random.getstate()
    tensors = {
        "objective": generator.get_state(),
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*np.asarray(keys).tolist(), position, has_gauss]),
        "python": torch.tensor(words),
        # The second of a pair of normal numbers, kept for the next call.
        "gauss": torch.tensor([cached, math.nan if gauss is None else gauss], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return tensors


def restore_random_state(generator: Generator, state: dict[str, Tensor]) -> None:
    """Set all generators to what :func:`random_state` found."""
    generator.set_state(state["objective"])
    torch.set_rng_state(state["torch"])
    *keys, position, has_gauss = state["numpy"].tolist()
    cached, gauss = state["gauss"].tolist()
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, cached))  # noqa: NPY002
    random.setstate((3, tuple(state["python"].tolist()), None if math.isnan(gauss) else gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
