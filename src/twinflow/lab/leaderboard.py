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
from twinflow.report.text import NONE, score, with_error
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
    diversity: float | None
    frechet: float | None
    costs: dict[str, float]  # of a whole run: mean over those that did not diverge, or over all if all did
    per_image: dict[str, float]
    holdings: dict[str, int]
    memory_ratio: float | None  # peak memory against the method compared with
    choice: dict[str, Any] = field(default_factory=dict)  # what the search chose


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
        reference = [o.costs["peak_memory"] for o in outcomes if o.method == compared_with]
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
        """A table for each NFE, best score first, and one of costs."""
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
                value = (
                    NONE
                    if s.overall is None
                    else score(s.overall)
                    if s.spread is None
                    else with_error(s.overall, s.spread)
                )
                lines.append(
                    f"| {escape(s.method)} | {value} | {score(s.ratio, 2)} | {score(s.diversity, 2)} | "
                    f"{score(s.frechet, 2)} | {s.diverged} of {s.runs} |"
                )
        lines += [
            "",
            "± is the standard deviation over seeds.",
            "",
            "## Cost of a run",
            "",
            "| Method | Steps | Forwards an image | Backwards an image | TFLOPs | Seconds | Peak memory | Against "
            "| Parameters trained | frozen | Optimiser |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for method in dict.fromkeys(s.method for s in self.standings):
            s = next(s for s in self.standings if s.method == method)
            lines.append(
                f"| {escape(method)} | {s.costs['steps']:.0f} | {s.per_image['forwards']:.2f} | "
                f"{s.per_image['backwards']:.2f} | {s.costs['flops'] / 1e12:.3g} | {s.costs['seconds']:.0f} | "
                f"{s.costs['peak_memory'] / 1e6:.0f} MB | {score(s.memory_ratio, 2)} | "
                f"{s.holdings['trained'] / 1e6:.2f} M | {s.holdings['frozen'] / 1e6:.2f} M | "
                f"{s.holdings['optimizer_bytes'] / 1e6:.1f} MB |"
            )
        lines += ["", "## Protocol", ""]
        lines += [f"- {escape(key)}: {escape(value)}" for key, value in self.facts.items()]
        return "\n".join(lines) + "\n"


def _standing(runs: Sequence[Outcome], nfe: int, *, base: float, reference: Sequence[float]) -> Standing:
    good = [(run, row) for run in runs if (row := run.row(nfe)) is not None]
    scores = [row.overall for _, row in good if row.overall is not None]
    diversities = [row.diversity for _, row in good if row.diversity is not None]
    overall = mean(scores) if scores else None
    whole = [run for run in runs if run.status == "finished"] or list(runs)
    peak = mean(run.costs["peak_memory"] for run in whole)
    tasks = list(dict.fromkeys(task for _, row in good for task in row.tasks))
    return Standing(
        method=runs[0].method,
        nfe=nfe,
        runs=len(runs),
        diverged=sum(run.status == "diverged" for run in runs),
        overall=overall,
        spread=stdev(scores) if len(scores) > 1 else None,
        ratio=overall / base if overall is not None and base > 0 else None,
        tasks={task: mean(row.tasks[task] for _, row in good if task in row.tasks) for task in tasks},
        diversity=mean(diversities) if diversities else None,
        frechet=mean(run.frechet[str(nfe)] for run, _ in good) if good else None,
        costs={key: mean(run.costs[key] for run in whole) for key in whole[0].costs},
        per_image={key: mean(run.per_image[key] for run in whole) for key in whole[0].per_image},
        holdings=runs[0].holdings,
        memory_ratio=peak / mean(reference) if reference else None,
        choice=runs[0].choice,
    )
