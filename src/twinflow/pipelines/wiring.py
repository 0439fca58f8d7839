"""How a stock pipeline drives its transformer, found by watching it run (never by its name).

A pipeline calls its transformer with the state, a time, and conditions. Which argument is which, how the time
is scaled, and the sign of the velocity follow from a call of three steps without guidance: the state is the
argument that equals the scheduler's sample, the time is the small one that changes with sigma, the sign is that
of the network's output against the scheduler's step, and everything else is the condition.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twinflow.errors import TwinflowError
from twinflow.pipelines.absent import where_the_weights_are
from twinflow.pipelines.condition import same
from twinflow.pipelines.kind import check_kind
from twinflow.pipelines.time_path import TimePath, TimeRecorder, affine_fit
from twinflow.pipelines.watching import PROBE_SIGMAS, NetworkCall, SchedulerStep, Watcher, run_stock

# Two prompts of different lengths: what differs between one and two rows, and whether text is masked, shows.
PROMPTS = ("a", "a longer prompt")


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """What :func:`discover` found. Times are ``offset + slope · t`` with t in [0, 1], 1 for noise."""

    state: str  # argument that carries x_t
    state_is_list: bool  # one tensor a row
    # The axis along which a source picture follows x_t: its tokens, or its channels. None: there is no source.
    tail_axis: int | None
    state_shape: tuple[int, ...]  # of one row of x_t, as the scheduler sees it
    argument_shape: tuple[int, ...]  # of one row, as the transformer gets it
    time: str
    offset: float
    slope: float
    time_per_token: bool
    sign: float  # velocity (noise minus data) = sign · output
    backwards: bool  # its scheduler is given minus the velocity, and goes the other way
    rows: tuple[str, ...]  # arguments with one row, or entry, for each prompt
    one_prompt_a_call: bool
    call: dict[str, Any]  # arguments of the stock call, with guidance off
    time_path: TimePath

    def argument_of(self, state: Tensor) -> Any:
        """The state (B, …) as the transformer takes it."""
        if self.tail_axis is None:
            for axis, length in enumerate(self.argument_shape):
                # Z-Image: a frame axis that the scheduler does not see.
                if length == 1 and len(self.argument_shape) > state.dim() - 1:
                    state = state.unsqueeze(axis + 1)
        return list(state.unbind()) if self.state_is_list else state

    @property
    def source_has_size(self) -> bool:
        """Whether what the network sees of a source picture is of the size of what is drawn: channels, not tokens."""
        return self.tail_axis is not None and (self.tail_axis, len(self.state_shape)) != (1, 2)

    def noisy(self, times: Tensor) -> Tensor:
        """Which tokens of the times (B, tokens) in a first call, at t = 1, are noise."""
        return (times - self.offset - self.slope).abs() < 0.1 * abs(self.slope)

    def velocity_of(self, output: Any, *, like: Tensor) -> Tensor:
        """Velocity, of the shape of the state ``like`` (B, …), of what the transformer returned."""
        value = stacked(first(output))
        axis = self.tail_axis
        value = value.reshape(like.shape) if axis is None else value.narrow(axis, 0, like.shape[axis])
        return self.sign * value


def discover(pipe: Any, *, call: Mapping[str, Any] | None = None) -> Wiring:
    """Watch ``pipe`` and say how it is driven.

    ``call``: arguments of the stock call besides the prompt (height, width, num_frames, image, …).
    :class:`TwinflowError` for a pipeline that is not a flow-matching transformer, with what was looked for.
    """
    check_kind(pipe)
    reasons = []
    for guidance in guidance_off(pipe):
        arguments = {**size_as_asked(pipe), **guidance, **(call or {})}
        for prompts in (PROMPTS, PROMPTS[-1:]):
            try:
                return _discover(pipe, prompts, arguments)
            except _NotFound as problem:
                reasons.append(str(problem))
                break  # another way to switch guidance off may help, fewer prompts won't
            except TwinflowError:
                raise
            except Exception as error:  # pipelines raise whatever a wrong call leads them to
                if len(prompts) == 1:  # several, with one source picture, are too many for some
                    raise TwinflowError(refusal(pipe, arguments, error)) from error
    raise TwinflowError(
        f"{type(pipe).__name__} can't be driven as a flow-matching model: {'; '.join(dict.fromkeys(reasons))}"
    )


def refusal(pipe: Any, call: dict[str, Any], error: Exception) -> str:
    """What to say when a pipeline does not accept a call."""
    said = f"{type(pipe).__name__} refuses the call {call}: {type(error).__name__}: {error}"
    if isinstance(error, NameError) and not isinstance(error, UnboundLocalError):
        return f"{said}\na package of that name is not installed, which this pipeline needs: pip install {error.name}"
    if "image" in inspect.signature(type(pipe).__call__).parameters and "image" not in call:
        return (
            f"{said}\nit may need a source picture: give one of the size to train at, call={{'image': …}} "
            "(in a recipe, model.call.image: FILE)"
        )
    return said


class _NotFound(Exception):
    """Something that a flow-matching pipeline has was looked for and not found."""


def guidance_off(pipe: Any) -> list[dict[str, Any]]:
    """Ways to call ``pipe`` with one network evaluation a step, most likely first.

    Guidance that is an input of the network (FLUX.1-dev, HunyuanVideo) keeps its default: it is a condition.
    """
    known = inspect.signature(type(pipe).__call__).parameters
    off: dict[str, Any] = {"true_cfg_scale": 1.0} if "true_cfg_scale" in known else {}
    if "guidance_scale" not in known or pipe.transformer.config.get("guidance_embeds") or off:
        return [off]
    return [{"guidance_scale": 1.0}, {"guidance_scale": 0.0}]  # Z-Image guides at every scale above 0


def size_as_asked(pipe: Any) -> dict[str, Any]:
    """What keeps ``pipe`` from drawing another size than it is asked for, and resizing the picture (SANA)."""
    known = inspect.signature(type(pipe).__call__).parameters
    return {"use_resolution_binning": False} if "use_resolution_binning" in known else {}


def _discover(pipe: Any, prompts: tuple[str, ...], call: dict[str, Any]) -> Wiring:
    watcher = Watcher()
    with TimeRecorder(pipe.transformer) as recorder:
        run_stock(pipe, prompts, call=call, watcher=watcher, steps=len(PROBE_SIGMAS))
    calls, steps = watcher.calls, watcher.steps
    if len(calls) != len(steps):
        raise _NotFound(f"it makes {len(calls)} network calls in {len(steps)} steps, expected one a step")
    state, tail_axis = _find_state(calls[0], steps[0])
    time, offset, slope = _find_time(calls, steps, state=state)
    _check_constant(pipe, calls, but=(state, time))
    sample, arguments = steps[0].sample, calls[0].arguments
    rows = tuple(
        name
        for name, value in arguments.items()
        if name not in (state, time) and _has_rows(value, sample.shape[0])
    )
    wiring = Wiring(
        state=state,
        state_is_list=isinstance(arguments[state], (list, tuple)),
        tail_axis=tail_axis,
        state_shape=tuple(sample.shape[1:]),
        argument_shape=tuple(stacked(arguments[state]).shape[1:]),
        time=time,
        offset=offset,
        slope=slope,
        time_per_token=arguments[time].dim() > 1,
        sign=1.0,
        backwards=False,
        rows=rows,
        one_prompt_a_call=len(prompts) == 1,
        call=call,
        time_path=where_the_weights_are(
            pipe.transformer, lambda: recorder.path(PROBE_SIGMAS, batch=sample.shape[0])
        ),
    )
    output, step = calls[0].output, steps[0]
    if not step.model_output.any():  # a new network, whose last layer is zero, says nothing of the sign
        output = _noise_like(output)
        shown = Watcher(network=lambda arguments: output)
        run_stock(pipe, prompts, call=call, watcher=shown)
        step = shown.steps[0]
    velocity, used = wiring.velocity_of(output, like=sample).float(), step.model_output.float()
    sign = float(torch.sign((velocity * used).sum()))
    if not torch.allclose(sign * velocity, used, atol=1e-4, rtol=1e-3):
        raise _NotFound("what its scheduler gets is not plus or minus what its transformer returns")
    # With a time for each token, as LTX's pipeline with conditions has it, diffusers' Euler goes the other way.
    backwards = bool(((step.sample.float() - step.stepped.float()) * used).sum() < 0)
    return Wiring(**{**wiring.__dict__, "sign": -sign if backwards else sign, "backwards": backwards})


def _find_state(call: NetworkCall, step: SchedulerStep) -> tuple[str, int | None]:
    """The argument that carries the scheduler's sample, and the axis along which something else follows it."""
    sample = step.sample.float()
    for name, value in call.arguments.items():
        tensor = stacked(value)
        if tensor is None or not tensor.is_floating_point():
            continue
        if tensor.numel() == sample.numel() and _close(tensor.reshape(sample.shape), sample):
            return name, None
        if tensor.dim() != sample.dim():
            continue
        longer = [axis for axis, length in enumerate(sample.shape) if tensor.shape[axis] > length]
        if len(longer) == 1 and longer[0] > 0:
            head = tensor.narrow(longer[0], 0, sample.shape[longer[0]])
            if head.shape == sample.shape and _close(head, sample):
                return name, longer[0]
    raise _NotFound(
        f"none of its transformer's arguments ({', '.join(call.arguments)}) equals the scheduler's sample of "
        f"shape {tuple(sample.shape)}"
    )


