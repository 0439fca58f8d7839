"""Which pipelines can be driven at all: one flow-matching transformer without a target time of its own."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from twinflow.errors import TwinflowError

# What transformers with a target time of their own call it, and what in a configuration says that one is used.
TARGETS = ("r_timestep", "timestep_r", "target_timestep")
NATIVE = ("use_meanflow", "flow_map")


def check_kind(pipe: Any) -> None:
    """Refuse what is not a flow-matching transformer pipeline, before it is run."""
    name = type(pipe).__name__
    if getattr(pipe, "transformer", None) is None:
        parts: dict[str, Any] = getattr(pipe, "components", {})
        networks = sorted(n for n, part in parts.items() if isinstance(part, torch.nn.Module))
        raise TwinflowError(
            f"{name} has no transformer (its networks: {', '.join(networks) or 'none'}): only diffusers pipelines "
            "with a flow-matching transformer can be driven"
        )
    if getattr(pipe, "transformer_2", None) is not None:
        raise TwinflowError(
            f"{name} has two transformers, one for early and one for late times: this version drives one. To train one "
            f"of them for all times, which it has to learn first, save it as a pipeline: {name}.from_pretrained(…, "
            "transformer_2=None, boundary_ratio=None).save_pretrained(…); transformer=… as well takes the other"
        )
    config = getattr(pipe.scheduler, "config", None)
    if config is None:
        raise TwinflowError(f"{name} has no scheduler: the folder is not complete")
    flow = type(pipe.scheduler).__name__.startswith("FlowM") or config.get("use_flow_sigmas")
    if not flow and config.get("prediction_type") != "flow_prediction":
        raise TwinflowError(
            f"{name} is not a flow-matching pipeline: its {type(pipe.scheduler).__name__} expects "
            f"prediction_type = {config.get('prediction_type')!r}; looked for a FlowMatch scheduler or "
            "prediction_type = 'flow_prediction'"
        )
    known = inspect.signature(type(pipe.transformer).forward).parameters
    native = [f"{key} = True in its configuration" for key in NATIVE if pipe.transformer.config.get(key)]
    native += [
        f"its forward needs {key}"
        for key in TARGETS
        if key in known and known[key].default is known[key].empty
    ]
    if native:
        raise TwinflowError(
            f"{type(pipe.transformer).__name__} has a target time of its own ({native[0]}): it generates in few steps "
            "already, and is not driven by this version"
        )
