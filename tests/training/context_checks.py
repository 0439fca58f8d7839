"""``python -m training.context_checks RANK WORLD FOLDER CHECK…``: one of the processes of test_context.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from families import FAMILIES
from together import take_part
from twinflow.training import Trainer
from twinflow.training.shards import local

from .parallel_runs import STEPS, AsProcesses, Recording, built, outcome, recipe
from .test_families import Noises, opened

# What is trained, of which family, and how its processes are laid out. The layouts of a variant have one oracle.
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "wan": ("wan", "full", {}),
    "frozen": ("wan", "frozen", {"preview": {"every": 2, "prompts": ["red"], "nfe": [1]}}),
    "lora": ("wan", "lora", {"model": {"path": "tiny", "train": "lora", "lora": {"dropout": 0.2}}}),
    "checkpointing": ("wan", "no_clip", {"train": {"gradient_checkpointing": True}}),
    "flux": ("flux", "full", {}),
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "replicate": {"mode": "replicate"},
    "shard": {"mode": "shard"},
    "hybrid": {"mode": "hybrid", "shard_size": 2},
}


def settings_of(folder: Path, variant: str, parallel: dict[str, Any], **train: Any) -> tuple[Any, Any]:
    family, base, sections = VARIANTS[variant]
    more = sections | {"train": {"steps": STEPS, "batch": 2} | sections.get("train", {}) | train}
    return FAMILIES[family], recipe(folder, base, parallel=parallel, **more)


def one_process(folder: Path, variant: str, groups: int) -> dict[str, Any]:
    """The oracle: the rows of so many groups of processes, each with its random numbers, added up in one process."""
    family, settings = settings_of(folder, variant, {}, accumulate=groups)
    objective = built(AsProcesses, settings).play(groups, settings.train.seed)
    run = Trainer(settings, opened(family, settings), Noises(family), objective=objective)
    run.run()
    return outcome(run)


def several(folder: Path, variant: str, layout: str, **train: Any) -> Trainer:
    family, settings = settings_of(folder, variant, LAYOUTS[layout] | {"context": 2}, **train)
    run = Trainer(settings, opened(family, settings), Noises(family), objective=built(Recording, settings))
    run.run()
    return run


def check_equal(folder: Path, variant: str, layout: str) -> None:
    """Train, and leave what came out for the test to compare: losses are those of the groups in turn."""
    run = several(folder / f"{variant}_{layout}_run", variant, layout)
    found = outcome(run)
    losses: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(losses, found["losses"])
    assert losses[0::2] == losses[1::2], "processes that share rows have one loss"
    groups = losses[0::2]
    found["losses"] = [groups[i % len(groups)][i // len(groups)] for i in range(len(groups) * STEPS)]
    found["held"] = sum(local(p).numel() for p in run.pipe.network.parameters())
    if dist.get_rank() == 0:
        torch.save(found, folder / f"{variant}_{layout}.pt")


if __name__ == "__main__":
    take_part(lambda folder, name: check_equal(folder, *name.split(":")))