def _find_time(
    calls: list[NetworkCall], steps: list[SchedulerStep], *, state: str
) -> tuple[str, float, float]:
    """The argument that is an affine function of sigma, its value at 0 and its slope."""
    batch = steps[0].sample.shape[0]
    for name, value in calls[0].arguments.items():
        if name == state or not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != batch:
            continue
        values = [float(call.arguments[name].flatten()[-1]) for call in calls]
        affine = affine_fit([step.sigma for step in steps], values)
        if affine is not None:
            return name, *affine
    raise _NotFound(
        f"none of its transformer's arguments ({', '.join(calls[0].arguments)}) is an affine function of the time"
    )


def _check_constant(pipe: Any, calls: list[NetworkCall], *, but: tuple[str, str]) -> None:
    """What is neither state nor time is a condition, recorded once: another time among it would stand still."""
    first_call, *others = [call.arguments for call in calls]
    names = [name for name in first_call if name not in but]
    moving = [name for name in names if not all(same(first_call[name], other.get(name)) for other in others)]
    if moving:
        raise TwinflowError(
            f"{type(pipe).__name__} gives its transformer another {' and '.join(moving)} in each step, besides "
            f"the time ({but[1]}): what is neither has to stay the same in all steps, so it can't be driven"
        )


def _has_rows(value: Any, batch: int) -> bool:
    if isinstance(value, Tensor):
        return value.dim() > 0 and value.shape[0] == batch
    return isinstance(value, list) and len(value) == batch


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal but for rounding: some keep the sample in fp32 and show their network it in bf16, in steps of 1/128."""
    return torch.allclose(one.float(), other, atol=1e-2, rtol=1e-2)


def stacked(value: Any) -> Any:
    """A tensor, or a list of equal tensors as one; None for anything else."""
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, (list, tuple)) or not all(isinstance(entry, Tensor) for entry in value):
        return None
    return torch.stack(list(value)) if len({entry.shape for entry in value}) == 1 else None


def _noise_like(output: Any) -> Any:
    """What the transformer might have returned instead of ``output``."""
    generator = torch.Generator().manual_seed(0)

    def noise(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=generator).to(value)

    value = first(output)
    noisy = noise(value) if isinstance(value, Tensor) else [noise(entry) for entry in value]
    return (noisy, *output[1:]) if isinstance(output, tuple) else type(output)(sample=noisy)


def first(output: Any) -> Any:
    """The first thing that the transformer returned."""
    return output[0] if isinstance(output, tuple) else output.sample
