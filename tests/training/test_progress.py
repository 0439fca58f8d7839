"""What a run says of its pace."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from twinflow.training import progress
from twinflow.training.progress import ProgressDisplay


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_rate_and_time_left(clock: Clock) -> None:
    display = ProgressDisplay(quiet=True)
    display.start("training", total=10_000)
    assert display.pace() == ""  # nothing is known yet
    clock.now += 20
    display.update(50)
    assert display.pace() == "2.5 steps/s  1:06:20 left"  # 9950 / 2.5 s
    clock.now += 3980 - 20
    display.update(9_950)
    assert display.pace() == "2.5 steps/s  0:00:20 left"
    display.update(10_000)
    assert display.pace().endswith("0:00:00 left")


def test_what_was_done_before_is_no_part_of_the_rate(clock: Clock) -> None:
    display = ProgressDisplay(quiet=True)
    display.start("caching", total=300, now=200, unit="pictures")
    clock.now += 4
    display.update(220)
    assert display.pace() == "5 pictures/s  0:00:16 left"
    display.start("training", total=4)  # and a new activity has a clock of its own
    clock.now += 2
    display.update(1)
    assert display.pace() == "0.5 steps/s  0:00:06 left"


def test_a_line_of_the_log_has_the_losses_and_the_pace(clock: Clock) -> None:
    written = io.StringIO()
    display = ProgressDisplay(console=Console(file=written))
    display.start("training", total=20)
    clock.now += 10
    display.update(5)
    display.log(5, {"loss": 0.5, "loss/fake": 0.25, "lr": 1e-4})
    assert written.getvalue() == "step 5/20  loss 0.5  fake 0.25  0.5 steps/s  0:00:30 left\n"
