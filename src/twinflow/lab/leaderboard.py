"""The table of a comparison: scores over seeds, costs and memory, as JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from twinflow.lab.outcome import Outcome
from twinflow.report.markdown import escape
from twinflow.report.text import score, task_name, with_error
from twinflow.training.checkpoint import replace_text


@dataclass(kw_only=True)
class Standing:
    """One method at one NFE, over its seeds that did not diverge."""

    method: str
    nfe: int
    runs: int
    diverged: int
    overall: float | None  # mean over seeds
    spread: float | None  # standard deviation over seeds; of one seed there is none
    ratio: float | None  # to the base's score
    tasks: dict[str, float]
    task_spreads: dict[str, float]  # of several seeds, as ``spread``
    diversity: float | None
    frechet: float | None
    costs: dict[str, float]  # of a whole run: mean over those that did not diverge, or over all if all did
    per_image: dict[str, float]
    holdings: dict[str, int]
    memory_ratio: float | None  # what has to be held, against the method compared with
    choice: dict[str, Any] = field(default_factory=dict)  # what the search chose

    @property
    def held(self) -> int:
        """Bytes of all parameters and optimiser states, the same on any machine."""
        return held_by(self.holdings)


@dataclass(kw_only=True)
class Leaderboard:
    """All methods, and the base that they started from."""

    base: dict[str, Any]
    standings: list[Standing]
    facts: dict[str, Any] = field(default_factory=dict)
    compared_with: str = "twinflow"
    # By method, what the search's chosen run had computed ("flops") and how it scored ("scores", by NFE).
    partial: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        base: Outcome,
        outcomes: Sequence[Outcome],
        *,
        compared_with: str,
        facts: dict[str, Any],
        nfe: Sequence[int],
        partial: Mapping[str, Outcome] | None = None,
    ) -> Leaderboard:
        best_base = max(base.rows, key=lambda row: row.nfe)
        reference = next((held_by(o.holdings) for o in outcomes if o.method == compared_with), None)
        standings = []
        for method in dict.fromkeys(outcome.method for outcome in outcomes):
            runs = [outcome for outcome in outcomes if outcome.method == method]
            for number in nfe:
                standings.append(_standing(runs, number, base=best_base.overall or 0.0, reference=reference))
        rows = [asdict(row) for row in base.rows]
        for row in rows:
            row.pop("samples")
            row.pop("failures")
        return cls(
            base={"rows": rows, "frechet": base.frechet},
            standings=standings,
            facts=facts,
            compared_with=compared_with,
            partial={
                method: {
                    "flops": run.costs["flops"],
                    "scores": {str(row.nfe): row.overall for row in run.rows},
                }
                for method, run in (partial or {}).items()
            },
        )

    @property
    def evaluations(self) -> list[int]:
        """The NFE that methods were scored at, in order."""
        return list(dict.fromkeys(standing.nfe for standing in self.standings))

    @property
    def base_nfe(self) -> int:
        """Where the base is compared with: at most evaluations."""
        return max(row["nfe"] for row in self.base["rows"])

    @property
    def base_score(self) -> float | None:
        return next(row["overall"] for row in self.base["rows"] if row["nfe"] == self.base_nfe)

    def standing(self, method: str, nfe: int) -> Standing | None:
        return next((s for s in self.standings if (s.method, s.nfe) == (method, nfe)), None)

    def save(self, folder: Path) -> None:
        replace_text(folder / "leaderboard.json", json.dumps(asdict(self), indent=1) + "\n")
        replace_text(folder / "leaderboard.md", self.markdown())

    def markdown(self) -> str:
        """Two tables for each NFE, best score first, of scores and of tasks, and one of costs."""
        lines = ["# Leaderboard", ""]
        for row in self.base["rows"]:
            lines.append(f"- base at {row['nfe']} NFE: {score(row['overall'])}")
        for nfe in dict.fromkeys(s.nfe for s in self.standings):
            ranked = sorted(
                (s for s in self.standings if s.nfe == nfe),
                key=lambda s: -1.0 if s.overall is None else s.overall,
                reverse=True,
            )
            lines += [
                "",
                f"## {nfe} NFE",
                "",
                "| Method | Score | To the base | Diversity | Fréchet | Diverged |",
                "|---|---:|---:|---:|---:|---:|",
            ]
            for s in ranked:
                lines.append(
                    f"| {escape(s.method)} | {spread_over(s.overall, s.spread)} | {score(s.ratio, 2)} | "
                    f"{score(s.diversity, 2)} | {score(s.frechet, 2)} | {s.diverged} of {s.runs} |"
                )
            tasks = list(dict.fromkeys(task for s in ranked for task in s.tasks))
            lines += [
                "",
                f"### {nfe} NFE, by task",
                "",
                "| Method | " + " | ".join(task_name(task) for task in tasks) + " |",
                "|---|" + "---:|" * len(tasks),
            ]
            for s in ranked:
                values = [spread_over(s.tasks.get(task), s.task_spreads.get(task)) for task in tasks]
                lines.append(f"| {escape(s.method)} | " + " | ".join(values) + " |")
        lines += [
            "",
            "± is the standard deviation over seeds.",
            "",
            "## Cost of a run",
            "",
            "| Method | Steps | Forwards an image | Backwards an image | TFLOPs | Seconds | Peak memory | Held "
            "| Against | Parameters trained | frozen | Optimiser |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for method in dict.fromkeys(s.method for s in self.standings):
            s = next(s for s in self.standings if s.method == method)
            lines.append(
                f"| {escape(method)} | {s.costs['steps']:.0f} | {s.per_image['forwards']:.2f} | "
                f"{s.per_image['backwards']:.2f} | {s.costs['flops'] / 1e12:.3g} | {s.costs['seconds']:.0f} | "
                f"{s.costs['peak_memory'] / 1e6:.0f} MB | {s.held / 1e6:.0f} MB | "
                f"{score(s.memory_ratio, 2)} | "
                f"{s.holdings['trained'] / 1e6:.2f} M | {s.holdings['frozen'] / 1e6:.2f} M | "
                f"{s.holdings['optimizer_bytes'] / 1e6:.1f} MB |"
            )
        lines += [
            "",
            f"Held: all parameters and optimiser states. Against: of that, {escape(self.compared_with)}'s.",
        ]
        lines += ["", "## Protocol", ""]
        lines += [f"- {escape(key)}: {escape(value)}" for key, value in self.facts.items()]
        return "\n".join(lines) + "\n"


def held_by(holdings: Mapping[str, int]) -> int:
    """Bytes of all parameters and optimiser states of a run."""
    return holdings["parameter_bytes"] + holdings["optimizer_bytes"]


def spread_over(value: float | None, spread: float | None) -> str:
    """A mean over seeds with its deviation, if there are several."""
    return score(value) if value is None or spread is None else with_error(value, spread)


def _standing(runs: Sequence[Outcome], nfe: int, *, base: float, reference: int | None) -> Standing:
    good = [(run, row) for run in runs if (row := run.row(nfe)) is not None]
    scores = [row.overall for _, row in good if row.overall is not None]
    diversities = [row.diversity for _, row in good if row.diversity is not None]
    overall = mean(scores) if scores else None
    whole = [run for run in runs if run.status == "finished"] or list(runs)
    names = list(dict.fromkeys(task for _, row in good for task in row.tasks))
    tasks = {task: [row.tasks[task] for _, row in good if task in row.tasks] for task in names}
    return Standing(
        method=runs[0].method,
        nfe=nfe,
        runs=len(runs),
        diverged=sum(run.status == "diverged" for run in runs),
        overall=overall,
        spread=stdev(scores) if len(scores) > 1 else None,
        ratio=overall / base if overall is not None and base > 0 else None,
        tasks={task: mean(values) for task, values in tasks.items()},
        task_spreads={task: stdev(values) for task, values in tasks.items() if len(values) > 1},
        diversity=mean(diversities) if diversities else None,
        frechet=mean(run.frechet[str(nfe)] for run, _ in good) if good else None,
        costs={key: mean(run.costs[key] for run in whole) for key in whole[0].costs},
        per_image={key: mean(run.per_image[key] for run in whole) for key in whole[0].per_image},
        holdings=runs[0].holdings,
        memory_ratio=held_by(runs[0].holdings) / reference if reference else None,
        choice=runs[0].choice,
    )
