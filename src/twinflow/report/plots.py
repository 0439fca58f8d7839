"""Plots as inline SVG. Colours are the page's CSS variables, so they follow its light and dark themes."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from twinflow.evaluation.results import EvaluationRow, EvaluationTable
from twinflow.report.losses import TOTAL, Curve
from twinflow.report.names import label_ends, label_points
from twinflow.report.text import row_name, seconds, task_interval, task_name, tasks_of

# Matplotlib wants colours: these stand for CSS variables, and are replaced in the finished SVG.
INK, SOFT, RULE = "#0a0b01", "#0a0b02", "#0a0b03"
_VARIABLES = {INK: "var(--ink)", SOFT: "var(--soft)", RULE: "var(--rule)"}
SERIES = tuple(f"#0a0b1{i}" for i in range(6))
_VARIABLES |= {color: f"var(--series-{i})" for i, color in enumerate(SERIES)}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it takes the page's font, and can be searched
    "font.size": 9,
    "text.parse_math": False,  # a "$" in a model's name is a "$"
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "lines.solid_capstyle": "round",
}


def model_colors(table: EvaluationTable, *, base: str, trained: str | None = None) -> dict[str, str]:
    """A colour for each model: series 0, a quiet one, is the base's; series 1, the page's accent, that of the model
    whose row the page marks, ``trained``."""
    colors, others = {base: SERIES[0]}, 0
    for model in dict.fromkeys(row.model for row in table.rows):
        if model == trained:
            colors[model] = SERIES[1]
        elif model != base:
            colors[model] = SERIES[2 + others % 4]
            others += 1
    return colors


Value = Callable[[EvaluationRow], float | None]
Colors = Mapping[str, str]  # of each model


def score_by_nfe(table: EvaluationTable, *, colors: Colors) -> str:
    """Overall score against network evaluations, on a logarithmic axis."""
    return value_by_nfe(
        table,
        colors=colors,
        name="score",
        value=lambda row: row.overall,
        error=lambda row: row.overall_error,
        limits=(0, 1.04),
    )


def metric_by_nfe(table: EvaluationTable, metric: str, *, colors: Colors) -> str:
    """A metric against network evaluations."""

    def value(row: EvaluationRow) -> float | None:
        return row.metrics[metric].value if metric in row.metrics else None

    def error(row: EvaluationRow) -> float | None:
        return row.metrics[metric].error if metric in row.metrics else None

    return value_by_nfe(table, colors=colors, name=f"metric-{metric}", value=value, error=error)


def value_by_nfe(
    table: EvaluationTable,
    *,
    colors: Colors,
    name: str,
    value: Value,
    error: Value,
    limits: tuple[float, float] | None = None,
) -> str:
    """A line for each model; rows without a value or with unknown evaluations are left out."""
    known = [row for row in table.rows if row.nfe and value(row) is not None]

    def draw(ax: Axes) -> None:
        ends = []
        for model, color in colors.items():
            rows = sorted((row for row in known if row.model == model), key=lambda row: row.nfe)
            if not rows:
                continue
            x, y = [row.nfe for row in rows], [value(row) or 0.0 for row in rows]
            ax.errorbar(
                x,
                y,
                yerr=[error(row) or 0.0 for row in rows],
                color=color,
                marker="o",
                markersize=4.5,
                linewidth=1.8,
                elinewidth=1,
            )
            ends.append((float(x[-1]), y[-1], model, color))
        evaluations = sorted({row.nfe for row in known})
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator(_apart(evaluations)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
        ax.set_xlim(min(evaluations) * 0.85, max(evaluations) * 1.1)
        if limits is not None:
            ax.set_ylim(*limits)
        ax.grid(axis="y")
        ax.set_xlabel("network evaluations per picture")
        label_ends(ax, ends)

    return draw_svg(name, draw, size=(4.6, 3.2))


def score_by_time(table: EvaluationTable, *, colors: Colors) -> str | None:
    """Overall score against seconds a picture, each point named by its evaluations; the best for their time (the
    Pareto front) are joined. ``None`` where fewer than two rows were timed."""
    points = [
        (row.seconds_per_image, row.overall, row)
        for row in table.rows
        if row.seconds_per_image and row.overall is not None
    ]
    if len(points) < 2:
        return None
    front = pareto([(x, y) for x, y, _ in points])

    def draw(ax: Axes) -> None:
        ax.plot(
            [x for x, _ in front], [y for _, y in front], color=RULE, linewidth=5, solid_joinstyle="round"
        )
        for x, y, row in points:
            error = row.overall_error or 0.0
            ax.errorbar(x, y, yerr=error, color=colors[row.model], marker="o", markersize=5, elinewidth=1)
        for model, color in colors.items():
            ax.plot([], [], "o", color=color, markersize=5, label=model)
        ax.set_xscale("log")
        low, high = min(x for x, _, _ in points), max(x for x, _, _ in points)
        ax.set_xlim(low / 1.35, high * 1.5)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(lambda value, _: seconds(value))
        ax.set_ylim(0, 1.04)
        ax.grid(axis="y")
        ax.set_xlabel("time per picture; the numbers are network evaluations")
        label_points(ax, [(x, y, str(row.nfe or ""), colors[row.model]) for x, y, row in points])
        ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, frameon=False, handlelength=0.6)

    return draw_svg("pareto", draw, size=(4.6, 3.2))


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, value) those that no cheaper or equally dear one beats, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def task_bars(rows: Sequence[EvaluationRow], colors: Colors) -> str:
    """Scores by task, one bar a row. Rows of one model are told apart by the bar's strength."""
    tasks = tasks_of(list(rows))
    strengths = _strengths(rows)

    def draw(ax: Axes) -> None:
        height = 0.72 / len(rows)
        for i, row in enumerate(rows):
            for j, task in enumerate(tasks):
                if task not in row.tasks:
                    continue
                y = j + (i - (len(rows) - 1) / 2) * height
                value, (low, high) = row.tasks[task], task_interval(row, task)
                ax.barh(
                    y,
                    value,
                    height=height * 0.82,
                    color=colors[row.model],
                    alpha=strengths[i],
                    xerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
                    error_kw={"ecolor": INK, "elinewidth": 0.7},
                    label=row_name(row) if j == 0 else None,
                )
        ax.set_yticks(range(len(tasks)), [task_name(task) for task in tasks])
        ax.tick_params(axis="y", labelcolor=INK)
        ax.invert_yaxis()
        ax.set_xlim(0, 1.02)
        ax.grid(axis="x")
        ax.set_axisbelow(True)
        ax.legend(loc="lower center", bbox_to_anchor=(0.36, 1.0), ncols=2, frameon=False, handlelength=0.9)

    return draw_svg("tasks", draw, size=(4.6, 3.2))


