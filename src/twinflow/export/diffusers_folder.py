"""Export to a folder that stock diffusers loads and runs in a fixed number of steps."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from twinflow import __version__
from twinflow.export.bake import bake_target_time
from twinflow.export.card import plain_call, write_card
from twinflow.export.stock import (
    check_exportable,
    few_step_scheduler,
    plain_config,
    recommended_call,
    schedule_of,
    stock_copy,
)
from twinflow.pipelines import target_time as tt
from twinflow.pipelines.any_step import AnyStepPipeline
from twinflow.pipelines.checkpoint import save_stock
from twinflow.pipelines.exported import Exported
from twinflow.pipelines.lora import has_lora, merge_lora


def to_diffusers(pipe: AnyStepPipeline, path: str | Path, *, nfe: int) -> Exported:
    """Write ``pipe`` as a stock pipeline that generates in ``nfe`` steps; ``pipe`` itself is not changed.

    The target-time branch is folded into the stock weights, a trained adapter is merged, and the scheduler is
    configured to the times of the few-step sampler. The folder's ``README.md`` and ``twinflow_export.json`` say how
    the stock pipeline is called: ``num_inference_steps=nfe`` and guidance off, for it is in the weights.

    :class:`TwinflowError` for ``nfe`` below 1, and for a branch that can't be folded.
    """
    stock, exported = baked_stock(pipe, nfe=nfe)
    save_stock(stock, path)
    exported.save(path)
    write_card(path, exported, edits=pipe.edits, video=makes_clips(pipe))
    return exported


def baked_stock(pipe: AnyStepPipeline, *, nfe: int, exact_times: bool = False) -> tuple[Any, Exported]:
    """The stock pipeline that :func:`to_diffusers` writes, and the note beside it. ``exact_times``: see
    :func:`twinflow.export.bake.bake_target_time`."""
    times = schedule_of(nfe)
    check_exportable(pipe, nfe=nfe)
    stock = stock_copy(pipe, times)
    if has_lora(stock.transformer):
        merge_lora(stock.transformer)
    residual = 0.0
    if tt.has_target_time(stock.transformer):
        bake = bake_target_time(pipe, stock, nfe=nfe, times=times, exact_times=exact_times)
        residual = bake.apply(stock.transformer)
    return stock, note(pipe, times, kind="diffusers", residual=residual)


def note(pipe: AnyStepPipeline, times: list[float], *, kind: str, residual: float) -> Exported:
    """What an export says of itself."""
    return Exported(
        kind=kind,
        nfe=len(times),
        times=times,
        call=plain_call(recommended_call(pipe)),
        pipeline=type(pipe.pipe).__name__,
        base=base_of(pipe),
        residual=residual,
        dtype=str(pipe.pipe.transformer.dtype).removeprefix("torch."),
        scheduler=plain_config(few_step_scheduler(times)),
        twinflow=__version__,
    )


def base_of(pipe: AnyStepPipeline) -> str | None:
    """Where the pipeline was loaded from: a hub id, or the last part of a folder's path."""
    name = pipe.pipe.config.get("_name_or_path")
    return (Path(name).name if Path(name).is_absolute() else str(name)) if name else None


def makes_clips(pipe: AnyStepPipeline) -> bool:
    return "num_frames" in inspect.signature(type(pipe.pipe).__call__).parameters
