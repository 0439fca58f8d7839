"""What the user sees of a run: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_BETWEEN_LINES = 10.0  # seconds, for counts that advance fast


class ProgressDisplay:
    """Shows one activity at a time; silent in all processes but the main one."""

    def __init__(self, *, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or Console()
        self.quiet = quiet
        self._bar: Progress | None = None
        self._name, self._unit = "", ""
        self._total = self._first = self._now = 0
        self._started = self._last_line = 0.0

    def start(self, name: str, *, total: int, now: int = 0, unit: str = "steps") -> None:
        """Begin an activity of ``total`` units, ``now`` of which are done already."""
        self.stop()
        self._name, self._unit, self._total = name, unit, total
        self._first = self._now = now
        self._started = self._last_line = time.monotonic()
        if self.console.is_terminal and not self.quiet:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._bar.add_task(name, total=total, completed=now, note="")
            self._bar.start()

    def update(self, now: int) -> None:
        self._now = now
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=now, note=self.pace())
        elif time.monotonic() - self._last_line > _BETWEEN_LINES and self._unit != "steps":
            self.line(f"{self._name} {now}/{self._total}  {self.pace()}")

    def line(self, text: str) -> None:
        """A line that stays."""
        self._last_line = time.monotonic()
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def log(self, step: int, values: dict[str, float]) -> None:
        """The numbers of a log point."""
        shown = [f"{name.removeprefix('loss/')} {values[name]:.4g}" for name in values if "loss" in name]
        self.line(f"step {step}/{self._total}  {'  '.join(shown)}  {self.pace()}")

    def pace(self) -> str:
        done, elapsed = self._now - self._first, time.monotonic() - self._started
        if done == 0 or elapsed == 0:
            return ""
        rate = done / elapsed
        left = int((self._total - self._now) / rate)
        return f"{rate:.3g} {self._unit}/s  {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
