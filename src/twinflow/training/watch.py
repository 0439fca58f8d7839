"""What was foretold of a run's memory, and what was measured, beside each other."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass

import torch

from twinflow.training.accountant import Accountant

AFTER = 10  # steps, when the optimiser's states and the allocator's pools are what they will be


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """``line`` says it to the user; ``bytes`` is the peak of what torch allocates, None if it is not known."""

    line: str
    bytes: int | None

    def beside(self, measured: int, *, device: torch.device) -> str:
        """The line after :data:`AFTER` steps."""
        if self.bytes is None:
            return f"measured: {_gib(measured)} {_what(device)}"
        share = f", {measured / self.bytes - 1:+.0%}" if device.type == "cuda" else ""
        return f"measured: {_gib(measured)} {_what(device)}, planned {_gib(self.bytes)}{share}"


def begin_measuring(device: torch.device, accountant: Accountant | None) -> None:
    """Forget the peak of the opening, in which the first of several processes holds the whole model on its GPU;
    ``accountant`` notes it before."""
    if accountant is not None:
        accountant.peak_memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def measured_peak(device: torch.device) -> int:
    """Bytes: on CUDA what torch has allocated at most since then; else the largest size of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _what(device: torch.device) -> str:
    return (
        "allocated at the peak"
        if device.type == "cuda"
        else "in the whole process, libraries and data included"
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
