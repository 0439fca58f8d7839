"""Run a comparison: tune, train and score every method; what is done is not done again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from twinflow.config import Recipe
from twinflow.data.shapeworld import ShapeWorldDataset
from twinflow.errors import TwinflowError, check_place
from twinflow.evaluation.frechet import FeatureStatistics, frechet_distance, image_statistics
from twinflow.evaluation.models import load_model
from twinflow.evaluation.pictures import read_pixels
from twinflow.evaluation.protocols import run_facts
from twinflow.evaluation.results import EvaluationTable
from twinflow.evaluation.runner import evaluate_pipeline
from twinflow.evaluation.samplers import Sampler, sampler_for
from twinflow.evaluation.shapeworld_benchmark import ShapeWorldBenchmark
from twinflow.lab.leaderboard import Leaderboard
from twinflow.lab.outcome import Outcome
from twinflow.lab.page import leaderboard_page
from twinflow.lab.settings import Lab
from twinflow.lab.steps import probe_steps, steps_within
from twinflow.launch import build_trainer
from twinflow.recipes.objective import resolve_objective
from twinflow.report import write_report
from twinflow.training import Trainer
from twinflow.training.accountant import Accountant, Budget
from twinflow.training.checkpoint import replace_text

REAL_PICTURES = 2000  # that generated ones are compared with
REAL_SEED = 1_000_003  # of no training set


class Interrupted(Exception):
    """The user stopped a run; the same command goes on."""


def run_lab(lab: Lab, *, console: Console | None = None) -> Leaderboard | None:
    """All runs of ``lab``, then the leaderboard in its folder. ``None`` if the user interrupted.

    Every finished run has an ``outcome.json``, and every search a ``search.json``, that are not made again.
    """
    return _Comparison(lab, console or Console()).run()


class _Comparison:
    def __init__(self, lab: Lab, console: Console) -> None:
        self.lab, self.console = lab, console
        self.folder = Path(lab.output)
        settings = lab.evaluation
        self.benchmark = ShapeWorldBenchmark(
            settings.level, images_per_task=settings.images_per_task, seed=settings.seed
        )
        self._real: FeatureStatistics | None = None

    def run(self) -> Leaderboard | None:
        self._claim()
        base = self._base()
        outcomes: list[Outcome] = []
        partial: dict[str, Outcome] = {}
        try:
            for number, method in enumerate(self.lab.methods, 1):
                self.console.print(f"[bold]{number}/{len(self.lab.methods)}[/] {method}")
                choice = self._search(method)
                partial |= self._partial(method)
                for seed in self.lab.seeds:
                    folder = self.folder / method / f"seed_{seed}"
                    outcomes.append(self._outcome(method, seed, folder, choice))
        except Interrupted:
            return None
        board = Leaderboard.of(
            base,
            outcomes,
            compared_with=self.lab.compared_with,
            facts=self._facts(),
            nfe=self.lab.evaluation.nfe,
            partial=partial,
        )
        board.save(self.folder)
        table = EvaluationTable(
            benchmark="shapeworld", rows=list(base.rows), protocol=self.benchmark.protocol | run_facts()
        )
        table.rows += [row for o in outcomes if o.seed == self.lab.seeds[0] for row in o.rows]
        table.save(self.folder / "table.json")
        write_report(self.folder, table)
        replace_text(self.folder / "leaderboard.html", leaderboard_page(self.folder, board, table))
        return board

    # The parts

    def _claim(self) -> None:
        """Refuse a folder with another comparison."""
        check_place(self.folder, name="output")
        file = self.folder / "lab.json"
        now = json.loads(json.dumps(self.lab.model_dump(mode="json")))
        former = json.loads(file.read_text()) if file.is_file() else now
        # More methods and seeds may be added to a comparison. A former version may have had fewer keys.
        for key in now.keys() - {"methods", "seeds", "output"}:
            if former.get(key) != now[key]:
                raise TwinflowError(
                    f"{self.folder} holds another comparison: its {key} is {former.get(key)}, and here it is "
                    f"{now[key]}. Choose another output"
                )
        if former["seeds"][0] != now["seeds"][0]:  # the search's, and that of the pictures
            raise TwinflowError(
                f"{self.folder} holds another comparison: the first of its seeds is {former['seeds'][0]}, and "
                f"here it is {now['seeds'][0]}. Add seeds behind it, or choose another output"
            )
        for name in former["methods"].keys() & now["methods"].keys():
            if not _same_method(former["methods"][name], now["methods"][name]):
                raise TwinflowError(
                    f"{self.folder} holds another methods.{name}: choose another name or output"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        known = now | {"methods": former["methods"] | now["methods"]}  # outcomes of those left out stay too
        replace_text(file, json.dumps(known, indent=1) + "\n")

    def _facts(self) -> dict[str, Any]:
        budget = self.lab.budget
        return {
            "budget": f"{budget.amount:g} {budget.unit} a run",
            "seeds": list(self.lab.seeds),
            "search": self.lab.search.model_dump(mode="json"),
            **self.benchmark.protocol,
            **run_facts(),
        }

    def _base(self) -> Outcome:
        file = self.folder / "base" / "outcome.json"
        if file.is_file():
            return Outcome.load(file)
        model = self.lab.recipe(
            next(iter(self.lab.methods)), seed=0, steps=1, folder=self.folder / "base"
        ).model
        outcome = Outcome(method="base", seed=0, status="finished")
        numbers = dict.fromkeys((self.lab.evaluation.base_nfe, *self.lab.evaluation.nfe))
        pipe = load_model(model.path)
        for nfe in numbers:
            self._score(outcome, pipe, sampler_for(pipe, nfe))
        outcome.save(file)
        return outcome

    def _search(self, method: str) -> dict[str, Any]:
        """The combination with the best score in one step, on the first seed with a part of the budget."""
        choices, file = self.lab.choices(), self.folder / method / "search.json"
        if len(choices) == 1:
            return choices[0]
        if file.is_file():
            return json.loads(file.read_text())["chosen"]
        tried: list[dict[str, Any]] = []
        for number, choice in enumerate(choices):
            folder = self.folder / method / f"search_{number}"
            outcome = self._outcome(method, self.lab.seeds[0], folder, choice, share=self.lab.search.share)
            row = outcome.row(self.lab.evaluation.nfe[0])
            tried.append(
                {"choice": choice, "score": -1.0 if row is None or row.overall is None else row.overall}
            )
        best = max(tried, key=lambda entry: entry["score"])
        replace_text(file, json.dumps({"chosen": best["choice"], "tried": tried}, indent=1) + "\n")
        return best["choice"]

    def _partial(self, method: str) -> dict[str, Outcome]:
        """The chosen run of the search, which had a part of the budget; none without a search."""
        file = self.folder / method / "search.json"
        if not file.is_file() or self.lab.search.share == 1:
            return {}
        found = json.loads(file.read_text())
        number = [entry["choice"] for entry in found["tried"]].index(found["chosen"])
        outcome = Outcome.load(self.folder / method / f"search_{number}" / "outcome.json")
        return {method: outcome} if outcome.status == "finished" else {}

    def _outcome(
        self, method: str, seed: int, folder: Path, choice: dict[str, Any], *, share: float = 1.0
    ) -> Outcome:
        file = folder / "outcome.json"
        if file.is_file():
            return Outcome.load(file)
        budget = self.lab.budget_of(share)
        outcome = Outcome(method=method, seed=seed, status="finished", choice=choice)
        steps = self._steps(outcome, folder, budget)
        if steps is not None:
            recipe = self.lab.recipe(method, seed=seed, steps=steps, folder=folder / "run", choice=choice)
            self._train(outcome, recipe, budget)
        if outcome.status == "finished":
            pipe = load_model(str(folder / "run" / "pipeline"))
            for nfe in self.lab.evaluation.nfe:
                sampler = Sampler(nfe=nfe, options=dict(self.lab.methods[method].sampler))
                self._score(outcome, pipe, sampler)
        outcome.save(file)
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
        file = folder / "steps.json"
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
        units = ("steps", "images", "rows", "flops", "seconds")
        outcome.costs = {unit: accountant.total(unit) for unit in units}  # type: ignore[arg-type]
        outcome.costs["peak_memory"] = accountant.peak_memory()
        outcome.per_image = accountant.per_image()
        outcome.phases = accountant.state_dict()["phases"]
        outcome.holdings = asdict(trainer.holdings())

    def _score(self, outcome: Outcome, pipe: Any, sampler: Sampler) -> None:
        first = outcome.seed == self.lab.seeds[0] or outcome.method == "base"
        home = self.folder if first else self.folder / outcome.method / f"seed_{outcome.seed}"
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


def _same_method(former: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two sections of ``methods`` train the same, be their objectives written out or named by a preset."""
    if former == now:
        return True
    rest = [{key: value for key, value in m.items() if key != "objective"} for m in (former, now)]
    try:
        objectives = [resolve_objective(m["objective"]) for m in (former, now)]
    except ValueError:  # one that this version doesn't know
        return False
    return rest[0] == rest[1] and objectives[0] == objectives[1]


COARSE = "means of 8 x 8 patches"


def coarse_pixels(images: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) as the means of 8 x 8 patches of them, (N, 192): layout and colour, no network."""
    return torch.nn.functional.adaptive_avg_pool2d(images, 8).flatten(1)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
