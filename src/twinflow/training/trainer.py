"""The trainer: an objective, a pipeline and data, in steps that can be interrupted at any moment."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from rich.console import Console
from torch import Tensor, nn

from twinflow.config import Recipe
from twinflow.data.cache import CachedRows
from twinflow.data.loader import EncodedBatch, Examples, OnlineExamples, cached_in_memory, order_of
from twinflow.data.rows import CachedExamples
from twinflow.errors import TwinflowError
from twinflow.objectives import STUDENT, Field, Objective, Phase
from twinflow.objectives.discriminator import features_of
from twinflow.objectives.objective import working_dtype
from twinflow.training.accountant import Accountant, Budget, Holdings
from twinflow.training.averages import Averages
from twinflow.training.ema import trained_parameters
from twinflow.training.finite import FiniteGuard
from twinflow.training.interrupt import Interruption, this_command
from twinflow.training.metrics import MetricWindow, MetricWriter
from twinflow.training.networks import Companions, Trained
from twinflow.training.optim import learning_rate
from twinflow.training.parallel import layout_of
from twinflow.training.preview import Previewer, save_grid
from twinflow.training.processes import Processes
from twinflow.training.progress import ProgressDisplay
from twinflow.training.protocols import Dataset, Drawable, Trainable
from twinflow.training.randomness import seed_all
from twinflow.training.run_folder import RunFolder
from twinflow.training.sharded_checkpoint import ShardedCheckpoints
from twinflow.training.shards import sharded_parameters
from twinflow.training.state import RunState
from twinflow.training.step import AutocastField, OptimizerStep, to_device
from twinflow.training.watch import AFTER, Prediction, measured_peak
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
        self.processes = Processes.current()
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
        self.objective.set_shard(self.processes.rank, self.processes.world_size)
        self.examples = self._encode()
        self.previewer = self._previewer()
        if self.layout.sharded:
            self._visit_sizes()
        self.layout.place(network)  # before anything is copied: of copies there are slices alone then
        self.averages = Averages.of(network, recipe.ema, teacher=getattr(self.objective, "teacher", "self"))
        student = Trained.of(network, recipe.optimizer, seed=recipe.train.seed)
        self.companions = Companions(
            self.objective,
            network,
            recipe.optimizer,
            teacher=self.averages.teacher,
            features=self._features,
            seed=recipe.train.seed,
        )
        if recipe.train.compile:
            network.compile()
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
            order=order_of(
                self.dataset,
                batch=recipe.train.batch,
                seed=recipe.train.seed,
                rank=self.processes.rank,
                world_size=self.processes.world_size,
            ),
            generator=seed_all(recipe.train.seed, self.processes.rank),
            processes=self.processes,
            device=self.device,
        )
        teacher = self.averages.teacher
        self._step = OptimizerStep(
            field=self._watched(STUDENT, self.pipe.field),
            teacher=None if teacher is None else self._watched("teacher", self.pipe.field_of(teacher)),
            objective=self.objective,
            trained={STUDENT: student, **self.companions.trained},
            networks=self.companions.given(
                lambda name, network: self._watched(name, self.pipe.field_of(network))
            ),
            layout=self.layout,
            guard=self.guard,
            generator=self.state.generator,
            clip=recipe.optimizer.clip,
            dropout=getattr(network, "dropout", nullcontext),
            offload=recipe.train.offload,
        )
        self._sharded_checkpoints: ShardedCheckpoints | None = None
        if self.layout.sharded:
            self._sharded_checkpoints = ShardedCheckpoints(
                self.folder.checkpoints, self.processes, background=recipe.checkpoint.background
            )
        if self._checkpoint is not None:
            self.state.restore(self._checkpoint)
        if self.processes.is_main:
            self.folder.claim()

    def _autocast(self, field: Field) -> Field:
        if self.recipe.train.precision == "fp32":
            return field
        return AutocastField(field, device=self.device, dtype=torch.bfloat16)

    def _watched(self, name: str, field: Field) -> Field:
        """``field`` in the precision of the run; its evaluations are counted as those of the network ``name``."""
        field = self._autocast(field)
        return field if self.accountant is None else self.accountant.field(name, field)

    @torch.no_grad()
    def _features(self, network: nn.Module) -> list[Tensor]:
        """What ``network`` shows of the first example."""
        one = self.examples.batch([0], None)
        x, cond = to_device(one.x, self.device), to_device(one.cond, self.device)
        field = self._autocast(self.pipe.field_of(network))
        t = torch.ones(1, dtype=working_dtype(x), device=self.device)
        return features_of(field, x, t, cond, dtype=x.dtype)

    def _encode(self) -> Examples:
        data, unconditional = self.recipe.data, self.recipe.unconditional_prompt
        seed = self.recipe.train.seed
        if isinstance(self.dataset, CachedRows):
            return CachedExamples(self.dataset, seed=seed)
        if not data.cache:
            return OnlineExamples(
                self.dataset,
                self.pipe,
                unconditional=unconditional,
                seed=seed,
                together=data.encode_batch,
                guided=getattr(self.objective, "guidance", 1) > 0,
            )
        self._display.start("encoding", total=len(self.dataset), unit="examples")
        cache = cached_in_memory(
            self.dataset,
            self.pipe,
            unconditional=unconditional,
            seed=seed,
            together=data.encode_batch,
            progress=lambda done, _: self._display.update(done),
        )
        self._display.stop()
        return cache

    def _visit_sizes(self) -> None:
        """Encode an example of each size: a pipeline learns of a size from a call of its network, which can't be made
        in one process alone once the network is cut."""
        if not isinstance(self.examples, OnlineExamples):
            return
        buckets: Sequence[int] = getattr(self.dataset, "bucket_of", ())
        if len(buckets) > 0:
            for row in {bucket: row for row, bucket in enumerate(buckets)}.values():
                self.examples.batch([row])
            return
        places = order_of(self.dataset, batch=1, seed=self.recipe.train.seed).next_places()
        self.examples.batch(places.rows, epochs=places.epochs)

    def _previewer(self) -> Previewer | None:
        settings = self.recipe.preview
        if settings.every == 0 or not (self.processes.is_main or self.layout.sharded):
            return None
        if not (hasattr(self.pipe, "decode") and hasattr(self.pipe, "latent_shape")):
            raise TwinflowError(
                f"preview.every = {settings.every}, but what is trained can't draw: set it to 0"
            )
        if not settings.prompts and not hasattr(self.dataset, "__len__"):
            raise TwinflowError(
                "preview.prompts is empty, and streamed data has no first captions: name prompts, or set "
                "preview.every to 0"
            )
        first = range(0 if settings.prompts else min(settings.count, len(self.dataset)))
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
        self._logged = (self.state.step, time.monotonic())
        if self._checkpoint is not None:
            done = f"; to train on, raise train.steps above {total}" if self.state.step >= total else ""
            self._display.line(f"resumed at step {self.state.step} from {self._checkpoint}{done}")
        if self.prediction is not None:
            self._display.line(self.prediction.line)
        self._display.start("training", total=total, now=self.state.step)
        first = self.state.step
        saved = self.state.step if self._checkpoint is not None else None
        try:
            while self.state.step < total and not self._spent():
                if self.processes.any(interruption.requested, self.device):
                    break
                self._make_step()
                if self._sharded_checkpoints is not None:
                    self._sharded_checkpoints.finish(wait=False)
                if self.prediction is not None and self.state.step - first == AFTER:
                    measured = measured_peak(self.device)
                    self._display.line(self.prediction.beside(measured, device=self.device))
                if self.state.step % recipe.log.every == 0 or self.state.step == total:
                    self._log()
                if recipe.checkpoint.every and self.state.step % recipe.checkpoint.every == 0:
                    self._save()
                    saved = self.state.step
                if recipe.preview.every and (
                    self.state.step % recipe.preview.every == 0 or self.state.step == total
                ):
                    self._preview()
            if saved != self.state.step:
                self._save()
            if self._sharded_checkpoints is not None:
                self._sharded_checkpoints.finish()
        finally:
            if self._writer is not None:
                self._writer.close()
        self._display.stop()
        if self.state.step < total and not self._spent():
            self._display.line(
                f"interrupted: step {self.state.step} of {total} is saved in {self._checkpoint}\n"
                f"to go on: {self._command}"
            )
            return self._result("interrupted", pipeline=None)
        if self.state.step > first or not self.folder.pipeline.exists():
            self._save_pipeline()
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
                self._micro_batches(),
                phase=phase,
                count=train.accumulate,
                lr=lr,
            )
        if STUDENT in phase.trains:
            self.averages.update()
            self.companions.student_moved()
        for result in results:
            self._window.add(result)
        self._window.add_gradient(norm)
        self.state.step += 1
        self.state.seconds += time.monotonic() - started
        self._display.update(self.state.step)

    def _counted(self, phase: Phase) -> AbstractContextManager[None]:
        if self.accountant is None:
            return nullcontext()
        train = self.recipe.train
        images = train.batch * train.accumulate * self.processes.world_size
        return self.accountant.step(phase.name, images=images)

    def _spent(self) -> bool:
        """Whether the budget is used up, for any of the processes."""
        if self.budget is None or self.accountant is None:
            return False
        return self.processes.any(self.accountant.exhausted(self.budget), self.device)

    def holdings(self) -> Holdings:
        """What the run holds in memory."""
        return self.companions.holdings(self._step.trained, self.averages)

    def _micro_batches(self) -> Iterator[EncodedBatch]:
        for _ in range(self.recipe.train.accumulate):
            places = self.state.order.next_places()
            dropped = None
            if self.recipe.caption_dropout > 0:
                draws = torch.rand(len(places.rows), generator=self.state.generator)
                dropped = draws < self.recipe.caption_dropout
            batch = self.examples.batch(places.rows, dropped, epochs=places.epochs)
            if isinstance(self.examples, OnlineExamples):
                self.examples.expect(self.state.order)
            yield EncodedBatch(
                x=to_device(batch.x, self.device),
                cond=to_device(batch.cond, self.device),
                uncond=to_device(batch.uncond, self.device),
            )

    # Watching

    def _metric_writer(self) -> MetricWriter | None:
        if not self.processes.is_main:
            return None
        return MetricWriter(self.folder.path, tensorboard=self.recipe.log.tensorboard, start=self.state.step)

    def _log(self) -> None:
        train = self.recipe.train
        values = self._window.close()
        step, moment = self._logged
        self._logged = (self.state.step, time.monotonic())
        rows = (self.state.step - step) * train.batch * train.accumulate * self.processes.world_size
        values["lr"] = learning_rate(self.recipe.optimizer, self.state.step - 1, train.steps)
        values["rows_per_second"] = rows / max(self._logged[1] - moment, 1e-9)
        values["seconds"] = self.state.seconds
        if self._writer is not None:
            self._writer.write(self.state.step, values)
        self._display.log(self.state.step, values)

    def _preview(self) -> None:
        if self.previewer is None:
            return
        network = self.pipe.network if self.averages.drawn is None else self.averages.drawn.network
        grids = self.previewer.draw(self._autocast(self.pipe.field_of(network)))
        if self._writer is None:
            return
        for nfe, grid in grids.items():
            save_grid(grid, self.folder.previews / f"step_{self.state.step:08}_nfe_{nfe:03}.png")
            self._writer.picture(self.state.step, f"nfe_{nfe}", grid)

    # Saving

    def _save(self) -> None:
        self.guard.check(wait=True)
        snapshot = self.state.snapshot()
        if self._sharded_checkpoints is not None:
            parameters = sharded_parameters(self.pipe.network)
            self._checkpoint = self._sharded_checkpoints.save(self.state.step, snapshot, parameters)
            return
        if self.processes.is_main:
            self._checkpoint = self.folder.checkpoints.save(self.state.step, snapshot)
        self.processes.barrier()

    def _save_pipeline(self) -> None:
        self.guard.check(wait=True)
        with self.layout.whole(self.pipe.network, self.averages.drawn, keep=self.processes.is_main):
            if self.processes.is_main:
                self.folder.save_pipeline(self.pipe, None if self.layout.sharded else self.averages.drawn)
        self.processes.barrier()

    def _result(self, status: Literal["finished", "interrupted"], *, pipeline: Path | None) -> RunResult:
        return RunResult(
            status=status,
            step=self.state.step,
            seconds=self.state.seconds,
            output=self.folder.path,
            checkpoint=self._checkpoint,
            pipeline=pipeline,
        )
