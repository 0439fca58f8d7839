"""The note in an export's folder that says what it is: a network that is right for one number of steps only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from twinflow.errors import TwinflowError

EXPORT_FILE = "twinflow_export.json"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was exported. ``times``: those of the few-step sampler, where alone the network is the trained one."""

    kind: str  # "diffusers", "lora" or "slim"
    nfe: int
    times: list[float]
    call: dict[str, Any] = field(default_factory=dict)  # arguments of the stock call, besides the prompt
    pipeline: str = ""
    base: str | None = None
    residual: float = 0.0  # relative, of the target time in the stored weights
    scheduler: dict[str, Any] = field(default_factory=dict)  # configuration of the few-step scheduler
    twinflow: str = ""
    format: int = 1

    def save(self, folder: str | Path) -> None:
        (Path(folder) / EXPORT_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: str | Path) -> Exported | None:
        """The note in ``folder``, or None where there is none; :class:`TwinflowError` if it can't be understood."""
        file = Path(folder) / EXPORT_FILE
        if not file.is_file():
            return None
        try:
            found = cls(**json.loads(file.read_text()))
            if found.format != 1:
                raise ValueError(f"it says format {found.format}")
        except (ValueError, TypeError) as error:
            raise TwinflowError(f"{file} is not of the format that this version writes: {error}") from error
        return found

    def refusal(self, folder: str | Path) -> str:
        """What to say to someone who wants to train it."""
        return (
            f"{folder} is an export for {self.nfe} {'step' if self.nfe == 1 else 'steps'}: its target time is "
            "folded into the weights, so that it is no velocity field any more and can't be trained on. Train "
            "the checkpoint that it was exported from. To draw with it use diffusers, or "
            "AnyStepPipeline.from_pretrained(…, target_time=False)"
        )

    def check_sampling(self, times: Sequence[float], *, few: bool) -> None:
        """ValueError for a sampler that asks for other times, or other targets, than the export was made for."""
        same = len(times) == self.nfe and all(
            abs(a - b) < 1e-6 for a, b in zip(times, self.times, strict=True)
        )
        if not same or not few:
            raise ValueError(
                f"this model was exported for exactly {self.nfe} evaluations of style 'few' without guidance: its "
                f"weights are wrong at other times; draw with nfe={self.nfe}, or export again"
            )
