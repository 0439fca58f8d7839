"""One run of a comparison: train a method within its budget, score it, leave its outcome."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from twinflow.config import Recipe
from twinflow.data.shapeworld import ShapeWorldDataset
from twinflow.errors import TwinflowError
from twinflow.evaluation.frechet import FeatureStatistics, frechet_distance, image_statistics
from twinflow.evaluation.models import load_model
from twinflow.evaluation.pictures import read_pixels
from twinflow.evaluation.runner import evaluate_pipeline
from twinflow.evaluation.samplers import Sampler, sampler_for
from twinflow.evaluation.shapeworld_benchmark import ShapeWorldBenchmark
from twinflow.lab.outcome import Outcome
from twinflow.lab.settings import Lab
from twinflow.lab.steps import probe_steps, steps_within
from twinflow.launch import build_trainer
from twinflow.training import Trainer
from twinflow.training.accountant import Accountant, Budget, Unit
from twinflow.training.checkpoint import replace_text

REAL_PICTURES = 2000  # that generated ones are compared with
REAL_SEED = 1_000_003  # of no training set
STEPS = "steps.json"  # how many the budget is good for
COARSE = "means of 8 x 8 patches"


class Interrupted(Exception):
    """The user stopped a run; the same command goes on."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one run is of, and where its files lie."""

    method: str
    seed: int
    folder: Path
    choice: dict[str, Any] = field(default_factory=dict)  # of the search
    share: float = 1.0  # of the budget
    pictures: Path  # the folder of the pictures' folders
    like: Path | None = (
        None  # the folder of a run of the same method, choice and budget, which has as many steps
    )

    @property
    def file(self) -> Path:
        return self.folder / "outcome.json"

    @property
    def name(self) -> str:
        """Of its folder: ``twinflow/seed_0``."""
        return f"{self.folder.parent.name}/{self.folder.name}"


class Trials:
    """Makes the runs of ``lab``, each once; ``jobs`` of them share the machine."""

    def __init__(self, lab: Lab, *, console: Console, jobs: int = 1) -> None:
        self.lab, self.console, self.jobs = lab, console, jobs
        settings = lab.evaluation
        self.benchmark = ShapeWorldBenchmark(
            settings.level, images_per_task=settings.images_per_task, seed=settings.seed
        )
        self._real: FeatureStatistics | None = None

    def base(self) -> Outcome:
        """The scores of the model that all start from."""
        folder = Path(self.lab.output)
        file = folder / "base" / "outcome.json"
        if file.is_file():
            return Outcome.load(file)
        any_method = next(iter(self.lab.methods))
        model = self.lab.recipe(any_method, seed=0, steps=1, folder=folder / "base").model
        outcome = Outcome(method="base", seed=0, status="finished")
        pipe = load_model(model.path)
        for nfe in dict.fromkeys((self.lab.evaluation.base_nfe, *self.lab.evaluation.nfe)):
            self._score(outcome, pipe, sampler_for(pipe, nfe), folder)
        outcome.save(file)
        return outcome

    def outcome(self, trial: Trial) -> Outcome:
        """What ``trial`` came to; it is made unless it was. :class:`Interrupted` if the user stops it."""
        if trial.file.is_file():
            return Outcome.load(trial.file)
        folder, budget = trial.folder, self.lab.budget_of(trial.share)
        measured = [home for home in (folder, trial.like) if home and (home / STEPS).is_file()]
        outcome = Outcome(
            method=trial.method, seed=trial.seed, status="finished", choice=trial.choice, jobs=self.jobs
        )
        steps = self._steps(outcome, measured[0] if measured else folder, budget)
        if steps is not None:
            recipe = self.lab.recipe(
                trial.method, seed=trial.seed, steps=steps, folder=folder / "run", choice=trial.choice
            )
            self._train(outcome, recipe, budget)
        if outcome.status == "finished":
            pipe = load_model(str(folder / "run" / "pipeline"))
            for nfe in self.lab.evaluation.nfe:
                sampler = Sampler(nfe=nfe, options=dict(self.lab.methods[trial.method].sampler))
                self._score(outcome, pipe, sampler, trial.pictures)
        outcome.save(trial.file)
        return outcome

    def _train(self, outcome: Outcome, recipe: Recipe, budget: Budget | None) -> Accountant:
        """Run ``recipe``; its steps and costs, or that it diverged, go into ``outcome``."""
        accountant = Accountant(_device())
        trainer = build_trainer(recipe, accountant=accountant, budget=budget, console=self.console)
        try:
            result = trainer.run()
        except TwinflowError as error:
            if "is not finite" not in str(error):
                raise
            outcome.status, outcome.message = "diverged", str(error).splitlines()[0]
        else:
            if result.status == "interrupted":
                raise Interrupted
            outcome.steps = result.step
        self._account(outcome, accountant, trainer)
        return accountant

    def _steps(self, outcome: Outcome, folder: Path, budget: Budget) -> int | None:
        """How many optimiser steps the budget is good for, so that schedules of the learning rate end with it.

        Measured by a few steps, and kept: a resumed run has the same number. ``None`` if these diverged.
        """
        file = folder / STEPS
        if file.is_file():
            return json.loads(file.read_text())["steps"]
        objective = self.lab.recipe(
            outcome.method, seed=0, steps=1, folder=folder, choice=outcome.choice
        ).build_objective()
        recipe = self.lab.recipe(
            outcome.method,
            seed=0,
            steps=probe_steps(objective),
            folder=folder / "probe",
            choice=outcome.choice,
        )
        quiet = {"checkpoint": recipe.checkpoint.model_copy(update={"every": 0})}
        accountant = self._train(outcome, recipe.model_copy(update=quiet), None)
        if outcome.status == "diverged":
            return None
        costs = {name: getattr(phase, budget.unit) / phase.steps for name, phase in accountant.phases.items()}
        steps = steps_within(objective, costs, budget.amount)
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps({"steps": steps, "probe": accountant.state_dict()}, indent=1) + "\n")
        return steps

    def _account(self, outcome: Outcome, accountant: Accountant, trainer: Trainer) -> None:
        units: tuple[Unit, ...] = ("steps", "images", "rows", "flops", "seconds")
        outcome.costs = {unit: accountant.total(unit) for unit in units}
        outcome.costs["peak_memory"] = accountant.peak_memory()
        outcome.per_image = accountant.per_image()
        outcome.phases = accountant.state_dict()["phases"]
        outcome.holdings = asdict(trainer.holdings())

    def _score(self, outcome: Outcome, pipe: Any, sampler: Sampler, home: Path) -> None:
        row = evaluate_pipeline(self.benchmark, pipe, sampler, model=outcome.method, home=home)
        outcome.rows.append(row)
        drawn = image_statistics(
            read_pixels(home / f"{outcome.method}_nfe{sampler.nfe}", self.benchmark.pictures),
            features=coarse_pixels,
            name=COARSE,
        )
        outcome.frechet[str(sampler.nfe)] = frechet_distance(drawn, self._real_statistics())

    def _real_statistics(self) -> FeatureStatistics:
        if self._real is None:
            data = ShapeWorldDataset(self.lab.evaluation.level, length=REAL_PICTURES, seed=REAL_SEED)
            pixels = torch.stack([data[i]["pixels"] for i in range(len(data))])
            self._real = image_statistics([pixels], features=coarse_pixels, name=COARSE)
        return self._real


def coarse_pixels(images: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) as the means of 8 x 8 patches of them, (N, 192): layout and colour, no network."""
    return torch.nn.functional.adaptive_avg_pool2d(images, 8).flatten(1)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
