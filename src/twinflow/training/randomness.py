"""Random number generators: seeded by (seed, rank), saved and restored without pickle."""

from __future__ import annotations

import random
from typing import Any

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


def random_state(generator: Generator) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and numbers that :func:`restore_random_state` takes."""
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    version, words, gauss = random.getstate()
    tensors = {
        "objective": generator.get_state(),
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "python": torch.tensor(words, dtype=torch.int64),
    }
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    numbers = {
        "numpy": [str(name), int(position), int(has_gauss), float(cached)],
        "python": [version, gauss],
    }
    return tensors, numbers


def restore_random_state(generator: Generator, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    name, position, has_gauss, cached = numbers["numpy"]
    version, gauss = numbers["python"]
    generator.set_state(tensors["objective"])
    torch.set_rng_state(tensors["torch"])
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((name, keys, position, has_gauss, cached))  # noqa: NPY002
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
