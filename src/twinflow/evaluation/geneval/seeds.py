"""Seeds of a prompt's pictures: one for each picture, or GenEval's one for each prompt."""

from __future__ import annotations

from typing import Literal, get_args

import torch

SeedMode = Literal["image", "geneval"]
SEED_MODES: tuple[str, ...] = get_args(SeedMode)
GENEVAL_SEED = 42


def prompt_seeds(mode: SeedMode, count: int, *, seed: int = 0) -> tuple[int | None, ...]:
    """Seeds of the ``count`` pictures of any prompt.

    ``"image"``: ``seed + k`` for picture k, so that each can be drawn alone, in any batch, on any rank.
    ``"geneval"``: the official ``seed_everything(42)`` once a prompt, after which the pictures are drawn one after
    another; None stands for "go on with the random numbers of the picture before".
    """
    if mode not in SEED_MODES:
        raise ValueError(f"the seed mode must be one of {', '.join(SEED_MODES)}, got {mode!r}")
    if count < 1:
        raise ValueError(f"a prompt needs at least 1 picture, got {count}")
    if mode == "geneval":
        return (GENEVAL_SEED, *[None] * (count - 1))
    return tuple(seed + k for k in range(count))


def generators(
    seeds: tuple[int | None, ...], device: torch.device | str = "cpu"
) -> tuple[torch.Generator, ...]:
    """A generator for each picture. A picture whose seed is None shares that of the picture before.

    Pictures that share one must be drawn in order and in batches of one; they then get the numbers that the global
    generator of the device would have given after ``seed_everything``.
    """
    made: list[torch.Generator] = []
    for seed in seeds:
        if seed is not None:
            made.append(torch.Generator(device).manual_seed(seed))
        elif made:
            made.append(made[-1])
        else:
            raise ValueError("the first picture needs a seed of its own")
    return tuple(made)
