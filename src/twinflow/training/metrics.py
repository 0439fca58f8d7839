"""Numbers of a run: averaged between two log points, written to metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinflow.objectives import Step
from twinflow.training.checkpoint import replace_text


class MetricWindow:
    """Sums on the device since the last log point; a value is read, and waited for, only there."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}

    def add(self, result: Step) -> None:
        """A micro-batch: its loss, the losses by role, and the objective's metrics."""
        self._add("loss", result.loss.detach())
        for role, loss in result.losses.items():
            self._add(f"loss/{role}", loss)
        for name, value in result.metrics.items():
            self._add(f"metric/{name}", value)

    def add_gradient(self, norm: Tensor) -> None:
        self._add("gradient_norm", norm)

    def close(self) -> dict[str, float]:
        """Means over the micro-batches that had the value (a role may have no row in some); starts anew."""
        names = list(self._sums)
        means = {}
        if names:
            device = next((s.device for s in self._sums.values() if isinstance(s, Tensor)), None)
            sums = [torch.as_tensor(self._sums[n], device=device, dtype=torch.float32) for n in names]
            values = torch.stack(sums).tolist()  # one wait for all
            means = {n: value / self._counts[n] for n, value in zip(names, values, strict=True)}
        self._sums, self._counts = {}, {}
        return means

    def _add(self, name: str, value: Tensor | float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value
        self._counts[name] = self._counts.get(name, 0) + 1


class MetricWriter:
    """``metrics.jsonl``, one line a log point, and TensorBoard's files if it is installed and wanted."""

    def __init__(self, folder: Path, *, tensorboard: bool, start: int) -> None:
        """Lines after step ``start`` are of a part of the run that is now done again: they are dropped."""
        self._path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(self._path) if line["step"] <= start]
        replace_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a", encoding="utf-8")
        self._board = _tensorboard(folder / "tensorboard", start) if tensorboard else None

    def write(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, pixels: Tensor) -> None:
        """A picture (3, H, W) in [0, 1] for TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, pixels, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; one that was cut off by a kill is left out."""
    lines = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
    return lines


def _tensorboard(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=start + 1)
