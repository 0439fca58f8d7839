"""The trainer: an objective, a pipeline and data, in steps that can be interrupted at any moment."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from rich.console import Console
from torch import Tensor

from twinflow.config import Recipe
from twinflow.data.loader import EncodedBatch, Examples, LatentCache, OnlineExamples, ShuffledOrder
from twinflow.errors import TwinflowError
from twinflow.objectives import Field, Objective
from twinflow.training.checkpoint import Snapshot, explained, read_checkpoint, replace_folder
from twinflow.training.ema import ParameterAverage, trained_parameters
from twinflow.training.finite import FiniteGuard
from twinflow.training.interrupt import Interruption, this_command
from twinflow.training.metrics import MetricWindow, MetricWriter
from twinflow.training.optim import Optimizers, learning_rate
from twinflow.training.preview import Previewer, save_grid
from twinflow.training.processes import Processes
from twinflow.training.progress import ProgressDisplay
from twinflow.training.protocols import Dataset, Drawable, Trainable
from twinflow.training.randomness import random_state, restore_random_state, seed_all
from twinflow.training.run_folder import RunFolder
from twinflow.training.step import AutocastField, OptimizerStep
from twinflow.training.weights import load_weights, trained_weights


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended."""

    status: Literal["finished", "interrupted"]
    step: int  # optimiser steps made, with those before a resume
    seconds: float  # of training, likewise
    output: Path
    checkpoint: Path | None
    pipeline: Path | None  # the saved pipeline; None if interrupted


