"""Outcomes of runs that were never made."""

from __future__ import annotations

from twinflow.evaluation.results import EvaluationRow
from twinflow.lab.outcome import Outcome


def outcome(method: str, seed: int, overall: float | None, *, held: int = 120) -> Outcome:
    row = EvaluationRow(
        model=method,
        nfe=1,
        images=6,
        overall=overall or 0.0,
        overall_error=0.1,
        strict=0.0,
        tasks={"counting": overall or 0.0},
        diversity=0.5,
    )
    return Outcome(
        method=method,
        seed=seed,
        status="diverged" if overall is None else "finished",
        costs={"steps": 3, "flops": 1e12, "seconds": 1, "peak_memory": 1.0},
        per_image={"forwards": 4.0, "backwards": 1.0},
        holdings={"trained": 10, "frozen": 0, "parameter_bytes": held - 80, "optimizer_bytes": 80},
        rows=[] if overall is None else [row],
        frechet={} if overall is None else {"1": 2.0 * seed},
    )
