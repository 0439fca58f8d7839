"""How many optimiser steps a budget is good for, where the phases of an objective cost differently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from twinflow.objectives import Objective

SHORTEST = 12  # steps of a probe: two rounds of DMD2's phases
_LONG = 4096  # steps of a run that has every phase


def probe_steps(objective: Objective) -> int:
    """Steps of a run, at least :data:`SHORTEST`, that has every phase of ``objective``."""
    all_of_them, steps = _phases(objective, _LONG).keys(), SHORTEST
    while steps < _LONG and _phases(objective, steps).keys() != all_of_them:
        steps *= 2
    return steps


def steps_within(objective: Objective, costs: Mapping[str, float], amount: float) -> int:
    """The most steps, at least one, of a whole run that costs no more than ``amount``.

    ``costs``: of one step, by the name of its phase.
    """

    def spent(steps: int) -> float:
        return sum(costs[name] * count for name, count in _phases(objective, steps).items())

    low, high = max(1, int(amount / max(costs.values()))), int(amount / min(costs.values())) + 1
    while low < high:
        middle = (low + high + 1) // 2
        if spent(middle) <= amount:
            low = middle
        else:
            high = middle - 1
    return low


def _phases(objective: Objective, steps: int) -> Counter[str]:
    """How many of the ``steps`` of a run each phase has."""
    return Counter(objective.begin(step, steps).name for step in range(steps))
