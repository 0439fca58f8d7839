"""Run a comparison: tune, train and score every method; what is done is not done again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from twinflow.errors import TwinflowError, check_place
from twinflow.evaluation.protocols import run_facts
from twinflow.evaluation.results import EvaluationTable
from twinflow.lab.jobs import Jobs
from twinflow.lab.leaderboard import Leaderboard
from twinflow.lab.outcome import Outcome
from twinflow.lab.page import leaderboard_page
from twinflow.lab.settings import Lab
from twinflow.lab.trials import Interrupted, Trial, Trials
from twinflow.recipes.objective import resolve_objective
from twinflow.report import write_report
from twinflow.training.checkpoint import replace_text


def run_lab(lab: Lab, *, jobs: int = 1, console: Console | None = None) -> Leaderboard | None:
    """All runs of ``lab``, then the leaderboard in its folder. ``None`` if the user interrupted.

    Every finished run has an ``outcome.json``, and every search a ``search.json``, that are not made again.
    ``jobs`` runs are made at the same time, each in a process of its own; their seconds are then those of a machine
    that they shared. :class:`TwinflowError` if ``jobs`` is not positive, or the budget is of seconds and ``jobs`` > 1.
    """
    if jobs < 1:
        raise TwinflowError(f"--jobs must be at least 1, got {jobs}")
    if jobs > 1 and lab.budget.unit == "seconds":
        raise TwinflowError(
            "budget.unit is seconds, and runs that share a machine have slower ones: leave --jobs out, or choose "
            "another unit"
        )
    return _Comparison(lab, console or Console(), jobs=jobs).run()


class _Comparison:
    def __init__(self, lab: Lab, console: Console, *, jobs: int = 1) -> None:
        self.lab, self.console, self.jobs = lab, console, jobs
        self.folder = Path(lab.output)
        self.trials = Trials(lab, console=console)

    def run(self) -> Leaderboard | None:
        self._claim()
        base = self.trials.base()
        outcomes: list[Outcome] = []
        partial: dict[str, Outcome] = {}
        try:
            if self.jobs > 1:
                self._make_together()
            for number, method in enumerate(self.lab.methods, 1):
                if self.jobs == 1:
                    self.console.print(f"[bold]{number}/{len(self.lab.methods)}[/] {method}")
                choice = self._choice(method)
                partial |= self._partial(method)
                outcomes += [self.trials.outcome(trial) for trial in self._runs(method, choice)]
        except Interrupted:
            return None
        board = Leaderboard.of(
            base,
            outcomes,
            compared_with=self.lab.compared_with,
            facts=self._facts(outcomes),
            nfe=self.lab.evaluation.nfe,
            partial=partial,
        )
        board.save(self.folder)
        table = EvaluationTable(
            benchmark="shapeworld",
            rows=list(base.rows),
            protocol=self.trials.benchmark.protocol | run_facts(),
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

    def _facts(self, outcomes: list[Outcome]) -> dict[str, Any]:
        budget, jobs = self.lab.budget, max(outcome.jobs for outcome in outcomes)
        return {
            "budget": f"{budget.amount:g} {budget.unit} a run",
            "seeds": list(self.lab.seeds),
            "search": self.lab.search.model_dump(mode="json"),
            **({"runs at the same time": jobs} if jobs > 1 else {}),
            **self.trials.benchmark.protocol,
            **run_facts(),
        }

    def _searches(self, method: str) -> list[Trial]:
        """One for each combination of the search, on the first seed; none if there is nothing to choose."""
        choices = self.lab.choices()
        if len(choices) == 1:
            return []
        home, seed, share = self.folder / method, self.lab.seeds[0], self.lab.search.share
        folders = [home / f"search_{number}" for number in range(len(choices))]
        return [
            Trial(method=method, seed=seed, folder=folder, choice=choice, share=share, pictures=folder)
            for folder, choice in zip(folders, choices, strict=True)
        ]

    def _runs(self, method: str, choice: dict[str, Any]) -> list[Trial]:
        """One for each seed. Pictures of the first go into the comparison's own folder, for its pages."""
        whole = self._searches(method) if self.lab.search.share == 1 else []
        like = next((trial.folder for trial in whole if trial.choice == choice), None)
        trials = []
        for number, seed in enumerate(self.lab.seeds):
            folder = self.folder / method / f"seed_{seed}"
            trials.append(
                Trial(
                    method=method,
                    seed=seed,
                    folder=folder,
                    choice=choice,
                    pictures=folder if number else self.folder,
                    like=like,
                )
            )
        return trials

    def _make_together(self) -> None:
        """All runs, :attr:`jobs` at a time: the searches first, then every method's first seed, and so on."""
        open_searches = {
            method: [] if self._search_file(method).is_file() else self._searches(method)
            for method in self.lab.methods
        }
        total = sum(len(trials) + len(self.lab.seeds) for trials in open_searches.values())
        with Jobs(self.lab, self.jobs, total=total, console=self.console) as jobs:
            for method, searches in open_searches.items():

                def searched(method: str = method) -> None:
                    for number, trial in enumerate(self._runs(method, self._choice(method)), 1):
                        jobs.add(trial, priority=number)

                if searches:
                    jobs.add(*searches, then=searched)
                else:
                    searched()
            jobs.run()

    def _search_file(self, method: str) -> Path:
        return self.folder / method / "search.json"

    def _choice(self, method: str) -> dict[str, Any]:
        """The combination with the best score in one step."""
        searches, file = self._searches(method), self._search_file(method)
        if not searches:
            return self.lab.choices()[0]
        if file.is_file():
            return json.loads(file.read_text())["chosen"]
        tried: list[dict[str, Any]] = []
        for trial in searches:
            row = self.trials.outcome(trial).row(self.lab.evaluation.nfe[0])
            tried.append(
                {"choice": trial.choice, "score": -1.0 if row is None or row.overall is None else row.overall}
            )
        number = max(range(len(tried)), key=lambda n: tried[n]["score"])
        best = tried[number]
        if self.lab.search.share == 1:
            self._adopt(method, searches[number])
        replace_text(file, json.dumps({"chosen": best["choice"], "tried": tried}, indent=1) + "\n")
        return best["choice"]

    def _adopt(self, method: str, found: Trial) -> None:
        """The chosen run of a search had the whole budget, and the first seed: it is that seed's run."""
        first = self._runs(method, found.choice)[0]
        for nfe in self.lab.evaluation.nfe:
            name = f"{method}_nfe{nfe}"
            if (found.pictures / name).is_dir():
                shutil.copytree(found.pictures / name, first.pictures / name, dirs_exist_ok=True)
        self.trials.outcome(found).save(first.file)

    def _partial(self, method: str) -> dict[str, Outcome]:
        """The chosen run of the search, which had a part of the budget; none without a search."""
        file = self._search_file(method)
        if not file.is_file() or self.lab.search.share == 1:
            return {}
        found = json.loads(file.read_text())
        number = [entry["choice"] for entry in found["tried"]].index(found["chosen"])
        outcome = Outcome.load(self.folder / method / f"search_{number}" / "outcome.json")
        return {method: outcome} if outcome.status == "finished" else {}


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
