"""The plots of a leaderboard: bars, and what each method's score costs. Inline SVG in the page's colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from twinflow.lab.leaderboard import Leaderboard, Standing
from twinflow.report.names import label_aside
from twinflow.report.plots import INK, RULE, SERIES, draw_svg

Point = tuple[float, float]  # cost, score
HEIGHT, GAP = 3.9, 0.066  # inches; the part of them between two names in a column


def score_bars(board: Leaderboard) -> str:
    """Scores of all methods, best first, a bar for each NFE with the deviation over seeds; the line is the base's."""
    methods = ranking(board, board.evaluations[0])
    numbers = board.evaluations

    def draw(ax: Axes) -> None:
        height = 0.78 / len(numbers)
        for i, nfe in enumerate(numbers):
            for j, method in enumerate(methods):
                standing = board.standing(method, nfe)
                if standing is None or standing.overall is None:
                    continue
                ax.barh(
                    j + (i - (len(numbers) - 1) / 2) * height,
                    standing.overall,
                    height=height * 0.86,
                    color=_color(board, method),
                    alpha=1 - 0.28 * i,
                    xerr=standing.spread,
                    error_kw={"ecolor": INK, "elinewidth": 0.7},
                )
        if board.base_score is not None:
            ax.axvline(board.base_score, color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
        ax.set_yticks(range(len(methods)), methods)
        ax.tick_params(axis="y", labelcolor=INK)
        ax.invert_yaxis()
        ax.set_xlim(0, 1.02)
        ax.grid(axis="x")
        ax.set_axisbelow(True)

    return draw_svg("lab-bars", draw, size=(4.6, 0.8 + 0.36 * len(methods)))


def score_by_compute(board: Leaderboard) -> str | None:
    """The score in the fewest steps against what the training computed; a line leads there from the search's run, or
    from the base, for which nothing was computed, if the search had no part of the budget."""
    nfe = board.evaluations[0]
    untrained = next((row["overall"] for row in board.base["rows"] if row["nfe"] == nfe), None)
    lines: dict[str, list[Point]] = {}
    for standing in _scored(board, nfe):
        end = (standing.costs["flops"] / 1e12, standing.overall or 0.0)
        part = board.partial.get(standing.method)
        start = (part["flops"] / 1e12, part["scores"].get(str(nfe))) if part is not None else (0.0, untrained)
        kept = part is not None or not board.partial  # a line from nothing has no place on a scale of factors
        lines[standing.method] = [(x, y) for x, y in ([start, end] if kept else [end]) if y is not None]
    return _costs("lab-compute", board, lines, unit="TFLOP of training")


def score_by_memory(board: Leaderboard) -> str | None:
    """The same against the bytes of all parameters and optimiser states that the training holds."""
    lines = {s.method: [(s.held / 1e6, s.overall or 0.0)] for s in _scored(board, board.evaluations[0])}
    return _costs("lab-memory", board, lines, unit="MB of parameters and optimiser states")


def ranking(board: Leaderboard, nfe: int) -> list[str]:
    """Methods by their score at ``nfe``, best first; those that diverged are last."""
    found = {s.method: -1.0 if s.overall is None else s.overall for s in board.standings if s.nfe == nfe}
    return sorted(found, key=lambda method: found[method], reverse=True)


def _scored(board: Leaderboard, nfe: int) -> list[Standing]:
    return [s for s in board.standings if s.nfe == nfe and s.overall is not None]


def _color(board: Leaderboard, method: str) -> str:
    return SERIES[1] if method == board.compared_with else SERIES[0]


def _costs(name: str, board: Leaderboard, lines: Mapping[str, Sequence[Point]], *, unit: str) -> str | None:
    drawn = {method: line for method, line in lines.items() if line}
    if not drawn:
        return None
    xs = [x for line in drawn.values() for x, _ in line]

    def draw(ax: Axes) -> None:
        ends: list[tuple[float, float, str, str]] = []
        for method, line in drawn.items():
            color = _color(board, method)
            ax.plot(
                [x for x, _ in line],
                [y for _, y in line],
                color=color,
                marker="o",
                markersize=4.5,
                linewidth=1.2,
            )
            ends.append((line[-1][0], line[-1][1], method, color))
        if board.base_score is not None:
            ax.axhline(board.base_score, color=RULE, linewidth=1.5)
        wide = min(xs) > 0 and max(xs) / min(xs) > 3
        if wide:
            ax.set_xscale("log")
        ax.set_xlim(min(xs) / 1.25, max(xs) * 1.25)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)) if wide else MaxNLocator(5))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.set_ylim(0, 1.04)
        ax.grid(axis="y")
        ax.set_xlabel(unit)
        label_aside(ax, ends, gap=GAP * HEIGHT / height)

    height = max(
        HEIGHT, HEIGHT * GAP * len(drawn)
    )  # many methods: the column of their names grows, and the plot with it
    return draw_svg(name, draw, size=(4.6, height))
