"""The leaderboard as one HTML page: standings, bars, what scores cost, pictures of all methods at equal seeds."""

from __future__ import annotations

from html import escape
from pathlib import Path

from twinflow.evaluation.results import EvaluationRow, EvaluationTable
from twinflow.lab.leaderboard import Leaderboard, Standing
from twinflow.lab.plots import ranking, score_bars, score_by_compute, score_by_memory
from twinflow.report.gallery import compare, spread
from twinflow.report.html import definitions, document, figure, section
from twinflow.report.pictures import tile
from twinflow.report.text import NONE, percent, row_name, score, task_name, with_error

PROMPTS = 8  # columns of the picture grid


def leaderboard_page(folder: Path, board: Leaderboard, table: EvaluationTable) -> str:
    """``table``: the rows of the base and of one seed of each method, whose pictures lie in ``folder``."""
    body = [_header(board), _standings(board), _plots(board), _tasks(board), _grid(folder, board, table)]
    body.append(_costs(board))
    body.append(section("Protocol", definitions(board.facts), name="protocol"))
    return document("Leaderboard", "".join(body))


def headline(board: Leaderboard) -> tuple[str, str]:
    """Who is best in the fewest steps, and how the method does that the others are compared with."""
    nfe = board.evaluations[0]
    order = ranking(board, nfe)
    steps = "1 evaluation" if nfe == 1 else f"{nfe} evaluations"
    best, ours = board.standing(order[0], nfe), board.standing(board.compared_with, nfe)
    if best is None or best.overall is None:
        return "No method has a score.", ""
    alike = [m for m in order if (s := board.standing(m, nfe)) is not None and s.overall == best.overall]
    first = f"{best.method} scores best with {steps}: {score(best.overall)}."
    if len(alike) > 1:
        first = f"{len(alike)} methods share the best score with {steps}: {score(best.overall)}."
    base = "" if board.base_score is None else f" The base scores {score(board.base_score)} at its best."
    if ours is None or ours.overall is None or ours.method in alike:
        return first, base.strip()
    place = f"{ours.method} is number {order.index(ours.method) + 1} of {len(order)}"
    return first, f"{place}, with {with_error(ours.overall, ours.spread)}.{base}"


def _header(board: Leaderboard) -> str:
    first, second = headline(board)
    kicker = " · ".join(str(board.facts[key]) for key in ("budget", "level", "date") if key in board.facts)
    return (
        f'<header>\n<p class="kicker">Leaderboard · {escape(kicker)}</p>\n<h1>{escape(first)}</h1>\n'
        f'<p class="lead">{escape(second)}</p>\n</header>\n'
    )


def _standings(board: Leaderboard) -> str:
    nfe = board.evaluations
    titles = [f"{n} NFE" for n in nfe] + [f"Of the base, {nfe[0]} NFE", "Diversity", "Fréchet", "Diverged"]
    best = {
        n: max((s.overall for s in board.standings if s.nfe == n and s.overall is not None), default=None)
        for n in nfe
    }
    lines = []
    for method in ranking(board, nfe[0]):
        at = {n: board.standing(method, n) for n in nfe}
        first = at[nfe[0]]
        assert first is not None
        cells = [_score_cell(s, best=best[n]) for n, s in at.items()]
        kept = NONE if first.ratio is None else percent(first.ratio)
        rest = [kept, score(first.diversity, 2), score(first.frechet, 2), f"{first.diverged} of {first.runs}"]
        cells += [f"<td>{escape(text)}</td>" for text in rest]
        lines.append(_line(board, method, cells))
    note = (
        "NFE is network evaluations a picture. ± is the standard deviation over seeds, where there are several. "
        f"Diversity and Fréchet distance are those at {nfe[0]} NFE; diverged runs are left out of the means."
    )
    return section("Standings", _table(titles, lines), note=note, name="numbers")


def _score_cell(standing: Standing | None, *, best: float | None) -> str:
    if standing is None:
        return f"<td>{NONE}</td>"
    return _cell(standing.overall, standing.spread, best=best)


def _cell(value: float | None, spread: float | None, *, best: float | None, digits: int = 3) -> str:
    if value is None:
        return f"<td>{NONE}</td>"
    text = f"<b>{score(value, digits)}</b>" if value == best else score(value, digits)
    return f"<td>{text}" + (f"<small>±{score(spread, digits)}</small></td>" if spread else "</td>")


