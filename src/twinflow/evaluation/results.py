"""What an evaluation found: one row a model and NFE, with all that is needed to compare or refuse the number."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class EvaluationRow:
    """Scores of one model at one number of network evaluations. Scores lie in [0, 1]."""

    model: str  # what the model is called in tables: "base", "twinflow"
    nfe: int  # network evaluations per picture; guidance counts two a step
    images: int
    overall: float  # unweighted mean of the task scores (GenEval)
    overall_error: float  # half of its 95 % interval
    strict: float  # the same with no extra object allowed
    tasks: dict[str, float]
    style: str = "few"
    guidance: float = 1.0
    held_out: float | None = None  # score on (shape, colour) pairs that training never named
    diversity: float | None = None  # spread of layouts over seeds; 1 = the renderer's own
    seconds_per_image: float | None = None  # network and decoder, prompts encoded before
    grid: str | None = None  # picture of the first images, relative to the table's folder
    samples: list[dict] = field(default_factory=list)  # a few {"prompt", "file", "correct"} for the page


@dataclass
class EvaluationTable:
    """All rows of one evaluation, and its protocol."""

    benchmark: str
    rows: list[EvaluationRow]
    protocol: dict[str, str | int | float] = field(
        default_factory=dict
    )  # level, seed, versions, date, command

    def row(self, model: str, nfe: int) -> EvaluationRow | None:
        return next((r for r in self.rows if (r.model, r.nfe) == (model, nfe)), None)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> EvaluationTable:
        data = json.loads(Path(path).read_text())
        return cls(**(data | {"rows": [EvaluationRow(**row) for row in data["rows"]]}))
