"""Exports of every tiny family, and what diffusers alone makes of them in one process that can't import twinflow."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from families import FAMILIES
from pipelines.tiny import train_branch
from twinflow.pipelines import AnyStepPipeline
from twinflow.sampling import seeded_noise

PROMPT, SEED, RENOISE_SEED = "a red circle", 11, 7
PROGRAM = Path(__file__).with_name("stock_program.py")


def small_sources():
    """Edit pipelines bring pictures to a million pixels; here to a thousand."""
    import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as edit

    edit.VAE_IMAGE_SIZE = edit.CONDITION_IMAGE_SIZE = 32 * 32


def trained(name: str, **options) -> AnyStepPipeline:
    """A family's tiny pipeline with a branch as training would leave it."""
    small_sources()
    family = FAMILIES[name]
    stock = family.stock()
    return train_branch(AnyStepPipeline(stock, call=family.call, **options))


def draw(pipe: AnyStepPipeline, name: str, nfe: int) -> torch.Tensor:
    """The field sampler's pictures in [0, 1], clips with their frames first, as the stock call returns them."""
    family = FAMILIES[name]
    made = pipe(
        [PROMPT],
        nfe=nfe,
        seeds=[SEED],
        generator=torch.Generator().manual_seed(RENOISE_SEED),
        images=[family.call["image"]] if family.edits else None,
        output_type="pt",
    )
    return made.images


def run_stock_program(root: Path, tasks: dict, pipes: dict[str, AnyStepPipeline]) -> tuple[dict, dict]:
    """Pictures and facts of ``tasks``, drawn by a process without twinflow."""
    noise = {name: seeded_noise(pipe.latent_shape, [SEED]) for name, pipe in pipes.items()}
    save_file(noise, root / "noise.safetensors")
    (root / "tasks.json").write_text(
        json.dumps({name: {"prompt": PROMPT, **task} for name, task in tasks.items()})
    )
    run = subprocess.run(
        [sys.executable, "-I", str(PROGRAM), str(root)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return load_file(root / "pictures.safetensors"), json.loads((root / "facts.json").read_text())