def _tasks(board: Leaderboard) -> str:
    """Scores of each task in the fewest steps."""
    nfe = board.evaluations[0]
    at = {method: s for method in ranking(board, nfe) if (s := board.standing(method, nfe)) is not None}
    tasks = list(dict.fromkeys(task for standing in at.values() for task in standing.tasks))
    best = {task: max(s.tasks[task] for s in at.values() if task in s.tasks) for task in tasks}
    lines = []
    for method, s in at.items():
        cells = [
            _cell(s.tasks.get(task), s.task_spreads.get(task), best=best[task], digits=2) for task in tasks
        ]
        lines.append(_line(board, method, cells))
    note = (
        f"At {nfe} NFE; ± is the standard deviation over seeds. <code>leaderboard.md</code> has the others."
    )
    return section("By task", _table([task_name(t) for t in tasks], lines), note=note, name="tasks")


def _plots(board: Leaderboard) -> str:
    numbers = ", ".join(map(str, board.evaluations))
    first = f"Score at {board.evaluations[0]} NFE"
    figures = figure(f"Score at {numbers} NFE, strongest colour first; dashed: the base", score_bars(board))
    start = (
        "the search’s share of the budget to all of it" if board.partial else "the base to the whole budget"
    )
    for title, svg in (
        (f"{first} by compute: from {start}", score_by_compute(board)),
        (f"{first} by memory held", score_by_memory(board)),
    ):
        figures += figure(title, svg) if svg is not None else ""
    return section("At a glance", f'<div class="plots">\n{figures}</div>\n', name="glance")


def _grid(folder: Path, board: Leaderboard, table: EvaluationTable) -> str:
    """A line for each method, a column for each prompt and seed; the base comes first, at its best and alike."""
    nfe = board.evaluations[0]
    rows: list[EvaluationRow] = []
    for model, number in [
        ("base", board.base_nfe),
        ("base", nfe),
        *((m, nfe) for m in ranking(board, nfe)),
    ]:
        row = table.row(model, number)
        if row is not None and row.samples and not any(row is other for other in rows):
            rows.append(row)
    comparisons = spread(compare(folder, rows), PROMPTS)
    if not comparisons:
        return ""
    head = "".join(f"<th>{escape(c.prompt.removeprefix('a photo of '))}</th>" for c in comparisons)
    lines = ""
    for i, row in enumerate(rows):
        tiles = "".join(f"<td>{tile(c.tiles[i])}</td>" for c in comparisons)
        lines += f'<tr><th scope="row">{escape(row_name(row))}</th>{tiles}</tr>\n'
    body = (
        f"<div class=\"scroll\"><table class='wall'><thead><tr><th></th>{head}</tr></thead>\n"
        f"<tbody>{lines}</tbody></table></div>\n"
    )
    note = (
        "The same prompts and seeds in every line, spread evenly over the tasks; ✓ and ✗ are the verifier’s."
    )
    return section("The same scenes", body, note=note, name="every")


def _costs(board: Leaderboard) -> str:
    titles = ["Steps", "Forwards an image", "Backwards an image", "TFLOP", "Seconds", "Peak memory", "Held"]
    titles += [f"Against {board.compared_with}", "Trained", "Frozen", "Optimiser"]
    lines = []
    for method in ranking(board, board.evaluations[0]):
        s = board.standing(method, board.evaluations[0])
        assert s is not None
        texts = [f"{s.costs['steps']:.0f}"]
        texts += [f"{s.per_image[key]:.2f}" for key in ("forwards", "backwards")]
        texts += [f"{s.costs['flops'] / 1e12:.3g}", f"{s.costs['seconds']:.0f}"]
        texts += [
            f"{s.costs['peak_memory'] / 1e6:.0f} MB",
            f"{s.held / 1e6:.0f} MB",
            score(s.memory_ratio, 2),
        ]
        texts += [f"{s.holdings[key] / 1e6:.2f} M" for key in ("trained", "frozen")]
        texts.append(f"{s.holdings['optimizer_bytes'] / 1e6:.1f} MB")
        lines.append(_line(board, method, [f"<td>{escape(text)}</td>" for text in texts]))
    note = (
        "Means over the runs of a method. <i>Peak memory</i> is that of the device, or of the whole process on a CPU; "
        "<i>held</i> are all parameters and optimiser states, "
        f"<i>against {escape(board.compared_with)}</i> compares these; "
        "<i>trained</i> and <i>frozen</i> are parameters of all networks, teachers and averages."
    )
    return section("Cost of a run", _table(titles, lines), note=note, name="numbers")


def _line(board: Leaderboard, method: str, cells: list[str]) -> str:
    kind = "first trained" if method == board.compared_with else "first"
    return f'<tr class="{kind}"><th scope="row">{escape(method)}</th>{"".join(cells)}</tr>\n'


def _table(titles: list[str], lines: list[str]) -> str:
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    return (
        f'<div class="scroll"><table class="scores"><thead><tr><th scope="col">Method</th>{head}</tr></thead>\n'
        f"<tbody>{''.join(lines)}</tbody></table></div>\n"
    )
