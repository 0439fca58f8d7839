"""What one run of a comparison left: its costs and its scores."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from twinflow.evaluation.results import EvaluationRow
from twinflow.training.checkpoint import replace_text


@dataclass(kw_only=True)
class Outcome:
    """One run of one method."""

    method: str
    seed: int
    status: Literal["finished", "diverged"]
    choice: dict[str, Any] = field(default_factory=dict)  # what the search chose
    steps: int = 0
    costs: dict[str, float] = field(default_factory=dict)  # totals by unit, and peak_memory in bytes
    per_image: dict[str, float] = field(default_factory=dict)  # Accountant.per_image
    phases: dict[str, Any] = field(default_factory=dict)  # calls and rows of each network by phase
    holdings: dict[str, int] = field(default_factory=dict)
    rows: list[EvaluationRow] = field(default_factory=list)  # one for each NFE
    frechet: dict[str, float] = field(default_factory=dict)  # by NFE
    message: str = ""  # why it diverged
    jobs: int = 1  # runs that shared the machine, which the seconds tell of

    def row(self, nfe: int) -> EvaluationRow | None:
        return next((row for row in self.rows if row.nfe == nfe), None)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Outcome:
        data = json.loads(path.read_text())
        return cls(**(data | {"rows": [EvaluationRow(**row) for row in data["rows"]]}))
