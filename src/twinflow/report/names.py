"""Names beside the lines and points of a plot, none on top of another."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from matplotlib.axes import Axes


def label_ends(ax: Axes, ends: Sequence[tuple[float, float, str, str]], *, gap: float = 0.075) -> None:
    """Name each line where it ends; (x, y, name, color). Names that would touch are moved apart, up and down."""
    to_axes = ax.transData + ax.transAxes.inverted()
    for end in sorted({x for x, *_ in ends}):
        here = [(to_axes.transform((x, y)), label, color) for x, y, label, color in ends if x == end]
        here.sort(key=lambda place: place[0][1])
        heights = apart([point[1] for point, _, _ in here], gap=gap)
        for height, (point, label, color) in zip(heights, here, strict=True):
            ax.text(point[0] + 0.025, height, label, transform=ax.transAxes, color=color, va="center")


def label_points(
    ax: Axes, points: Sequence[tuple[float, float, str, str]], *, gap: float = 0.05, near: float = 0.07
) -> None:
    """Numbers (x, y, text, color) right of their points; those of points that lie close together are moved apart, up
    and down. ``gap``: height of a number, ``near``: its width, both in lengths of the axes."""
    to_axes = ax.transData + ax.transAxes.inverted()
    placed = sorted((tuple(to_axes.transform((x, y))), text, color) for x, y, text, color in points if text)
    groups: list[list[tuple[tuple[float, float], str, str]]] = []
    for point, text, color in placed:
        if groups and point[0] - groups[-1][-1][0][0] < near:
            groups[-1].append((point, text, color))
        else:
            groups.append([(point, text, color)])
    for group in groups:
        group.sort(key=lambda place: place[0][1])
        heights = apart([point[1] for point, *_ in group], gap=gap)
        for height, (point, text, color) in zip(heights, group, strict=True):
            ax.text(
                point[0] + 0.018, height, text, transform=ax.transAxes, color=color, va="center", fontsize=8
            )


def label_aside(ax: Axes, ends: Sequence[tuple[float, float, str, str]], *, gap: float) -> None:
    """Names (x, y, name, color) of points in one column right of the plot, each with a line to its point."""
    to_axes = ax.transData + ax.transAxes.inverted()
    ends = sorted(ends, key=lambda end: end[1])
    heights = apart([to_axes.transform((x, y))[1] for x, y, *_ in ends], gap=gap)
    for height, (x, y, method, color) in zip(heights, ends, strict=True):
        ax.annotate(
            method,
            xy=(x, y),
            xytext=(1.03, height),
            textcoords="axes fraction",
            color=color,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.6,
                "relpos": (0, 0.5),
                "shrinkB": 3,
            },
        )


def apart(heights: Sequence[float], *, gap: float) -> list[float]:
    """Rising ``heights`` moved as little as it takes to be ``gap`` apart, and into [0, 1] if they have room."""
    # Less i * gap they have only to rise: least squares is to replace runs that fall by their mean.
    runs: list[list[float]] = []
    for i, height in enumerate(heights):
        runs.append([height - i * gap])
        while len(runs) > 1 and fmean(runs[-1]) < fmean(runs[-2]):
            runs[-2:] = [runs[-2] + runs[-1]]
    room = 1 - (len(heights) - 1) * gap
    places = [min(max(fmean(run), 0.0), room) for run in runs for _ in run]
    return [place + i * gap for i, place in enumerate(places)]
