"""What a table says in a sentence: how much of the base's score a trained model keeps, at what cost."""

from __future__ import annotations

from dataclasses import dataclass

from twinflow.evaluation.results import EvaluationRow, EvaluationTable
from twinflow.report.text import count, percent, row_name, score, times, with_error

BASE_NAME = "base"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The rows that a reader compares first."""

    base: EvaluationRow  # the base's best row; of a table of one model, that model's
    trained: EvaluationRow | None  # the best of the other models at the fewest evaluations
    base_at_same: EvaluationRow | None  # the base given no more evaluations than the trained model

    @property
    def kept(self) -> float | None:
        """The trained model's score as a fraction of the base's best; ``None`` if that is 0."""
        if self.trained is None or not self.base.overall or self.trained.overall is None:
            return None
        return self.trained.overall / self.base.overall

    @property
    def scored(self) -> bool:
        """Whether the benchmark has a score of its own; else there are measures alone."""
        return self.base.overall is not None

    @property
    def evaluations_saved(self) -> int:
        if self.trained is None or not self.trained.nfe:
            return 0
        return self.base.nfe - self.trained.nfe

    @property
    def speed_up(self) -> float | None:
        """How many times faster a picture is than in the base's best row."""
        return None if self.trained is None else speed_up(self.trained, self.base)

    @property
    def headline(self) -> str:
        """One sentence, true whether the news is good or bad."""
        row = self.trained
        if not self.scored:
            beside = f", beside {row_name(self.base)}" if row is not None else ""
            return f"{row_name(row or self.base)}{beside}: what was measured."
        if row is None:
            scores = f"{self.base.model} scores {with_error(self.base.overall, self.base.overall_error)}"
            return scores + (f" with {evaluations(self.base.nfe)}." if self.base.nfe else ".")
        start = f"With {evaluations(row.nfe)}, {row.model} " if row.nfe else f"{row.model} "
        if self.kept is None or not self.base.nfe:
            base = score(self.base.overall) if self.base.overall else "0"
            where = f" at {self.base.nfe}" if self.base.nfe else ""
            return start + f"scores {score(row.overall)}; {self.base.model} scores {base}{where}."
        return start + f"reaches {percent(self.kept)} of the score of {self.base.model} at {self.base.nfe}."

    @property
    def scores(self) -> str:
        """The scores behind the headline."""
        row, base = self.trained, self.base
        if not self.scored:
            shown = list((row or base).metrics.values())[:4]
            found = "; ".join(f"{m.title} {with_error(m.value, m.error, m.digits)}" for m in shown)
            return f"{found or 'Pictures alone'}, on {count(base.images)} pictures."
        if row is None:
            return f"On {count(base.images)} pictures."
        return (
            f"{with_error(row.overall, row.overall_error)} against "
            f"{with_error(base.overall, base.overall_error)}, on {count(row.images)} pictures."
        )

    @property
    def details(self) -> str:
        """All numbers behind the headline."""
        row, base = self.trained, self.base
        if row is None:
            return self.scores
        parts = [self.scores.rstrip(".")]
        if self.evaluations_saved > 0:
            parts.append(f"{self.evaluations_saved} of {base.nfe} network evaluations saved")
        if self.speed_up is not None and self.speed_up > 1:
            parts.append(f"{times(self.speed_up)} as fast a picture")
        same = self.base_at_same
        if same is not None and same is not base:
            parts.append(f"with {evaluations(same.nfe)}, {same.model} itself scores {score(same.overall)}")
        return "; ".join(parts) + "."


def summarise(table: EvaluationTable) -> Summary:
    """Choose the rows to compare. The base is the model called "base", or else the first of the table."""
    if not table.rows:
        raise ValueError("the table has no rows: there is nothing to report")
    models = list(dict.fromkeys(row.model for row in table.rows))
    base_name = BASE_NAME if BASE_NAME in models else models[0]
    base_rows = [row for row in table.rows if row.model == base_name]
    others = [row for row in table.rows if row.model != base_name]
    base = max(base_rows, key=_worth)
    if not others:
        return Summary(base=base, trained=None, base_at_same=None)
    fewest = min(_cost(row) for row in others)
    trained = max((row for row in others if _cost(row) == fewest), key=_worth)
    affordable = [row for row in base_rows if row.nfe and row.nfe <= fewest]
    same = max(affordable, key=lambda row: row.nfe) if affordable else None
    return Summary(base=base, trained=trained, base_at_same=same)


def _cost(row: EvaluationRow) -> float:
    """Network evaluations; without limit where they are not known."""
    return row.nfe or float("inf")


def _worth(row: EvaluationRow) -> tuple[float, float]:
    """Of two rows the one with the higher score, of equal ones the cheaper; without scores, that of most steps."""
    return (row.nfe, 0.0) if row.overall is None else (row.overall, -_cost(row))


def speed_up(row: EvaluationRow, reference: EvaluationRow) -> float | None:
    """How many times faster ``row`` draws a picture than ``reference``; ``None`` where it wasn't timed."""
    if not row.seconds_per_image or not reference.seconds_per_image:
        return None
    return reference.seconds_per_image / row.seconds_per_image


def evaluations(nfe: int) -> str:
    return f"{nfe} network evaluation" + ("" if nfe == 1 else "s")
