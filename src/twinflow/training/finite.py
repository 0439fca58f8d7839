"""Stop at the first loss or gradient that is not finite, and say where it came from."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from twinflow.errors import TwinflowError
from twinflow.objectives import Step

_SHOWN_ROWS = 8


@dataclass(kw_only=True)
class _Watched:
    step: int
    what: str
    results: list[Step]
    finite: Tensor  # () bool, on the host once ``ready``
    ready: torch.cuda.Event | None


class FiniteGuard:
    """Watches every step. On the CPU a bad value raises at once, before it reaches the weights.

    A GPU is never waited for: its values are looked at when they have arrived, at the latest before anything
    is saved, so that the last checkpoint is always a good one.
    """

    def __init__(self) -> None:
        self._watched: deque[_Watched] = deque()

    def loss(self, step: int, result: Step) -> None:
        self._watch(step, "the loss", result.loss.detach(), [result])

    def gradient(self, step: int, norm: Tensor, results: list[Step]) -> None:
        self._watch(step, "the gradient", norm, results)

    def check(self, *, wait: bool = False) -> None:
        """Raise ``TwinflowError`` if a value that has arrived is not finite; ``wait`` for all of them."""
        while self._watched:
            first = self._watched[0]
            if first.ready is not None:
                if not wait and not first.ready.query():
                    return
                first.ready.synchronize()
            self._watched.popleft()
            if not first.finite.item():
                raise TwinflowError(_explain(first))

    def _watch(self, step: int, what: str, value: Tensor, results: list[Step]) -> None:
        finite, ready = value.isfinite().all(), None
        if finite.is_cuda:
            arrived = torch.empty((), dtype=torch.bool, pin_memory=True)
            arrived.copy_(finite, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
            finite = arrived
        self._watched.append(_Watched(step=step, what=what, results=results, finite=finite, ready=ready))
        self.check()


def _explain(watched: _Watched) -> str:
    rows = [line for result in watched.results for line in result.rows.describe_non_finite()]
    lines = [f"step {watched.step}: {watched.what} is not finite, so the training was stopped"]
    lines += [f"  {row}" for row in rows[:_SHOWN_ROWS]]
    if len(rows) > _SHOWN_ROWS:
        lines.append(f"  and {len(rows) - _SHOWN_ROWS} more rows")
    if not rows:
        lines += [f"  every row's loss is finite; {_rows_by_role(result)}" for result in watched.results]
    return "\n".join(lines)


def _rows_by_role(result: Step) -> str:
    """Range of times and largest loss of each role in a step, of which no row is to blame alone."""
    parts = []
    for role in dict.fromkeys(result.rows.roles):
        rows = [i for i, name in enumerate(result.rows.roles) if name == role]
        t, r, loss = (
            values.detach().cpu()[rows] for values in (result.rows.t, result.rows.r, result.rows.loss)
        )
        parts.append(
            f"{role}: t in [{t.min():.4g}, {t.max():.4g}], r in [{r.min():.4g}, {r.max():.4g}], "
            f"largest loss {loss.max():.4g}"
        )
    return "; ".join(parts)
