"""Whether two scores may stand in one table."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from twinflow import __version__
from twinflow.errors import TwinflowError
from twinflow.evaluation.results import EvaluationTable

# Facts of a run that do not decide what a score means.
FREE = frozenset(
    ("date", "command", "machine", "processes", "python", "torch", "diffusers", "transformers", "twinflow")
)


@dataclass(frozen=True)
class Difference:
    """One entry in which two protocols disagree; ``None`` where one has none."""

    key: str
    a: Any
    b: Any

    def __str__(self) -> str:
        return f"{self.key.replace('_', ' ')}: {self.a!r} and {self.b!r}"


def comparable(a: EvaluationTable, b: EvaluationTable) -> list[Difference]:
    """In what the protocols of two tables differ; an empty list says that their scores compare.

    Everything that the benchmark or a measure wrote into its protocol counts: the prompts, the detector, the judge, the
    number of pictures. When, where and with which versions it was run does not.
    """
    found = [Difference("benchmark", a.benchmark, b.benchmark)] if a.benchmark != b.benchmark else []
    for key in dict.fromkeys([*a.protocol, *b.protocol]):
        if key not in FREE and a.protocol.get(key) != b.protocol.get(key):
            found.append(Difference(key, a.protocol.get(key), b.protocol.get(key)))
    return found


def join_tables(tables: Sequence[EvaluationTable], *, mixed: bool = False) -> EvaluationTable:
    """All rows in one table. Models of one name in two tables are told apart by a number, unless they are known to be
    one model at other NFE.

    ``TwinflowError`` if the protocols differ; with ``mixed`` they are joined, and the table's notes say in what.
    """
    if not tables:
        raise ValueError("there are no tables to join")
    first = tables[0]
    joined = replace(first, rows=[], notes=list(first.notes))
    for number, table in enumerate(tables, start=1):
        differences = comparable(first, table)
        if differences and not mixed:
            raise TwinflowError(
                "these scores do not compare: their protocols differ in "
                + "; ".join(map(str, differences))
                + ". Evaluate again under one protocol, or say --mixed to see them side by side with a warning"
            )
        names = {
            model: f"{model} ({number})" if _clash(joined, table, model) else model
            for model in dict.fromkeys(row.model for row in table.rows)
        }
        if differences:
            models = ", ".join(names.values())
            joined.notes.append(
                f"Not comparable: {models} (table {number}) was scored under another protocol than table 1 "
                f"({'; '.join(map(str, differences))})."
            )
        joined.rows += [replace(row, model=names[row.model]) for row in table.rows]
    joined.notes += times_note(tables)
    return joined


def times_note(tables: Sequence[EvaluationTable]) -> list[str]:
    """What a reader must know of the times of these tables' rows side by side: one note, or none."""
    timed = [table for table in tables if any(row.seconds_per_image is not None for row in table.rows)]
    machines = list(dict.fromkeys(str(table.protocol.get("machine", "?")) for table in timed))
    if len(machines) < 2:
        return []
    return [f"Times are of different machines ({'; '.join(machines)}): speed-ups between them mean nothing."]


def _clash(joined: EvaluationTable, table: EvaluationTable, model: str) -> bool:
    """Whether rows of that name must not become one line: of other models, or of the same NFE."""
    before, rows = ([row for row in one.rows if row.model == model] for one in (joined, table))
    identities = {row.identity for row in (*before, *rows)} - {""}
    return bool(before) and (len(identities) > 1 or any(joined.row(model, row.nfe) for row in rows))


def make_way(table: EvaluationTable, name: str, identity: str, nfe: Sequence[int], file: Path) -> None:
    """Take rows of a former model called ``name`` out of ``table``, kept in ``file``, for one that is drawn at ``nfe``.

    ``TwinflowError`` if rows of the former one would stay beside those of the new one.
    """
    former = [row for row in table.rows if row.model == name and row.identity not in ("", identity)]
    left = ", ".join(str(row.nfe) for row in former if row.nfe not in nfe)
    if left:
        raise TwinflowError(
            f"{file} has scores of another model called {name!r}, at {left} NFE: call this one otherwise (NAME=MODEL), "
            "draw those anew as well (--nfe), choose another --output, or --overwrite the table"
        )
    table.rows = [row for row in table.rows if not any(row is other for other in former)]


def take_late(table: EvaluationTable, told: Mapping[str, Any], pictures: Path) -> None:
    """Take over what only scoring tells of the protocol; ``TwinflowError`` if the table's other rows say otherwise."""
    for key, value in told.items():
        if (known := table.protocol.setdefault(key, value)) != value:
            raise TwinflowError(
                f"{pictures}: {key.replace('_', ' ')} is {value!r}, and of the table's other rows {known!r}. Such "
                "scores do not compare: choose another --output, or --overwrite the table"
            )


def run_facts() -> dict[str, Any]:
    """When, by which command, with which versions and on what kind of machine."""
    import diffusers
    import transformers

    from twinflow.training.interrupt import this_command

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "date": datetime.date.today().isoformat(),
        "command": this_command(),
        "twinflow": __version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": f"{device}, {torch.get_num_threads()} threads",
    }
