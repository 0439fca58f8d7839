"""What says that a folder is an export: a network that is right for one number of steps only.

That is a note beside it, or in the metadata of its one file. Where the note was lost, as when diffusers itself saves an
export anew, the scheduler says it, and where that was replaced, the weights do (:mod:`twinflow.pipelines.mark`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError, safe_open

from twinflow.errors import TwinflowError
from twinflow.pipelines.absent import where_the_weights_are
from twinflow.pipelines.mark import marked_steps
from twinflow.sampling import SamplerSettings, Schedule, few_step_times

EXPORT_FILE = "twinflow_export.json"
METADATA_KEY = "twinflow_export"
SCHEDULER_FILE = "scheduler/scheduler_config.json"
# The scheduler of every export: no shift of any kind, and the number of steps. All but the first two are read for
# dynamic shifting alone, which is off, and no model is published with these values: they have no effect, and go where
# the folder goes.
UNSHIFTED = {"shift": 1.0, "use_dynamic_shifting": False, "base_shift": 0.0, "max_shift": 0.0}
STEPS_KEY = "base_image_seq_len"


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
    dtype: str = "float32"  # of the transformer: in another one stock pipelines may round the times otherwise
    scheduler: dict[str, Any] = field(default_factory=dict)  # configuration of the few-step scheduler
    twinflow: str = ""
    format: int = 1

    def save(self, folder: str | Path) -> None:
        (Path(folder) / EXPORT_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: str | Path) -> Exported | None:
        """What ``folder`` says, or None if it is no export; :class:`TwinflowError` if it can't be understood."""
        file = Path(folder) / EXPORT_FILE
        if not file.is_file():
            return cls._of_scheduler_file(Path(folder) / SCHEDULER_FILE)
        try:
            found = cls(**json.loads(file.read_text()))
            if found.format != 1:
                raise ValueError(f"it says format {found.format}")
        except (ValueError, TypeError) as error:
            raise TwinflowError(f"{file} is not of the format that this version writes: {error}") from error
        return found

    @classmethod
    def of_scheduler(cls, config: Mapping[str, Any]) -> Exported | None:
        """What the scheduler of a pipeline says, or None if it is not an export's."""
        if any(config.get(name) != value for name, value in UNSHIFTED.items()):
            return None
        nfe = int(config[STEPS_KEY])
        return cls(kind="diffusers", nfe=nfe, times=few_step_times(nfe))

    @classmethod
    def of_weights(cls, transformer: Any, time_mlp: str) -> Exported | None:
        """What the weights of a stock transformer say, whose time MLP is ``time_mlp``, or None if they say nothing."""
        nfe = where_the_weights_are(transformer, lambda: marked_steps(transformer, time_mlp))
        return None if nfe is None else cls(kind="diffusers", nfe=nfe, times=few_step_times(nfe))

    @classmethod
    def of_file(cls, file: str | Path) -> Exported | None:
        """What the metadata of a safetensors file says: an exported transformer, or LoRA; None if it says nothing."""
        try:
            with safe_open(file, "pt") as opened:
                said = (opened.metadata() or {}).get(METADATA_KEY)
            return None if said is None else cls(**json.loads(said))
        except (OSError, SafetensorError, ValueError, TypeError):  # of no export, or of another version
            return None

    def as_metadata(self) -> dict[str, str]:
        """What a safetensors file carries so that :meth:`of_file` knows it."""
        return {METADATA_KEY: json.dumps(asdict(self))}

    @classmethod
    def _of_scheduler_file(cls, file: Path) -> Exported | None:
        try:
            config = json.loads(file.read_text())
        except (OSError, ValueError):  # of no pipeline, or a broken one, of which whoever opens it speaks
            return None
        return cls.of_scheduler(config) if isinstance(config, dict) else None

    def refuse(self, name: str | None) -> NoReturn:
        """:class:`TwinflowError` to someone who wants to train the pipeline ``name``."""
        raise TwinflowError(self.refusal(name or "this pipeline"))

    def refusal(self, folder: str | Path, *, one_file: bool = False) -> str:
        """What to say to someone who wants to train it, or to draw with an exported LoRA or a single file."""
        ours = (
            ""
            if self.kind == "lora" or one_file
            else ", or AnyStepPipeline.from_pretrained(…, target_time=False)"
        )
        return (
            f"{folder} is an export for {self.nfe} {'step' if self.nfe == 1 else 'steps'}: its target time is "
            "folded into the weights, so that it is no velocity field any more and can't be trained on. Train "
            f"the checkpoint that it was exported from. To draw with it use diffusers{ours}"
        )

    def check_schedule(self, schedule: Schedule, settings: SamplerSettings) -> None:
        """ValueError for a sampler that asks for other times, or other targets, than the export was made for."""
        times = schedule.times[:-1]
        few = settings.style == "few" and not settings.guided and not any(schedule.corrected)
        same = len(times) == self.nfe and all(
            abs(a - b) < 1e-6 for a, b in zip(times, self.times, strict=True)
        )
        if not same or not few:
            raise ValueError(
                f"this model was exported for exactly {self.nfe} evaluations of style 'few' without guidance: its "
                f"weights are wrong at other times; draw with nfe={self.nfe}, or export again"
            )
