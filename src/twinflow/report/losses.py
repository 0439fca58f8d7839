"""Loss curves from the ``metrics.jsonl`` of training runs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PREFIXES = ("loss/", "losses/")
TOTAL = "loss"


@dataclass(kw_only=True)
class Curve:
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def smoothed(self, window: int) -> Curve:
        """Centred running means, the window cut short at both ends."""
        half, n = window // 2, len(self.values)
        means = []
        for i in range(n):
            part = self.values[max(0, i - half) : min(n, i + half + 1)]
            means.append(sum(part) / len(part))
        return Curve(steps=self.steps, values=means)


def read_losses(path: Path) -> dict[str, Curve]:
    """Curves by role; ``"loss"`` is the total. A line that isn't whole, or a loss that isn't finite, is left out.

    A role's loss is either flat, ``"loss/one_step": 0.3``, or inside ``"losses": {"one_step": 0.3}``.
    """
    curves: dict[str, Curve] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # a killed run leaves a torn line
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            continue
        for name, value in _losses_of(entry).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                curve = curves.setdefault(name, Curve())
                curve.steps.append(entry["step"])
                curve.values.append(float(value))
    return curves


def _losses_of(entry: dict[str, Any]) -> dict[str, Any]:
    nested = entry.get("losses")
    found = dict(nested) if isinstance(nested, dict) else {}
    for key, value in entry.items():
        prefix = next((p for p in _PREFIXES if key.startswith(p)), None)
        if prefix is not None:
            found[key[len(prefix) :]] = value
    if TOTAL in entry:
        found[TOTAL] = entry[TOTAL]
    return found
