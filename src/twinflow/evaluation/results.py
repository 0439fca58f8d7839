"""What an evaluation found: one row a model and NFE, with all that is needed to compare or refuse the number."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from twinflow.errors import TwinflowError


@dataclass(frozen=True)
class Metric:
    """One number besides the score."""

    value: float
    title: str  # in tables
    better: str = ""  # "higher", "lower", or "" where neither is
    digits: int = 2
    error: float | None = None  # half of its 95 % interval, or its standard deviation where ``title`` says so


@dataclass
class EvaluationRow:
    """Scores of one model at one number of network evaluations. Scores lie in [0, 1]."""

    model: str  # what the model is called in tables: "base", "twinflow"
    nfe: int  # network evaluations per picture; guidance counts two a step; 0: not known (pictures of others)
    images: int
    overall: float | None = None  # the benchmark's own score: of GenEval, the unweighted mean over tasks
    overall_error: float | None = None  # half of its 95 % interval
    strict: float | None = None  # the same with no extra object allowed
    strict_error: float | None = None
    tasks: dict[str, float] = field(default_factory=dict)
    style: str = "few"
    guidance: float = 1.0
    held_out: float | None = None  # score on (shape, colour) pairs that training never named
    diversity: float | None = None  # spread of layouts over seeds; 1 = the renderer's own
    seconds_per_image: float | None = None  # network and decoder, prompts encoded before
    grid: str | None = None  # picture of the first images, relative to the table's folder
    samples: list[dict] = field(default_factory=list)  # a few {"prompt", "file", "correct"} for the page
    failures: list[dict] = field(
        default_factory=list
    )  # wrong ones, with "reason", "size" and, where they are known, "boxes" and "score"
    task_images: dict[str, int] = field(default_factory=dict)  # pictures of each task; {}: equal shares
    metrics: dict[str, Metric] = field(default_factory=dict)
    key: str = ""  # hash of the model, its sampler, the pictures and their imported answers: equal keys, equal scores
    identity: str = ""  # hash of the model, its dtype and size; "": pictures of others

    def __post_init__(self) -> None:
        self.metrics = {
            name: metric if isinstance(metric, Metric) else Metric(**metric)  # JSON brings dicts
            for name, metric in self.metrics.items()
        }


@dataclass
class EvaluationTable:
    """All rows of one evaluation, and its protocol."""

    benchmark: str
    rows: list[EvaluationRow]
    protocol: dict[str, Any] = field(default_factory=dict)  # level, seed, versions, date, command
    notes: list[str] = field(
        default_factory=list
    )  # what a reader must know, such as that protocols are mixed
    facts: dict[str, Any] = field(
        default_factory=dict
    )  # what else was measured, such as how long it all took

    def row(self, model: str, nfe: int) -> EvaluationRow | None:
        return next((r for r in self.rows if (r.model, r.nfe) == (model, nfe)), None)

    def put(self, row: EvaluationRow) -> None:
        """Add ``row``, in the place of the same model's at the same NFE if there is one."""
        for i, other in enumerate(self.rows):
            if (other.model, other.nfe) == (row.model, row.nfe):
                self.rows[i] = row
                return
        self.rows.append(row)

    def save(self, path: Path) -> None:
        """Write JSON, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = path.with_name(f".{path.name}.{os.getpid()}")
        hidden.write_text(json.dumps(asdict(self), indent=1) + "\n")
        os.replace(hidden, path)

    @classmethod
    def load(cls, path: Path) -> EvaluationTable:
        """``TwinflowError`` if the file is not a table."""
        try:
            data = json.loads(Path(path).read_text())
            rows = [EvaluationRow(**row) for row in data["rows"]]
            return cls(**(data | {"rows": rows}))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TwinflowError(f"{path} is not the table of an evaluation: {error!r}") from error
