"""A stock pipeline beside an any-step one: copies of what is changed, and the scheduler of a few-step sampler."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from twinflow.errors import TwinflowError
from twinflow.pipelines.any_step import AnyStepPipeline
from twinflow.pipelines.exported import STEPS_KEY, UNSHIFTED
from twinflow.sampling import few_step_times

StockModule = Any


def schedule_of(nfe: int) -> list[float]:
    """The times of the few-step sampler; :class:`TwinflowError` for a number of steps that there can't be."""
    try:
        return few_step_times(nfe)
    except ValueError as error:
        raise TwinflowError(f"an export is made for a number of steps: {error}") from error


def check_exportable(pipe: AnyStepPipeline, *, nfe: int) -> None:
    if nfe > 1 and pipe.adapter.wiring.backwards:
        raise TwinflowError(
            f"{type(pipe.pipe).__name__} gives its scheduler minus the velocity, with which diffusers' stochastic "
            f"sampling, and so an export for {nfe} steps, goes wrong: export for 1 step"
        )
    if pipe.exported is not None:
        steps = f"{pipe.exported.nfe} step{'s' if pipe.exported.nfe > 1 else ''}"
        raise TwinflowError(
            f"this pipeline is an export for {steps} already: export the checkpoint that it was made from"
        )


def few_step_scheduler(times: list[float]) -> Any:
    """Stock Euler that makes the few-step sampler's steps when it is asked for ``len(times)`` of them."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    several = len(times) > 1
    return FlowMatchEulerDiscreteScheduler(
        **UNSHIFTED,  # by which an export is recognised, without effect on its steps
        **{STEPS_KEY: len(times)},
        stochastic_sampling=several,  # the few-step sampler draws fresh noise at every step
        shift_terminal=times[-1] if several else None,  # with one step it would divide zero by zero
    )


def plain_config(scheduler: Any) -> dict[str, Any]:
    """A scheduler's configuration, for ``from_config``."""
    return {name: value for name, value in scheduler.config.items() if not name.startswith("_")}


def stock_copy(pipe: AnyStepPipeline, times: list[float]) -> Any:
    """The stock pipeline of ``pipe`` with a transformer of its own, its branch and adapters still on, and the
    scheduler of ``times``. Everything else is shared.
    """
    transformer = copy.deepcopy(pipe.pipe.transformer)
    transformer.eval()
    stock = copy.copy(pipe.pipe)
    stock.register_modules(transformer=transformer, scheduler=few_step_scheduler(times))
    return stock


def adapter_layers(transformer: StockModule) -> dict[str, Any]:
    """PEFT's LoRA layers, by the name of the stock layer that each stands for."""
    return {
        name: module
        for name, module in transformer.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer")
    }


def adapter_factors(layer: Any) -> tuple[Tensor, Tensor]:
    """``(down, up)`` fp64 of the adapters that are on: the layer adds ``up @ down`` to its weight."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    down = torch.cat([layer.lora_A[name].weight.double() for name in names])
    up = torch.cat([layer.scaling[name] * layer.lora_B[name].weight.double() for name in names], dim=1)
    return down, up


def run_steps(pipe: AnyStepPipeline, stock: Any, prompt: str | list[str], *, nfe: int, **options: Any) -> Any:
    """A stock call in ``nfe`` steps, as :func:`recommended_call` says. The global generator is left where it is."""
    stock.set_progress_bar_config(disable=True)
    call = {"prompt": prompt, "num_inference_steps": nfe, "output_type": "latent", **recommended_call(pipe)}
    handle = stock.transformer.register_forward_pre_hook(_to_own_dtype, with_kwargs=True)
    try:
        with torch.random.fork_rng(), torch.no_grad():
            return stock(**{**call, **options})
    finally:
        handle.remove()


def _to_own_dtype(transformer: StockModule, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
    """Text encoders may be kept in another precision than the transformer; times stay as they are."""

    def cast(value: Any) -> Any:
        if isinstance(value, list):
            return [cast(entry) for entry in value]
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2:
            return value.to(transformer.dtype)
        return value

    return tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}


def recommended_call(pipe: AnyStepPipeline) -> dict[str, Any]:
    """Arguments of the stock call, besides prompt and steps, by which it draws what the field was trained to."""
    call = dict(pipe.adapter.wiring.call)
    known: Mapping[str, inspect.Parameter] = inspect.signature(type(pipe.pipe).__call__).parameters
    if pipe.guidance_is_an_input and "guidance_scale" in known:
        call.setdefault("guidance_scale", known["guidance_scale"].default)
    return call


def is_picture(value: Any) -> bool:
    return isinstance(value, Image.Image) or (
        isinstance(value, (list, tuple)) and bool(value) and all(map(is_picture, value))
    )
