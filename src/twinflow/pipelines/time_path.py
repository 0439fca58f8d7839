"""Where time enters a stock transformer: its time MLP, and the sinusoid before it.

Nearly every flow-matching transformer has exactly one MLP of two Linears through which time enters, before it is
mixed with pooled text, guidance or size. It sits at one of a few places; what reaches it is found by watching.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from twinflow.errors import TwinflowError

# Where families keep the time MLP, most specific first.
TIME_MLP_PATHS = (
    "time_text_embed.timestep_embedder",
    "time_guidance_embed.timestep_embedder",
    "time_embed.emb.timestep_embedder",
    "time_embed.timestep_embedder",
    "condition_embedder.time_embedder",
    "time_condition_embed.timestep_embedder",
    "time_caption_embed.timestep_embedder",
    "t_embedder.timestep_embedder",
    "t_embedder",
    "timestep_embedder",
    "time_embed.t_embedder",
    "time_step_proj",
    "time_embeddings",
    "time_embedding",
    "time_embedder",
    "t_embedding",
    "time_in",
    "time_embed",
    "to_timestep_embed",
)


Rows = Literal["samples", "tokens", "clean_after"]


@dataclass(frozen=True, kw_only=True)
class TimePath:
    """``mlp``: path of the time MLP. ``sinusoid``: path of the module before it that turns numbers into
    sines, or None where the MLP takes the number itself. What that one gets is ``offset + slope · t``.
    ``rows``: whose times these are, one a sample, one a token (batch first), or one a sample followed by as many
    at time 0, for the tokens of a source picture. ``turn``: some transformers use one sinusoid for time and
    guidance; this is the place of the time among its calls in a forward pass.
    """

    mlp: str
    sinusoid: str | None
    offset: float
    slope: float
    rows: Rows = "samples"
    turn: int = 0

    def number(self, t: Tensor) -> Tensor:
        """``offset + slope · t``, in the order of operations of stock pipelines (bit for bit)."""
        return (t + self.offset / self.slope) * self.slope


def find_time_mlp(transformer: Any) -> str:
    """Path of the time MLP inside ``transformer``; :class:`TwinflowError` says what was looked for."""
    modules = dict(transformer.named_modules())
    for path in TIME_MLP_PATHS:
        if path in modules and len(linears(modules[path])) == 2:
            return path
        if any(name.startswith(f"{path}.") and ".lora_" in name for name in modules):
            raise TwinflowError(
                f"{type(transformer).__name__} has an adapter on its time MLP, {path}, which another library loaded: "
                "make it part of the weights (pipe.fuse_lora(), then pipe.unload_lora_weights()) or take it off"
            )
    raise TwinflowError(
        f"no time MLP found in {type(transformer).__name__}: looked for a module with two Linear layers at "
        + ", ".join(TIME_MLP_PATHS)
    )


def linears(module: nn.Module) -> list[nn.Linear]:
    """The Linear layers of a stock time MLP, first to last; those of an attached branch don't count."""
    named = module.named_modules()
    return [m for name, m in named if isinstance(m, nn.Linear) and not name.startswith("target_embedder")]


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What reached the MLP in one call: see :class:`TimePath`."""

    sinusoid: str | None
    numbers: Tensor
    turn: int


class TimeRecorder:
    """Context manager that records what reaches the time MLP of ``transformer`` in each forward pass."""

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer
        self.mlp = find_time_mlp(transformer)
        self._sines: list[tuple[str, Tensor, Tensor]] = []  # of this pass: sinusoid, its input, its output
        self._found: list[_Found] = []

    def __enter__(self) -> TimeRecorder:
        modules = dict(self.transformer.named_modules())
        self._handles = [modules[self.mlp].register_forward_pre_hook(self._on_mlp)]
        self._handles.append(self.transformer.register_forward_pre_hook(lambda *_: self._sines.clear()))
        for name, module in modules.items():
            if type(module).__name__.endswith("Timesteps"):
                self._handles.append(module.register_forward_hook(self._on_sinusoid(name)))
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _on_sinusoid(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            self._sines.append((name, args[0].detach(), output.detach()))

        return hook

    def _on_mlp(self, module: nn.Module, args: tuple) -> None:
        given = args[0].detach()
        if given.dim() == 1:
            self._found.append(_Found(sinusoid=None, numbers=given, turn=0))
            return
        for place, (name, number, sines) in reversed(list(enumerate(self._sines))):
            if sines.numel() == given.numel() and torch.allclose(
                sines.reshape(given.shape).float(), given.float(), atol=1e-2
            ):
                turn = sum(earlier == name for earlier, *_ in self._sines[:place])
                self._found.append(_Found(sinusoid=name, numbers=number.flatten(), turn=turn))
                return

    def path(self, sigmas: Sequence[float], *, batch: int) -> TimePath:
        """What was found in one pass of ``batch`` samples at each of the times ``sigmas``."""
        per_pass = len(self._found) // len(sigmas)
        found = self._found[::per_pass] if per_pass else []
        # The last sample's last token, or the first row: a noisy one in any layout.
        rows: Rows = "samples"
        if found and found[0].numbers.numel() > batch:
            values = found[0].numbers.float()
            rows = "clean_after" if (values[batch:] != values[0]).all() else "tokens"
        places = [0 if rows == "clean_after" else -1] * len(found)
        numbers = [float(f.numbers[place]) for f, place in zip(found, places, strict=True)]
        fit = affine_fit(list(sigmas), numbers) if len(found) == len(sigmas) else None
        if fit is None:
            raise TwinflowError(
                f"what reaches {self.mlp} in {type(self.transformer).__name__} is no sinusoid of a number that "
                "is affine in the time: the target-time branch can't be attached"
            )
        return TimePath(
            mlp=self.mlp,
            sinusoid=found[0].sinusoid,
            offset=fit[0],
            slope=fit[1],
            rows=rows,
            turn=found[0].turn,
        )


def affine_fit(x: list[float], y: list[float]) -> tuple[float, float] | None:
    """``(a, b)`` with y = a + b x in all points, rounded; None if there is none, or if b is 0."""
    slope = (y[1] - y[0]) / (x[1] - x[0])
    offset = y[0] - slope * x[0]
    scale = max(abs(value) for value in y)
    off = max(abs(offset + slope * xi - yi) for xi, yi in zip(x, y, strict=True))
    if slope == 0 or off > 1e-2 * scale:  # pipelines in bf16 round the time
        return None
    return round(offset, 3) + 0.0, round(slope, 3)