class Trainer:
    """Trains ``pipe.network`` as ``recipe`` says.

    >>> Trainer(load_recipe("recipe.yaml"), pipe, dataset).run()        # doctest: +SKIP

    ``objective``: another than the recipe's. ``resume``: see :meth:`RunFolder.resume_from`. ``command``: what
    the user types to go on, for the message after Ctrl-C.
    """

    def __init__(
        self,
        recipe: Recipe,
        pipe: Trainable,
        dataset: Dataset,
        *,
        objective: Objective | None = None,
        resume: str | Path = "auto",
        command: str | None = None,
        console: Console | None = None,
    ) -> None:
        self.recipe, self.pipe, self.dataset = recipe, pipe, dataset
        self.objective: Objective = objective if objective is not None else recipe.build_objective()
        self.folder = RunFolder(recipe)
        self.processes = Processes.current()
        self.step = 0
        self.seconds = 0.0
        self._checkpoint = self.folder.resume_from(resume)  # refuses before any work is done
        self._command = command or this_command()
        self._display = ProgressDisplay(console=console, quiet=not self.processes.is_main)

    def run(self) -> RunResult:
        """Train until the recipe's last step, or until the user interrupts."""
        try:
            self._prepare()  # a Ctrl-C stops this at once: there is nothing to save yet
            with Interruption() as interruption:
                return self._train(interruption)
        except (TwinflowError, OSError) as error:
            kept = self.folder.checkpoints.latest()
            note = f"the last checkpoint is {kept}" if kept else "no checkpoint was written yet"
            raise TwinflowError(f"{error}\n{note}") from error
        finally:
            self._display.stop()

    # Setting up

    def _prepare(self) -> None:
        recipe, network = self.recipe, self.pipe.network
        if recipe.train.threads:
            torch.set_num_threads(recipe.train.threads)
        self.parameters = trained_parameters(network)
        if not self.parameters:
            raise TwinflowError("nothing is trained: no parameter of the network has requires_grad")
        self.device = next(iter(self.parameters.values())).device
        network.eval()  # dropout off: student and teacher are compared row by row
        # Copies of the initial weights: made before a checkpoint changes these.
        self.average, self.teacher_average, teacher = self._copies()
        if recipe.train.compile:
            network.compile()
        self.optimizers = Optimizers(self.parameters, recipe.optimizer)
        self.objective.set_shard(self.processes.rank, self.processes.world_size)
        self.examples = self._encode()
        self.order = ShuffledOrder(
            len(self.dataset),
            batch=recipe.train.batch,
            seed=recipe.train.seed,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
        )
        with torch.no_grad():
            prompt = recipe.unconditional_prompt
            self.uncond = None if prompt is None else self.pipe.encode_prompts([prompt])
        self.previewer = self._previewer()
        self.guard = FiniteGuard()
        self.generator = seed_all(recipe.train.seed, self.processes.rank)
        self._step = OptimizerStep(
            field=self._autocast(self.pipe.field),
            teacher=None if teacher is None else self._autocast(teacher),
            objective=self.objective,
            optimizers=self.optimizers,
            parameters=list(self.parameters.values()),
            processes=self.processes,
            guard=self.guard,
            generator=self.generator,
            clip=recipe.optimizer.clip,
        )
        if self._checkpoint is not None:
            self._restore(self._checkpoint)
        if self.processes.is_main:
            self.folder.claim()

    def _copies(self) -> tuple[ParameterAverage | None, ParameterAverage | None, Field | None]:
        """The average to draw with and save, the teacher's average, and the teacher's field."""
        network, ema = self.pipe.network, self.recipe.ema
        average = ParameterAverage(network, decay=ema.decay) if ema.decay > 0 else None
        kind = getattr(self.objective, "teacher", "self")
        if kind == "ema":
            shared = average if ema.decay == ema.teacher_decay else None
            teacher = shared or ParameterAverage(network, decay=ema.teacher_decay)
            return average, teacher, self.pipe.field_of(teacher.network)
        if kind == "frozen":
            frozen = copy.deepcopy(network).requires_grad_(False)
            return average, None, self.pipe.field_of(frozen)
        return average, None, None

    def _averages(self) -> dict[str, ParameterAverage]:
        """By file of a checkpoint; one that serves both ends once."""
        averages = {}
        if self.average is not None:
            averages["average"] = self.average
        if self.teacher_average is not None and self.teacher_average is not self.average:
            averages["teacher"] = self.teacher_average
        return averages

    def _autocast(self, field: Field) -> Field:
        if self.recipe.train.precision == "fp32":
            return field
        return AutocastField(field, device=self.device, dtype=torch.bfloat16)

    def _encode(self) -> Examples:
        data, unconditional = self.recipe.data, self.recipe.unconditional_prompt
        if not data.cache:
            return OnlineExamples(self.dataset, self.pipe, unconditional=unconditional)
        self._display.start("encoding", total=len(self.dataset), unit="examples")
        cache = LatentCache.of(
            self.dataset,
            self.pipe,
            unconditional=unconditional,
            batch=data.encode_batch,
            progress=lambda done, _: self._display.update(done),
        )
        self._display.stop()
        return cache

    def _previewer(self) -> Previewer | None:
        settings = self.recipe.preview
        if settings.every == 0 or not self.processes.is_main:
            return None
        if not (hasattr(self.pipe, "decode") and hasattr(self.pipe, "latent_shape")):
            raise TwinflowError(
                f"preview.every = {settings.every}, but what is trained can't draw: set it to 0"
            )
        first = range(min(settings.count, len(self.dataset)))
        return Previewer(
            settings,
            cast(Drawable, self.pipe),
            prompts=list(settings.prompts) or self.examples.captions(first),
            unconditional=self.recipe.unconditional_prompt,
            device=self.device,
        )

    # Training

    def _train(self, interruption: Interruption) -> RunResult:
        recipe, total = self.recipe, self.recipe.train.steps
        self._window = MetricWindow()
        self._writer = self._metric_writer()
        self._logged = (self.step, time.monotonic())
        if self._checkpoint is not None:
            done = f"; to train on, raise train.steps above {total}" if self.step >= total else ""
            self._display.line(f"resumed at step {self.step} from {self._checkpoint}{done}")
        self._display.start("training", total=total, now=self.step)
        first = self.step
        saved = self.step if self._checkpoint is not None else None
        try:
            while self.step < total and not self.processes.any(interruption.requested, self.device):
                self._make_step()
                if self.step % recipe.log.every == 0 or self.step == total:
                    self._log()
                if recipe.checkpoint.every and self.step % recipe.checkpoint.every == 0:
                    self._save()
                    saved = self.step
                if recipe.preview.every and (self.step % recipe.preview.every == 0 or self.step == total):
                    self._preview()
            if saved != self.step:
                self._save()
        finally:
            if self._writer is not None:
                self._writer.close()
        self._display.stop()
        if self.step < total:
            self._display.line(
                f"interrupted: step {self.step} of {total} is saved in {self._checkpoint}\n"
                f"to go on: {self._command}"
            )
            return self._result("interrupted", pipeline=None)
        if self.step > first or not self.folder.pipeline.exists():
            self._save_pipeline()
        return self._result("finished", pipeline=self.folder.pipeline)

    def _make_step(self) -> None:
        started = time.monotonic()
        train = self.recipe.train
        lr = learning_rate(self.recipe.optimizer, self.step, train.steps)
        results, norm = self._step(
            self.step + 1, self._micro_batches(), count=train.accumulate, uncond=self.uncond, lr=lr
        )
        if self.average is not None:
            self.average.update()
        if self.teacher_average is not None and self.teacher_average is not self.average:
            self.teacher_average.update()
        for result in results:
            self._window.add(result)
        self._window.add_gradient(norm)
        self.step += 1
        self.seconds += time.monotonic() - started
        self._display.update(self.step)

    def _micro_batches(self) -> Iterator[EncodedBatch]:
        for _ in range(self.recipe.train.accumulate):
            rows = self.order.next_rows()
            dropped = None
            if self.recipe.caption_dropout > 0:
                dropped = torch.rand(len(rows), generator=self.generator) < self.recipe.caption_dropout
            batch = self.examples.batch(rows, dropped)
            yield EncodedBatch(x=_to(batch.x, self.device), cond=_to(batch.cond, self.device))

    # Watching

    def _metric_writer(self) -> MetricWriter | None:
        if not self.processes.is_main:
            return None
        return MetricWriter(self.folder.path, tensorboard=self.recipe.log.tensorboard, start=self.step)

    def _log(self) -> None:
        train = self.recipe.train
        values = self._window.close()
        step, moment = self._logged
        self._logged = (self.step, time.monotonic())
        rows = (self.step - step) * train.batch * train.accumulate * self.processes.world_size
        values["lr"] = learning_rate(self.recipe.optimizer, self.step - 1, train.steps)
        values["rows_per_second"] = rows / max(self._logged[1] - moment, 1e-9)
        values["seconds"] = self.seconds
        if self._writer is not None:
            self._writer.write(self.step, values)
        self._display.log(self.step, values)

    def _preview(self) -> None:
        if self.previewer is None or self._writer is None:
            return
        network = self.pipe.network if self.average is None else self.average.network
        grids = self.previewer.draw(self._autocast(self.pipe.field_of(network)))
        for nfe, grid in grids.items():
            save_grid(grid, self.folder.previews / f"step_{self.step:08}_nfe_{nfe:03}.png")
            self._writer.picture(self.step, f"nfe_{nfe}", grid)

    # Saving

    def _save(self) -> None:
        self.guard.check(wait=True)
        snapshot = self._snapshot()
        if self.processes.is_main:
            self._checkpoint = self.folder.checkpoints.save(self.step, snapshot)
        self.processes.barrier()

    def _snapshot(self) -> Snapshot:
        optimizer, scalars = self.optimizers.state_dict()
        tensors = {"weights": trained_weights(self.pipe.network), "optimizer": optimizer}
        for rank, state in enumerate(self.processes.gather(random_state(self.generator), self.device)):
            tensors[f"random_{rank}"] = state
        numbers: dict[str, Any] = {
            "step": self.step,
            "seconds": self.seconds,
            "order": self.order.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": scalars,
        }
        for name, average in self._averages().items():
            tensors[name], numbers[name] = average.state_dict()
        return Snapshot(tensors=tensors, state=numbers)

    def _restore(self, path: Path) -> None:
        snapshot = read_checkpoint(path)
        tensors, state = snapshot.tensors, snapshot.state
        try:
            load_weights(self.pipe.network, tensors["weights"])
            for name, average in self._averages().items():
                average.load_state_dict(tensors[name], state[name])
            self.optimizers.load_state_dict(tensors["optimizer"], state["optimizer"])
            self.objective.load_state_dict(state["objective"])
            self.order.load_state_dict(state["order"])
            if (
                random := tensors.get(f"random_{self.processes.rank}")
            ) is not None:  # else more processes now
                restore_random_state(self.generator, random)
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise TwinflowError(f"{path} is a checkpoint of another model or run: {error}") from error

    def _save_pipeline(self) -> None:
        """The pipeline with the averaged weights; complete under its name, or not there."""
        self.guard.check(wait=True)
        if self.processes.is_main:
            final, hidden = self.folder.pipeline, self.folder.path / ".writing-pipeline"
            needed = sum(p.numel() * p.element_size() for p in self.pipe.network.parameters())
            with explained(final, needed=needed, leftover=hidden):
                replace_folder(final, hidden, self._write_pipeline)
        self.processes.barrier()

    def _write_pipeline(self, path: Path) -> None:
        if self.average is None:
            self.pipe.save_pretrained(path)
            return
        self.average.swap()
        try:
            self.pipe.save_pretrained(path)
        finally:
            self.average.swap()

    def _result(self, status: Literal["finished", "interrupted"], *, pipeline: Path | None) -> RunResult:
        return RunResult(
            status=status,
            step=self.step,
            seconds=self.seconds,
            output=self.folder.path,
            checkpoint=self._checkpoint,
            pipeline=pipeline,
        )


def _to(value: Any, device: torch.device) -> Any:
    """A condition or tensor on ``device``."""
    if value is None:
        return None
    if isinstance(value, Tensor) or hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _to(item, device) for key, item in value.items()}
    return type(value)(_to(item, device) for item in value)
