"""Numbers of plans, as they are printed."""

from __future__ import annotations

from twinflow.planner.plan import size
from twinflow.planner.tables import duration
from twinflow.quantities import operations, parameters


def test_figures_are_read_at_every_size() -> None:
    assert [parameters(n) for n in (0, 340, 2720, 822_400, 3_629_300, 20_430_401_088)] == [
        *("0", "340", "2.72 k", "822.4 k", "3.629 M", "20.43 B")
    ]
    assert [operations(n) for n in (12, 2.31e9, 18.62e12, 2.145e15)] == [
        *("12 FLOP", "2.31 GFLOP", "18.62 TFLOP", "2.145 PFLOP")
    ]
    assert [duration(n) for n in (2e-5, 0.0734, 0.111, 59, 61, 7200)] == [
        *("0.02 ms", "73.4 ms", "0.111 s", "59 s", "1.0 min", "2 h 0 min")
    ]
    assert [size(n) for n in (0, 1000, 2**20, 61.2 * 2**30)] == ["0.0 KiB", "1.0 KiB", "1.0 MiB", "61.2 GiB"]
