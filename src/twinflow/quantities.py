"""Numbers as people read them: a few digits, and the unit in which there are few."""

from __future__ import annotations

from collections.abc import Sequence


def scaled(number: float, units: Sequence[str], *, digits: int = 4) -> str:
    """``number`` in the first of ``units``, a thousand of the one before it each, in which it is below a thousand."""
    unit, *larger = units
    for name in larger:
        if not abs(number) >= 1000:  # nor is it a number
            break
        number, unit = number / 1000, name
    return f"{number:.{digits}g} {unit}".rstrip()


def parameters(count: float, *, digits: int = 4) -> str:
    """``"20.43 B"``, ``"822.4 k"``, ``"340"``."""
    return scaled(count, ("", "k", "M", "B"), digits=digits)


def operations(count: float) -> str:
    """``"18.62 TFLOP"``, ``"2.31 GFLOP"``."""
    return scaled(count, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def seconds(count: float) -> str:
    """``"2.68 s"``, ``"0.111 s"``, ``"73.4 ms"``."""
    return f"{count * 1000:.3g} ms" if count < 0.1 else f"{count:.3g} s"
