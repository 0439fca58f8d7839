"""What a run shows while it goes on: numbers in files and on the terminal, and pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from twinflow.config import Recipe
from twinflow.data.loader import Examples
from twinflow.errors import TwinflowError
from twinflow.objectives import Field, Step
from twinflow.training.metrics import MetricWindow, MetricWriter
from twinflow.training.optim import learning_rate
from twinflow.training.preview import Previewer, save_grid
from twinflow.training.processes import Processes
from twinflow.training.progress import ProgressDisplay
from twinflow.training.protocols import Dataset, Drawable, Trainable
from twinflow.training.run_folder import RunFolder
from twinflow.training.state import RunState


class Logbook:
    """Of the first process; the others only take part where pictures need them."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        processes: Processes,
        display: ProgressDisplay,
        previewer: Previewer | None,
        state: RunState,
    ) -> None:
        self.recipe, self.folder, self.processes, self.display = recipe, folder, processes, display
        self.previewer, self.state = previewer, state
        self._window = MetricWindow()
        self._writer: MetricWriter | None = None
        if processes.is_main:
            self._writer = MetricWriter(folder.path, tensorboard=recipe.log.tensorboard, start=state.step)
        self._logged = (state.step, time.monotonic())

    def add(self, results: Sequence[Step], norm: Tensor) -> None:
        """What a step gave."""
        for result in results:
            self._window.add(result)
        self._window.add_gradient(norm)

    def log(self) -> None:
        """Write the means since the last time."""
        train = self.recipe.train
        values = self._window.close()
        step, moment = self._logged
        self._logged = (self.state.step, time.monotonic())
        rows = (self.state.step - step) * train.batch * train.accumulate * self.processes.data_count
        values["lr"] = learning_rate(self.recipe.optimizer, self.state.step - 1, train.steps)
        values["rows_per_second"] = rows / max(self._logged[1] - moment, 1e-9)
        values["seconds"] = self.state.seconds
        if self._writer is not None:
            self._writer.write(self.state.step, values)
        self.display.log(self.state.step, values)

    def preview(self, field: Field) -> None:
        """Draw with ``field``; all processes have to, each its part."""
        if self.previewer is None:
            return
        grids = self.previewer.draw(field, self.processes)
        if self._writer is None:
            return
        for nfe, grid in grids.items():
            save_grid(grid, self.folder.previews / f"step_{self.state.step:08}_nfe_{nfe:03}.png")
            self._writer.picture(self.state.step, f"nfe_{nfe}", grid)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def previewer_of(
    recipe: Recipe, pipe: Trainable, dataset: Dataset, examples: Examples, *, device: torch.device
) -> Previewer | None:
    """What draws the pictures of ``recipe.preview``, if it wants some; :class:`TwinflowError` if it can't."""
    settings = recipe.preview
    if settings.every == 0:
        return None
    if not (hasattr(pipe, "decode") and hasattr(pipe, "latent_shape")):
        raise TwinflowError(f"preview.every = {settings.every}, but what is trained can't draw: set it to 0")
    if not settings.prompts and not hasattr(dataset, "__len__"):
        raise TwinflowError(
            "preview.prompts is empty, and streamed data has no first captions: name prompts, or set "
            "preview.every to 0"
        )
    first = range(0 if settings.prompts else min(settings.count, len(dataset)))
    return Previewer(
        settings,
        cast(Drawable, pipe),
        prompts=list(settings.prompts) or examples.captions(first),
        unconditional=recipe.unconditional_prompt,
        device=device,
    )
