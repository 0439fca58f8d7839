"""Every family is trained by TwinFlow in full and by LoRA: 20 steps of the real trainer on the tiny pipelines."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from families import FAMILIES, NAMES, Family
from twinflow.launch import DTYPES, prepare
from twinflow.pipelines import AnyStepPipeline
from twinflow.training import RunResult, Trainer
from twinflow.training.checkpoint import read_checkpoint

from .tiny import tiny_recipe

STEPS = 20
# In use where the tokens of a picture are no multiple of 32, which they are at the size of the test.
WITHOUT_USE = {"transformer.x_pad_token"}
COLOURS = ("red", "green", "blue")
NO_PROMPT = "grey"  # with an empty one, HunyuanVideo would have no token at all of these tokenizers
SOURCES = {colour: Image.new("RGB", (32, 32), colour) for colour in (*COLOURS, NO_PROMPT)}


@pytest.fixture(scope="module", autouse=True)
def small_sources():
    import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as edit

    kept = edit.VAE_IMAGE_SIZE, edit.CONDITION_IMAGE_SIZE
    edit.VAE_IMAGE_SIZE = edit.CONDITION_IMAGE_SIZE = 32 * 32
    yield
    edit.VAE_IMAGE_SIZE, edit.CONDITION_IMAGE_SIZE = kept


class Noises:
    """Pictures or clips of noise, of the size that a family is opened with."""

    def __init__(self, family: Family) -> None:
        frames = (family.call["num_frames"],) if family.video else ()
        self.shape = (3, *frames, family.call["height"], family.call["width"])

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = torch.randn(self.shape, generator=torch.Generator().manual_seed(index)).clamp(-1, 1)
        return {"pixels": pixels, "caption": COLOURS[index]}


class Editing(AnyStepPipeline):
    """The source picture of an edit has the colour of its prompt."""

    def encode_prompts(self, prompts: Any, **options: Any) -> Any:
        sources = [SOURCES.get(prompt, SOURCES[NO_PROMPT]) for prompt in prompts]
        return super().encode_prompts(prompts, **options | {"images": sources})


def opened(family: Family, recipe: Any) -> AnyStepPipeline:
    kind, stock = Editing if family.edits else AnyStepPipeline, family.stock()
    stock.transformer.to(DTYPES[recipe.model.dtype])
    pipe = kind(stock, call=family.call)
    torch.manual_seed(recipe.train.seed)
    prepare(pipe, recipe)
    return pipe


def settings(output: Path, train: str, **more: Any) -> Any:
    sections: dict[str, Any] = {
        "model": {"path": "tiny", "train": train},
        "objective": {
            "name": "twinflow",
            "guidance": 0.3,
            "teacher": "ema" if train == "full" else "frozen",
            "longest_jump": None,
        },
        "train": {"steps": STEPS, "batch": 2},
        "checkpoint": {"every": STEPS // 2},
        "log": {"every": STEPS, "tensorboard": False},
        "optimizer": {"lr": 1e-3},
        "caption_dropout": 0.1,
        "unconditional_prompt": NO_PROMPT,
    }
    return tiny_recipe(output, **(sections | more))


def digests(result: RunResult) -> dict[str, str]:
    """What the last checkpoint holds, the clock apart."""
    assert result.checkpoint is not None
    snapshot = read_checkpoint(result.checkpoint)
    found = {
        f"{file}/{name}": hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
        for file, group in snapshot.tensors.items()
        for name, value in group.items()
    }
    return found | {key: str(value) for key, value in snapshot.state.items() if key != "seconds"}


@pytest.mark.parametrize("train", ["full", "lora"])
@pytest.mark.parametrize("name", NAMES)
def test_twinflow_trains_it(name: str, train: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    recipe = settings(tmp_path / "run", train)
    pipe = opened(family, recipe)
    trainer = Trainer(recipe, pipe, Noises(family))
    before = {n: p.detach().clone() for n, p in pipe.network.named_parameters()}
    straight = trainer.run()
    assert straight.status == "finished"
    for parameter_name, parameter in pipe.network.named_parameters():
        assert parameter.isfinite().all(), parameter_name
        moved = not torch.equal(parameter, before[parameter_name])
        assert moved == (parameter.requires_grad and parameter_name not in WITHOUT_USE), parameter_name

    middle = straight.checkpoint.with_name(f"step_{STEPS // 2:08}")
    recipe = settings(tmp_path / "again", train)
    resumed = Trainer(recipe, opened(family, recipe), Noises(family), resume=middle).run()
    assert digests(resumed) == digests(straight)


RIVALS: list[dict[str, Any]] = [
    {"name": "rcgm", "guidance": 0.3, "teacher": "ema", "longest_jump": None},
    {"name": "consistency_training", "target_decay": 0.5, "start_intervals": 2, "final_intervals": 8},
    {"name": "consistency_distillation", "guidance": 1.0},
    {"name": "scm", "guidance": 1.0, "tangent_warmup": 2},
    {"name": "mean_flow", "guidance": 0.3},
    {"name": "progressive_distillation", "start_steps": 4, "guidance": 1.0},
    {"name": "dmd", "guidance": 1.0},
    {"name": "dmd2", "guidance": 1.0, "critic_steps": 1, "times": [1.0, 0.5]},
    {"name": "sana_sprint", "guidance": 1.0, "tangent_warmup": 2},
]


@pytest.mark.parametrize("objective", RIVALS, ids=lambda objective: objective["name"])
def test_every_rival_trains_a_lora(objective: dict[str, Any], tmp_path: Path) -> None:
    """Its other networks are adapters on the same base, which stays as it is; the run goes on bit for bit."""
    family = FAMILIES["sd3"]
    sections = {"objective": objective, "ema": {"decay": 0.5}}
    recipe = settings(tmp_path / "run", "lora", **sections)
    pipe = opened(family, recipe)
    trainer = Trainer(recipe, pipe, Noises(family))
    before = {n: p.detach().clone() for n, p in pipe.network.named_parameters()}
    straight = trainer.run()
    moved = {n for n, p in pipe.network.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, p in pipe.network.named_parameters() if p.requires_grad}
    base = {id(p) for p in pipe.network.parameters() if not p.requires_grad}
    for name, spec in trainer.objective.networks().items():
        if spec.kind != "new":
            copy = dict(trainer.companions.networks[name].named_parameters())
            assert {n for n, p in copy.items() if id(p) not in base} == moved, name

    middle = straight.checkpoint.with_name(f"step_{STEPS // 2:08}")
    recipe = settings(tmp_path / "again", "lora", **sections)
    resumed = Trainer(recipe, opened(family, recipe), Noises(family), resume=middle).run()
    assert digests(resumed) == digests(straight)
