"""Plots as inline SVG. Colours are the page's CSS variables, so they follow its light and dark themes."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from twinflow.evaluation.results import EvaluationRow, EvaluationTable
from twinflow.report.losses import TOTAL, Curve
from twinflow.report.text import row_name, task_error, task_name, tasks_of

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


def model_colors(table: EvaluationTable, *, base: str) -> dict[str, str]:
    """A colour for each model: series 0, a quiet one, is the base's."""
    others = [model for model in dict.fromkeys(row.model for row in table.rows) if model != base]
    return {base: SERIES[0]} | {model: SERIES[1 + i % 5] for i, model in enumerate(others)}


def score_by_nfe(table: EvaluationTable, *, base: str) -> str:
    """Overall score against network evaluations, on a logarithmic axis."""
    colors = model_colors(table, base=base)

    def draw(ax: Axes) -> None:
        ends = []
        for model, color in colors.items():
            rows = sorted((row for row in table.rows if row.model == model), key=lambda row: row.nfe)
            x, y = [row.nfe for row in rows], [row.overall for row in rows]
            ax.errorbar(
                x,
                y,
                yerr=[row.overall_error for row in rows],
                color=color,
                marker="o",
                markersize=4.5,
                linewidth=1.8,
                elinewidth=1,
            )
            ends.append((x[-1], y[-1], model, color))
        evaluations = sorted({row.nfe for row in table.rows})
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator(_apart(evaluations)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
        ax.set_xlim(min(evaluations) * 0.85, max(evaluations) * 1.1)
        ax.set_ylim(0, 1.04)
        ax.grid(axis="y")
        ax.set_xlabel("network evaluations per picture")
        _label_ends(ax, ends)

    return _svg("score", draw, size=(4.6, 3.2))


def task_bars(rows: Sequence[EvaluationRow], colors: dict[str, str]) -> str:
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
                value, error = row.tasks[task], task_error(row, task)
                ax.barh(
                    y,
                    value,
                    height=height * 0.82,
                    color=colors[row.model],
                    alpha=strengths[i],
                    xerr=[[min(error, value)], [min(error, 1 - value)]],
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

    return _svg("tasks", draw, size=(4.6, 3.2))


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
        _label_ends(ax, ends)

    return _svg(f"loss-{name}", draw, size=(4.6, 2.9))


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


def _label_ends(ax: Axes, ends: Sequence[tuple[float, float, str, str]], *, gap: float = 0.075) -> None:
    """Name each line where it ends; (x, y, name, color). Names that would touch are moved apart, up or down."""
    to_axes = ax.transData + ax.transAxes.inverted()
    for end in sorted({x for x, *_ in ends}):
        here = [(to_axes.transform((x, y)), label, color) for x, y, label, color in ends if x == end]
        here.sort(key=lambda place: place[0][1])
        heights = [point[1] for point, _, _ in here]
        for i in range(1, len(heights)):
            heights[i] = max(heights[i], heights[i - 1] + gap)
        if heights[-1] > 1:  # back down, what left through the top
            heights[-1] = 1.0
            for i in range(len(heights) - 2, -1, -1):
                heights[i] = min(heights[i], heights[i + 1] - gap)
        for height, (point, label, color) in zip(heights, here, strict=True):
            ax.text(point[0] + 0.025, height, label, transform=ax.transAxes, color=color, va="center")


def _svg(name: str, draw: Callable[[Axes], None], *, size: tuple[float, float]) -> str:
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
