"""Plans as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from twinflow.planner.comparison import Row
from twinflow.planner.plan import Plan, size
from twinflow.planner.remedies import Tried
from twinflow.quantities import operations, parameters, seconds


def model_table(plan: Plan) -> Table:
    """Parameters by part."""
    table = _table("model", plan.model, "parameters", "share")
    for name, count in list(plan.groups.items())[:10]:
        table.add_row(name, parameters(count), share(count, plan))
    table.add_section()
    table.add_row("all", parameters(plan.parameters, digits=5), "")
    table.add_row("trained", parameters(plan.trained, digits=5), share(plan.trained, plan))
    return table


def memory_table(plan: Plan) -> Table:
    """Memory of one GPU by component."""
    layout = f", sharded among {plan.shards}" if plan.sharded else ""
    layout += f", {plan.context} for the tokens of a row" if plan.context > 1 else ""
    table = _table("memory", f"on each of {plan.gpus} x {plan.gpu.name}{layout}", "at the peak")
    for component in plan.components:
        table.add_row(component.name, size(component.bytes))
    table.add_section()
    for name, count in {"peak": plan.peak, "while it opens, on the first": plan.opening}.items():
        verdict = "fits" if count <= plan.gpu.memory else "does not fit"
        if count:
            table.add_row(name, f"{size(count)} of {size(plan.gpu.memory)}: {verdict}")
    if plan.host:
        table.add_row("on the host", size(plan.host))
    return table


def time_table(plan: Plan) -> Table:
    """Work and the floor of the time."""
    profile = plan.profile
    forward, work = profile.forward_flops, profile.step_flops / plan.setup.batch
    table = _table("time", "what", "how much")
    table.add_row("forward of one row", operations(forward))
    table.add_row("network calls a step", f"{profile.schedule.calls:.3g}")
    table.add_row("rows without gradient, per row", f"{profile.schedule.rows:.3g}")
    table.add_row("work of one row's step", f"{operations(work)} = {work / forward:.3g} forwards")
    table.add_row("rows a step", f"{plan.rows}")
    table.add_row("floor of a step", seconds(plan.step_seconds))
    table.add_row(f"floor of {plan.setup.steps} steps", duration(plan.run_seconds))
    table.add_row("a real step, of 20 B on an H100", "1.8 to 3.3 floors")  # benchmarks/results/gpu_20b.json
    return table


def remedy_table(plan: Plan, tried: Sequence[Tried]) -> Table:
    """Changes, each with all before it."""
    table = _table("what makes it fit", "change, with those before it", "peak", "floor of a step", "costs")
    table.add_row("as it is", size(plan.needed), seconds(plan.step_seconds), "")
    for entry in tried:
        new = entry.plan
        verdict = ", fits" if new.fits else ""
        table.add_row(
            entry.remedy.overrides,
            f"{size(new.needed)}{verdict}",
            seconds(new.step_seconds),
            entry.remedy.costs,
        )
    return table


def comparison_table(rows: Sequence[Row]) -> Table:
    """TwinFlow and methods of several networks."""
    table = _table("one network or three", "method", "networks trained", "frozen", "peak", "work per update")
    for row in rows:
        verdict = "fits" if row.fits else "does not fit"
        table.add_row(
            row.method,
            str(row.trained),
            str(row.frozen),
            f"{size(row.peak)}, {verdict}",
            f"{row.forwards:.3g} forwards",
        )
    return table


def share(count: int, plan: Plan) -> str:
    """Of all parameters, in per cent; what rounds to none is said to be less than 0.1."""
    percent = 100 * count / plan.parameters
    return "< 0.1 %" if 0 < percent < 0.05 else f"{percent:.1f} %"


def duration(count: float) -> str:
    """Seconds as ``"3 d 4 h"``, ``"5 h 10 min"``, ``"40 s"``."""
    for unit, length, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if count >= length:
            return f"{int(count // length)} {unit} {int(count % length // part)} {smaller}"
    return f"{count / 60:.1f} min" if count >= 60 else seconds(count)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(
            column, justify="left" if number == 0 or column == "costs" else "right", overflow="fold"
        )
    return table