def loss_curves(name: str, curves: dict[str, Curve]) -> str:
    """Losses of one run by role: smoothed lines over the raw ones."""
    roles = sorted((role for role in curves if role != TOTAL), key=lambda role: curves[role].steps[0])
    shown = [TOTAL, *roles] if TOTAL in curves else roles

    def draw(ax: Axes) -> None:
        ends = []
        for i, role in enumerate(shown):
            color = INK if role == TOTAL else SERIES[1 + (i - 1) % 5]
            curve = curves[role]
            smooth = curve.smoothed(max(1, len(curve.values) // 20))
            ax.plot(curve.steps, curve.values, color=color, alpha=0.18, linewidth=0.7)
            ax.plot(smooth.steps, smooth.values, color=color, linewidth=1.5)
            ends.append((smooth.steps[-1], smooth.values[-1], role.replace("_", " "), color))
        if all(value > 0 for role in shown for value in curves[role].values):
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            ax.yaxis.set_minor_locator(NullLocator())
        ax.grid(axis="y")
        ax.set_xlabel("step")
        label_ends(ax, ends)

    return draw_svg(f"loss-{name}", draw, size=(4.6, 2.9))


def _apart(values: list[int], ratio: float = 1.35) -> list[int]:
    """Ticks far enough apart on a logarithmic axis for their numbers not to touch; the last one stays."""
    kept: list[int] = []
    for value in reversed(values):
        if not kept or kept[-1] / value >= ratio:
            kept.append(value)
    return kept[::-1]


def _strengths(rows: Sequence[EvaluationRow]) -> list[float]:
    """Opacity of each row's bars: the last of a model is full, those before it are fainter."""
    result = []
    for i, row in enumerate(rows):
        later = sum(other.model == row.model for other in rows[i + 1 :])
        result.append(max(0.3, 1 - 0.55 * later))
    return result


def draw_svg(name: str, draw: Callable[[Axes], None], *, size: tuple[float, float]) -> str:
    """What ``draw`` draws, ``size`` in inches of 9-point text; ``name`` keeps its ids apart from other plots'."""
    # A bare Figure with its canvas: pyplot would keep state, and look for a display.
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        canvas = FigureCanvasSVG(figure)
        ax = figure.add_subplot()
        ax.patch.set_alpha(0)
        draw(ax)
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        canvas.print_svg(buffer, metadata=metadata)
    return _for_page(buffer.getvalue(), prefix=re.sub(r"[^a-z0-9]+", "-", name.lower()))


def _for_page(svg: str, *, prefix: str) -> str:
    """The ``<svg>`` element alone, scalable, its ids its own, its colours and font the page's."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = svg.replace('href="#', f'href="#{prefix}-').replace("url(#", f"url(#{prefix}-")
    svg = re.sub(r"(font: [\d.]+px )[^;\"]+", r"\1var(--sans)", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    return svg.strip()
