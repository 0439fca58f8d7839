"""Export to a folder that stock diffusers loads and runs in a fixed number of steps."""

from __future__ import annotations

import copy
from pathlib import Path

from twinflow.export.bake import bake_target_time
from twinflow.pipelines import target_time as tt
from twinflow.pipelines.any_step import AnyStepPipeline, save_stock
from twinflow.sampling import few_step_times


def to_diffusers(pipe: AnyStepPipeline, path: str | Path, *, nfe: int) -> None:
    """Write ``pipe`` as a stock pipeline that generates in ``nfe`` steps; ``pipe`` itself is not changed.

    The target-time branch is folded into the stock weights, and the scheduler is configured to the times of
    the few-step sampler. Call the result with ``num_inference_steps=nfe`` and guidance off (SD3:
    ``guidance_scale=0``): guidance is in the weights.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    times = few_step_times(nfe)
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=1.0,
        use_dynamic_shifting=False,
        stochastic_sampling=nfe > 1,  # the few-step sampler draws fresh noise at every step
        shift_terminal=times[-1] if nfe > 1 else None,  # with one step it would divide zero by zero
    )
    transformer = copy.deepcopy(pipe.pipe.transformer)
    components = pipe.pipe.components | {"transformer": transformer, "scheduler": scheduler}
    stock = type(pipe.pipe)(**components)
    if tt.has_target_time(transformer):
        bake_target_time(AnyStepPipeline(stock, fold_padding=False), times)
    save_stock(stock, path)
