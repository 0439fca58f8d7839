"""Numbers and names as a reader wants to see them."""

from __future__ import annotations

import math

from twinflow.evaluation.results import EvaluationRow, Metric

NONE = "–"  # not measured
_TASKS = {
    "single_object": "One object",
    "two_object": "Two objects",
    "counting": "Counting",
    "colors": "Colours",
    "position": "Position",
    "color_attr": "Colour binding",
}
_PROTOCOL = {
    "images_per_task": "Pictures a task",
    "images_per_prompt": "Pictures a prompt",
    "prompts": "Prompts (hash)",
    "clip": "CLIPScore model",
    "hps": "HPSv2.1 model",
    "pickscore": "PickScore model",
    "distribution": "Distribution",
}
_PACKAGES = ("twinflow", "torch", "diffusers", "transformers", "python")


def score(value: float | None, digits: int = 3) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def with_error(value: float | None, error: float | None, digits: int = 3) -> str:
    return score(value, digits) + ("" if error is None else f" ± {score(error, digits)}")


def percent(fraction: float) -> str:
    """A whole percentage; rounded down towards 100, so that "100 %" is never a flattery."""
    value = 100 * fraction
    return f"{math.floor(value) if 99 < value < 100 else round(value)} %"


def times(factor: float | None) -> str:
    if factor is None:
        return NONE
    return f"{factor:.0f}×" if factor >= 10 else f"{factor:.1f}×"


def seconds(value: float | None) -> str:
    """A duration with two significant digits, in the unit that suits it."""
    if value is None:
        return NONE
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= factor or factor == 1e-6:
            scaled = value / factor
            return f"{scaled:.0f} {unit}" if scaled >= 10 else f"{scaled:.1f} {unit}"
    raise AssertionError("unreachable")


def count(number: int) -> str:
    return f"{number:,}"


def task_name(task: str) -> str:
    return _TASKS.get(task, _sentence(task))


def protocol_name(key: str) -> str:
    """Keys become words; packages keep their names."""
    return key if key in _PACKAGES else _PROTOCOL.get(key, _sentence(key))


def row_name(row: EvaluationRow) -> str:
    return f"{row.model} at {row.nfe} NFE" if row.nfe else row.model


def nfe_text(row: EvaluationRow) -> str:
    return str(row.nfe) if row.nfe else NONE


def tasks_of(rows: list[EvaluationRow]) -> list[str]:
    """Every task of any row, in the order of the benchmark."""
    return list(dict.fromkeys(task for row in rows for task in row.tasks))


def task_interval(row: EvaluationRow, task: str) -> tuple[float, float]:
    """Wilson's 95 % interval of a task's score: unlike the textbook one it isn't empty at 0 and 1, where good and bad
    models are. A row that doesn't say how many pictures each task has is taken to have equal shares."""
    share = row.images // max(1, len(row.tasks))
    n, p, z = max(1, row.task_images.get(task, share)), row.tasks[task], 1.96
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(max(0.0, p * (1 - p)) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def task_error(row: EvaluationRow, task: str) -> float:
    """Half the width of :func:`task_interval`."""
    low, high = task_interval(row, task)
    return (high - low) / 2


def metrics_of(rows: list[EvaluationRow]) -> dict[str, Metric]:
    """Every metric of any row by name, in order; of the first row that has it."""
    found: dict[str, Metric] = {}
    for row in rows:
        for name, metric in row.metrics.items():
            found.setdefault(name, metric)
    return found


def kid_note(rows: list[EvaluationRow]) -> str:
    """What ± is of KID, for the sentence that says what it is of the others; "" where there is none."""
    return "; of KID, the deviation over subsets" if "kid" in metrics_of(rows) else ""


def _sentence(key: str) -> str:
    words = key.replace("_", " ").strip()
    return words[:1].upper() + words[1:]
