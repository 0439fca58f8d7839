"""Grids of pictures with fixed prompts and seeds, so that those of two steps can be compared."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from twinflow.conditions import take_rows
from twinflow.errors import TwinflowError
from twinflow.objectives import Field
from twinflow.recipes.sections import Preview as Settings
from twinflow.sampling import sample, sampling_steps, seeded_noise
from twinflow.training.processes import Processes
from twinflow.training.protocols import Drawable


class Previewer:
    """Draws the prompts of a recipe at each of its NFE."""

    def __init__(
        self,
        settings: Settings,
        pipe: Drawable,
        *,
        prompts: list[str],
        unconditional: str | None,
        device: torch.device,
    ) -> None:
        self.settings, self.pipe = settings, pipe
        self._options: dict[str, Any] = dict(settings.sampler)
        with torch.no_grad():
            self._cond = pipe.encode_prompts(prompts)
            if self._options.get("guidance", 1.0) != 1.0:
                if unconditional is None:
                    raise TwinflowError(
                        "preview.sampler.guidance needs an unconditional_prompt, which is null"
                    )
                self._options["uncond"] = pipe.encode_prompts([unconditional])
        seeds = [settings.seed + i for i in range(len(prompts))]
        self._noise = seeded_noise(pipe.latent_shape, seeds).to(device)
        for nfe in settings.nfe:
            try:  # of the arguments alone: no step is made
                sampling_steps(pipe.field, self._noise, self._cond, nfe=nfe, **self._options)
            except (TypeError, ValueError) as error:
                raise TwinflowError(f"preview.nfe = {nfe} with preview.sampler: {error}") from error

    @torch.no_grad()
    def draw(self, field: Field, processes: Processes | None = None) -> dict[int, Tensor]:
        """A grid (3, H, W) in [0, 1] for each NFE; each of ``processes`` draws a part of it, and gets the whole."""
        processes = processes or Processes()
        count = len(self._noise)
        each = math.ceil(count / processes.data_count)  # of all, as sharded weights want equally many calls
        own = (torch.arange(each) + each * processes.data_rank).clamp(max=count - 1).to(self._noise.device)
        noise, cond = self._noise[own], take_rows(self._cond, own)
        grids = {}
        for nfe in self.settings.nfe:
            latents = sample(field, noise, cond, nfe=nfe, **self._options)
            pixels = {"pixels": self.pipe.decode(latents).float()}
            parts = processes.gather(pixels, noise.device)[:: processes.context]
            grids[nfe] = picture_grid(torch.cat([part["pixels"].cpu() for part in parts])[:count])
        return grids


def save_grid(grid: Tensor, path: Path) -> None:
    """Write a grid (3, H, W) in [0, 1] as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((grid * 255).round().byte().permute(1, 2, 0).numpy()).save(path)


def picture_grid(pixels: Tensor, *, gap: int = 2) -> Tensor:
    """Pictures (B, 1 or 3, H, W) in [-1, 1] side by side, as square as can be: (3, H', W') in [0, 1].

    Of clips (B, 1 or 3, F, H, W) each is a line of its frames.
    """
    columns = math.ceil(math.sqrt(len(pixels)))
    if pixels.dim() == 5:
        columns, pixels = pixels.shape[2], pixels.transpose(1, 2).flatten(0, 1)
    count, _, height, width = pixels.shape
    rows = math.ceil(count / columns)
    grid = torch.ones(3, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for i, picture in enumerate((pixels.clamp(-1, 1) + 1) / 2):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        grid[:, top : top + height, left : left + width] = picture
    return grid
