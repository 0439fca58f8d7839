"""The bar of an evaluation: pictures, pictures a second, time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from twinflow.evaluation.benchmark import Progress

PERIOD = 3600  # seconds that the speed is taken over: on a CPU one picture can take minutes


class _Speed(ProgressColumn):
    """Pictures a second, over the last hour or the last thousand."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f} images/s" if speed >= 1 else f"{1 / speed:.1f} s/image", style="dim")


@contextmanager
def bar(title: str, total: int, *, shown: bool, console: Console | None = None) -> Iterator[Progress]:
    """A function to tell how many are done, of how many.

    What its first call tells was there before, or warmed the machine up: it does not count as speed.
    """
    if not shown:
        yield lambda done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Speed(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True, speed_estimate_period=PERIOD) as bars:
        task = bars.add_task(title, total=total)
        yield lambda done, total: bars.update(task, completed=min(done, total), total=total)
