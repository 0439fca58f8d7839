"""How a model is sampled in an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from twinflow.pipelines import AnyStepPipeline

BASE_GUIDANCE = 2.5
MANY_STEPS = 8  # from here on a base model is sampled with guidance


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a model is sampled in an evaluation; ``nfe`` counts every network evaluation of a picture."""

    nfe: int
    guidance: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)  # for twinflow.sampling.sample

    @property
    def style(self) -> str:
        return self.options.get("style", "few" if self.guidance == 1.0 else "multi")


def sampler_for(pipe: AnyStepPipeline, nfe: int, guidance: float | None = None) -> Sampler:
    """How a model is sampled at ``nfe``: few-step if it knows target times, else along its velocity field.

    A base model gets classifier-free guidance where there are evaluations to spend on it.
    """
    if pipe.knows_target_time or pipe.exported is not None:
        return Sampler(nfe=nfe, guidance=1.0 if guidance is None else guidance)
    if guidance is None:
        spare = nfe >= MANY_STEPS and nfe % 2 == 0 and not pipe.guidance_is_an_input
        guidance = BASE_GUIDANCE if spare else 1.0
    return Sampler(nfe=nfe, guidance=guidance, options={"style": "multi", "time_dist": (1.0, 1.0, 1.0)})
