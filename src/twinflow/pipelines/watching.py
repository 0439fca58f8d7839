"""Run a stock pipeline and watch it: what it passes to its transformer, its scheduler and its autoencoder.

Nothing in the pipeline's class is changed. For the length of one call the instance's ``transformer.forward``, its
scheduler and, if asked for, its autoencoder are replaced; then everything is as it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from twinflow.errors import TwinflowError

ABSENT = {  # what those lack that know other inputs alone, and what to do
    "image": "source image: it does not edit. Leave the picture out, or name a model that edits",
    "num_frames": "number of frames: it makes pictures. Leave it out, or name a model that makes clips",
}
PROBE_SIGMAS = (1.0, 0.5, 0.25)  # exact in bf16, in which many pipelines pass the time


class Stop(Exception):
    """Ends a watched call as soon as enough was seen."""


@dataclass
class NetworkCall:
    arguments: dict[str, Any]  # by name, as the transformer's forward got them
    output: Any


@dataclass
class SchedulerStep:
    sigma: float
    sample: Tensor
    model_output: Tensor
    stepped: Tensor  # the next sample


@dataclass
class Watcher:
    """What to do while the pipeline runs; the defaults only record."""

    calls: list[NetworkCall] = field(default_factory=list)
    steps: list[SchedulerStep] = field(default_factory=list)
    network: Callable[[dict[str, Any]], Any] | None = None  # instead of the transformer
    result: Tensor | None = None  # what the scheduler's steps return, instead of the next sample
    autoencoder: Callable[..., Any] | None = None  # instead of the autoencoder's decoder


class _ProbeScheduler(FlowMatchEulerDiscreteScheduler):
    """Euler at :data:`PROBE_SIGMAS`, whatever the pipeline asks for; every step is recorded."""

    watcher: Watcher
    count: int

    def set_timesteps(  # type: ignore[override]
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        super().set_timesteps(sigmas=list(PROBE_SIGMAS[: self.count]), device=device)  # type: ignore[misc]

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        sigma = PROBE_SIGMAS[len(self.watcher.steps)]
        stepped = super().step(model_output, timestep, sample, *args, **kwargs)  # type: ignore[misc]
        self.watcher.steps.append(
            SchedulerStep(sigma=sigma, sample=sample, model_output=model_output, stepped=stepped[0])
        )
        if self.watcher.result is None:
            return stepped
        if isinstance(stepped, tuple):
            return (self.watcher.result,)
        stepped.prev_sample = self.watcher.result
        return stepped


class _Autoencoder:
    """The pipeline's autoencoder in all but its decoder and its dtype."""

    def __init__(self, autoencoder: Any, decode: Callable[..., Any]) -> None:
        self._autoencoder, self._decode = autoencoder, decode

    dtype = torch.float32  # or the pipeline would round what it passes to the decoder

    def decode(self, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._decode(latents, *args)

    def encode(self, pixels: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._autoencoder.encode(pixels.to(self._autoencoder.dtype), *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._autoencoder, name)


def check_arguments(pipe: Any, call: Mapping[str, Any]) -> None:
    """:class:`TwinflowError` for an argument in ``call`` that the call of ``pipe`` has not."""
    own = inspect.signature(type(pipe).__call__).parameters
    for name in call:
        if name not in own and all(one.kind is not one.VAR_KEYWORD for one in own.values()):
            said = ABSENT.get(name, f"argument {name!r}: its call has {', '.join(list(own)[1:])}")
            raise TwinflowError(f"{type(pipe).__name__} takes no {said}")


@torch.no_grad()
def run_stock(
    pipe: Any,
    prompts: Sequence[str],
    *,
    call: Mapping[str, Any],
    watcher: Watcher,
    steps: int = 1,
    decode: bool = False,
) -> None:
    """One call of ``pipe`` with ``prompts``, watched by ``watcher``, which may end it by :class:`Stop`.

    :class:`TwinflowError` for arguments that it has not, before it is run.
    """
    check_arguments(pipe, call)
    arguments = {
        "prompt": list(prompts) if len(prompts) > 1 else prompts[0],
        "num_inference_steps": steps,
        "output_type": "pt" if decode else "latent",
        "generator": torch.Generator().manual_seed(0),  # the global one stays where it is
        **call,
    }
    with _replaced(pipe, watcher, steps=steps), suppress(Stop):
        pipe(**arguments)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors of two dimensions and more in ``dtype``; times and other numbers as they are."""
    if isinstance(value, list):
        return [_cast(entry, dtype) for entry in value]
    if isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2:
        return value.to(dtype)
    return value


@contextmanager
def _replaced(pipe: Any, watcher: Watcher, *, steps: int) -> Iterator[None]:
    network = pipe.transformer
    signature = inspect.signature(type(network).forward)
    stock_forward = network.forward
    own_forward = network.__dict__.get("forward")  # hooks of other libraries put one there

    def forward(*args: Any, **kwargs: Any) -> Any:
        arguments = dict(signature.bind(network, *args, **kwargs).arguments)
        arguments.pop("self")
        if watcher.network is not None:
            output = watcher.network(arguments)
        else:  # text encoders may be kept in another precision than the transformer
            dtype = network.dtype
            output = stock_forward(**{name: _cast(value, dtype) for name, value in arguments.items()})
        watcher.calls.append(NetworkCall(arguments=arguments, output=output))
        return output

    scheduler = _ProbeScheduler(shift=1.0)
    scheduler.watcher, scheduler.count = watcher, steps
    kept = {name: pipe.__dict__.get(name) for name in ("scheduler", "vae", "_progress_bar_config")}
    # Past the pipeline's own __setattr__, which would note the new classes in its configuration.
    pipe.__dict__.update(scheduler=scheduler, _progress_bar_config={"disable": True})
    if watcher.autoencoder is not None:
        pipe.__dict__["vae"] = _Autoencoder(kept["vae"], watcher.autoencoder)
    network.forward = forward
    try:
        yield
    finally:
        if own_forward is None:
            del network.forward
        else:
            network.forward = own_forward
        for name, value in kept.items():
            if value is None:
                pipe.__dict__.pop(name, None)
            else:
                pipe.__dict__[name] = value
