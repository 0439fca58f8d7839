"""Runs of several processes, and of one that does what each of them would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Generator, Tensor

from families import FAMILIES
from twinflow.objectives import Step, TwinFlow
from twinflow.training import Trainer
from twinflow.training.randomness import seed_all
from twinflow.training.shards import as_cut, local, sharded_parameters

from .test_families import NO_PROMPT, Noises, opened
from .tiny import tiny_recipe

FAMILY = FAMILIES["sd3"]
STEPS, LR, EPS = 4, 1e-2, 1e-2
ON_SLICES: tuple[Any, ...] = ("adamw", "radam", "adafactor", "adamw8bit", "adamw4bit")
FEW_BITS = {"name": "adamw8bit", "lr": LR, "eps": EPS}
# As recipes/models/qwen_image_full.yaml: bf16 weights and averages, rounded by chance, and moments in eight bits.
BF16: dict[str, Any] = {"optimizer": FEW_BITS, "model": {"path": "tiny", "dtype": "bf16"}}
NO_CLIP = {"lr": LR, "eps": EPS, "clip": None}
# Variants of the recipe: what is trained, and on what.
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "frozen": {"objective": {"name": "twinflow", "guidance": 2.0, "teacher": "frozen", "longest_jump": None}},
    "image_free": {
        "objective": {
            "name": "twinflow",
            "guidance": 0.3,
            "teacher": "ema",
            "image_free": True,
            "longest_jump": None,
        }
    },
    "lora": {"model": {"path": "tiny", "train": "lora"}},
    "no_clip": {"optimizer": NO_CLIP},
    "in_backward": {"optimizer": NO_CLIP | {"in_backward": True}},
}


def recipe(output: Path, variant: str, *, parallel: dict[str, Any], **sections: Any) -> Any:
    raw: dict[str, Any] = {
        "objective": {"name": "twinflow", "guidance": 0.3, "teacher": "ema", "longest_jump": None},
        # A large eps: the update is then a smooth function of the gradient, and rounding stays rounding.
        "optimizer": {"lr": LR, "eps": EPS, "clip": 0.5},
        "train": {"steps": STEPS, "batch": 2},
        "checkpoint": {"every": 0},
        "log": {"every": 1, "tensorboard": False},
        "unconditional_prompt": NO_PROMPT,
        "caption_dropout": 0.0,
        "parallel": parallel,
    }
    return tiny_recipe(output, **(raw | VARIANTS[variant] | sections))


class AsProcesses(TwinFlow):
    """In one process, does with successive micro-batches what each of several processes would."""

    def play(self, world: int, seed: int) -> AsProcesses:
        self.players: list[Generator] = [seed_all(seed, rank) for rank in range(world)]
        self.turn, self.recorded = 0, []
        return self

    def step(self, *arguments: Any, **named: Any) -> Step:
        named["generator"] = self.players[self.turn % len(self.players)]
        self.turn += 1
        result = super().step(*arguments, **named)
        self.recorded.append(float(result.loss.detach()))
        return result


class Recording(TwinFlow):
    def step(self, *arguments: Any, **named: Any) -> Step:
        result = super().step(*arguments, **named)
        self.__dict__.setdefault("recorded", []).append(float(result.loss.detach()))
        return result


def built(kind: type, settings: Any) -> Any:
    return kind(**{key: value for key, value in settings.objective.items() if key != "name"})


def outcome(run: Trainer) -> dict[str, Any]:
    """Weights, average and gradient norms of a run, whole and plain."""
    cut = sharded_parameters(run.pipe.network)

    def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: as_cut(local(t), cut[name]).full_tensor().detach() if name in cut else t.detach().clone()
            for name, t in tensors.items()
        }

    weights = {name: p for name, p in run.pipe.network.named_parameters() if p.requires_grad}
    lines = (run.folder.path / "metrics.jsonl").read_text().splitlines() if run.processes.is_main else []
    return {
        "weights": whole(weights),
        "average": whole(run.averages.drawn.state_dict()[0]),
        "norms": [json.loads(line)["gradient_norm"] for line in lines],
        "losses": run.objective.recorded,
    }


def one_process(folder: Path, variant: str, world: int) -> dict[str, Any]:
    """The oracle: the same rows, roles and random numbers, added up in one process."""
    settings = recipe(folder, variant, parallel={}, train={"steps": STEPS, "batch": 2, "accumulate": world})
    objective = built(AsProcesses, settings).play(world, settings.train.seed)
    run = Trainer(settings, opened(FAMILY, settings), Noises(FAMILY), objective=objective)
    run.run()
    return outcome(run)


def several(folder: Path, variant: str, parallel: dict[str, Any], **sections: Any) -> Trainer:
    settings = recipe(folder, variant, parallel=parallel, **sections)
    run = Trainer(settings, opened(FAMILY, settings), Noises(FAMILY), objective=built(Recording, settings))
    run.run()
    return run
