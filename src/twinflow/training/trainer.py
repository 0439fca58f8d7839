"""The trainer: an objective, a pipeline and data, in steps that can be interrupted at any moment."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from rich.console import Console

from twinflow.config import Recipe
from twinflow.errors import TwinflowError
from twinflow.objectives import STUDENT, Field, Objective, Phase
from twinflow.pipelines.context import check_network, divide_tokens
from twinflow.training.accountant import Accountant, Budget, Holdings
from twinflow.training.averages import Averages
from twinflow.training.compiling import compile_networks
from twinflow.training.ema import trained_parameters
from twinflow.training.feed import Feed
from twinflow.training.fields import Fields
from twinflow.training.finite import FiniteGuard
from twinflow.training.interrupt import Interruption, this_command
from twinflow.training.logbook import Logbook, previewer_of
from twinflow.training.networks import Companions, Trained
from twinflow.training.optim import learning_rate
from twinflow.training.parallel import layout_of, place_of
from twinflow.training.progress import ProgressDisplay
from twinflow.training.protocols import Dataset, Trainable
from twinflow.training.randomness import seed_all
from twinflow.training.run_folder import RunFolder
from twinflow.training.saver import Saver
from twinflow.training.state import RunState
from twinflow.training.step import OptimizerStep
from twinflow.training.watch import AFTER, Prediction, begin_measuring, measured_peak
from twinflow.training.weights import freeze_unused, leave_device


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
    the user types to go on, for the message after Ctrl-C. ``accountant``: counts what the run costs; with a
    ``budget`` the run is finished, as after its last step, when that much has been spent.
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
        accountant: Accountant | None = None,
        budget: Budget | None = None,
        prediction: Prediction | None = None,
    ) -> None:
        self.prediction = prediction
        self.recipe, self.pipe, self.dataset = recipe, pipe, dataset
        self.objective: Objective = objective if objective is not None else recipe.build_objective()
        self.folder = RunFolder(recipe)
        self.processes = place_of(recipe, self.objective)
        self._checkpoint = self.folder.resume_from(resume)  # refuses before any work is done
        self.accountant = accountant if accountant is not None or budget is None else Accountant()
        self.budget = budget
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
        for line in freeze_unused(self.pipe):
            self._display.line(line)
        parameters = trained_parameters(network)
        if not parameters:
            raise TwinflowError("nothing is trained: no parameter of the network has requires_grad")
        first = next(iter(parameters.values()))
        self.device = first.device if not first.is_meta else cast(Any, self.pipe).device
        network.eval()  # dropout off: student and teacher are compared row by row
        self.layout = layout_of(recipe, self.objective, self.processes, self.device)
        self.objective.set_shard(self.processes.data_rank, self.processes.data_count)
        if (sharing := self.processes.context) > 1:
            check_network(network, count=sharing)
        self.feed = Feed.of(
            recipe,
            self.pipe,
            self.dataset,
            objective=self.objective,
            display=self._display,
            processes=self.processes,
            device=self.device,
        )
        self.previewer = previewer_of(recipe, self.pipe, self.dataset, self.feed.examples, device=self.device)
        if self.layout.sharded:
            self.feed.visit_sizes()
        self.fields = Fields(
            self.pipe,
            half=recipe.train.precision == "bf16",
            device=self.device,
            accountant=self.accountant,
        )
        self.layout.place(network)  # before anything is copied: of copies there are slices alone then
        self.averages = Averages.of(network, recipe.ema, teacher=getattr(self.objective, "teacher", "self"))
        student = Trained.of(network, recipe.optimizer, seed=recipe.train.seed)
        self.companions = Companions(
            self.objective,
            network,
            recipe.optimizer,
            teacher=self.averages.teacher,
            features=lambda network: self.fields.features(network, self.feed.examples),
            seed=recipe.train.seed,
        )
        if sharing > 1:
            divide_tokens([network, *self.averages.copies()], count=sharing, device=self.device)
        compile_networks([network, *self.averages.copies()], how=recipe.train.compile)
        if recipe.data.cache and self.device.type == "cuda":
            leave_device(
                self.pipe, keep=("transformer",) if self.previewer is None else ("transformer", "vae")
            )
        self.guard = FiniteGuard()
        for own in (student, *self.companions.trained.values()):
            if own.optimizers.in_backward is not None:
                own.optimizers.in_backward.average = self.layout.average
                own.optimizers.in_backward.total = self.layout.total
        self.state = RunState(
            network=network,
            averages=self.averages,
            optimizers=student.optimizers,
            companions=self.companions,
            accountant=self.accountant,
            objective=self.objective,
            order=self.feed.order(self.processes),
            generator=seed_all(recipe.train.seed, self.processes.data_rank),
            processes=self.processes,
            device=self.device,
        )
        teacher = self.averages.teacher
        self._step = OptimizerStep(
            field=self.fields.counted(STUDENT),
            teacher=None if teacher is None else self.fields.counted("teacher", teacher),
            objective=self.objective,
            trained={STUDENT: student, **self.companions.trained},
            networks=self.companions.given(self.fields.counted),
            layout=self.layout,
            guard=self.guard,
            generator=self.state.generator,
            clip=recipe.optimizer.clip,
            dropout=getattr(network, "dropout", nullcontext),
            offload=[network, *self.companions.networks.values()] if recipe.train.offload else None,
            sharing=sharing,
        )
        self.saver = Saver(self.folder, self.layout, self.processes, background=recipe.checkpoint.background)
        for line in self.saver.notes:
            self._display.line(line)
        if self._checkpoint is not None:
            self.state.restore(self._checkpoint)
        self.processes.barrier()  # no one looks any more whether the folder is free
        if self.processes.is_main:
            self.folder.claim(self._checkpoint)

    # Training

    def _train(self, interruption: Interruption) -> RunResult:
        recipe, total = self.recipe, self.recipe.train.steps
        self.logbook = Logbook(recipe, self.folder, self.processes, self._display, self.previewer, self.state)
        if self._checkpoint is not None:
            done = f"; to train on, raise train.steps above {total}" if self.state.step >= total else ""
            self._display.line(f"resumed at step {self.state.step} from {self._checkpoint}{done}")
        if self.prediction is not None:
            self._display.line(self.prediction.line)
            begin_measuring(self.device, self.accountant)
        self._display.start("training", total=total, now=self.state.step)
        first = self.state.step
        saved = self.state.step if self._checkpoint is not None else None
        try:
            while self.state.step < total and not self._spent():
                if self.processes.any(interruption.requested, self.device):
                    break
                self._make_step()
                last = self.state.step == total or self._spent()
                self.saver.finish(wait=False)
                if self.prediction is not None and self.state.step - first == AFTER:
                    measured = measured_peak(self.device)
                    self._display.line(self.prediction.beside(measured, device=self.device))
                if self.state.step % recipe.log.every == 0 or last:
                    self.logbook.log()
                if recipe.checkpoint.every and self.state.step % recipe.checkpoint.every == 0:
                    self._save()
                    saved = self.state.step
                if recipe.preview.every and (self.state.step % recipe.preview.every == 0 or last):
                    self.logbook.preview(self._drawing_field())
            if saved != self.state.step:
                self._save()
            self.saver.finish()
        finally:
            self.logbook.close()
        self._display.stop()
        if self.state.step < total and not self._spent():
            self._display.line(
                f"interrupted: step {self.state.step} of {total} is saved in {self._checkpoint}\n"
                f"to go on: {self._command}"
            )
            return self._result("interrupted", pipeline=None)
        if self.state.step > first or self.processes.any(self.folder.lacks_pipeline(), self.device):
            self.guard.check(wait=True)
            self.saver.pipeline(self.pipe, self.averages)
        self._display.line(f"trained model: {self.folder.pipeline}")
        return self._result("finished", pipeline=self.folder.pipeline)

    def _make_step(self) -> None:
        started = time.monotonic()
        train = self.recipe.train
        lr = learning_rate(self.recipe.optimizer, self.state.step, train.steps)
        phase = self.objective.begin(self.state.step, train.steps)
        self.companions.refresh(phase.refresh)
        with self._counted(phase):
            results, norm = self._step(
                self.state.step + 1,
                self.feed.micro_batches(self.state.order, self.state.generator),
                phase=phase,
                count=train.accumulate,
                lr=lr,
            )
        if STUDENT in phase.trains:
            self.averages.update()
            self.companions.student_moved()
        self.logbook.add(results, norm)
        self.state.step += 1
        self.state.seconds += time.monotonic() - started
        self._display.update(self.state.step)

    def _counted(self, phase: Phase) -> AbstractContextManager[None]:
        if self.accountant is None:
            return nullcontext()
        train = self.recipe.train
        images = train.batch * train.accumulate * self.processes.data_count
        return self.accountant.step(phase.name, images=images)

    def _spent(self) -> bool:
        """Whether the budget is used up, for any of the processes."""
        if self.budget is None or self.accountant is None:
            return False
        return self.processes.any(self.accountant.exhausted(self.budget), self.device)

    def _drawing_field(self) -> Field:
        network = self.pipe.network if self.averages.drawn is None else self.averages.drawn.network
        return self.fields.of(network)

    def holdings(self) -> Holdings:
        """What the run holds in memory."""
        return self.companions.holdings(self._step.trained, self.averages)

    def _save(self) -> None:
        self.guard.check(wait=True)
        self._checkpoint = self.saver.checkpoint(self.state) or self._checkpoint

    def _result(self, status: Literal["finished", "interrupted"], *, pipeline: Path | None) -> RunResult:
        return RunResult(
            status=status,
            step=self.state.step,
            seconds=self.state.seconds,
            output=self.folder.path,
            checkpoint=self._checkpoint,
            pipeline=pipeline,
        )
