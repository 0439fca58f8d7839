"""Give a stock diffusers transformer a target time ``r``, without forking its ``forward``.

The class of the innermost time MLP (``TimestepEmbedding`` and its look-alikes) is swapped in place for a
subclass that adds ``(t - r) * target_embedder(r)`` to its output. ``target_embedder`` is a new child of the
MLP, so every stock parameter keeps its name and a stock checkpoint still loads. The gate ``t - r`` makes
``F(x, t, t)`` the pretrained velocity field for any weights of the branch, and the last Linear starts at zero,
so that the network equals the stock one bit for bit at birth.

``t`` and ``r`` travel in a :class:`TimeState`, not in keyword arguments: mixed-precision wrappers cast
arguments, and a time rounded to bf16 is off by up to 40 % of the step that RCGM differentiates over.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# A stock module with attributes that nn.Module's type does not tell of.
StockModule = Any

# Where families keep the MLP through which time enters, most specific first.
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
)


@dataclass
class TimeState:
    """The times of the running forward pass: ``t``, ``r`` (B,) fp32, signed; None outside of one."""

    t: Tensor | None = None
    r: Tensor | None = None


class TargetTimeEmbedder(nn.Module):
    """Embedding of the target time: sinusoid of ``1000 r`` and a copy of the stock time MLP."""

    def __init__(self, time_mlp: nn.Module, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.mlp = copy.deepcopy(time_mlp)
        self.mlp.requires_grad_(True)
        last = _last_linear(self.mlp)
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)

    def forward(self, r: Tensor) -> Tensor:
        weight = _first_linear(self.mlp).weight
        return self.mlp(_sinusoid(1000.0 * r, self.channels).to(weight.dtype))


class _TargetTimeMixin:
    """What the swapped class adds to the stock time MLP."""

    _stock_class: type[nn.Module]
    _time_state: TimeState
    target_embedder: TargetTimeEmbedder
    fake_embedding: nn.Parameter | None

    def forward(self, *args, **kwargs):
        embedding = super().forward(*args, **kwargs)  # type: ignore[misc]  # the stock class's
        t, r = self._time_state.t, self._time_state.r
        if t is None or r is None:
            return embedding
        gap = (t - r).to(embedding.dtype)[:, None]
        embedding = embedding + gap * self.target_embedder(r).to(embedding.dtype)
        if self.fake_embedding is not None:
            is_fake = (t < 0).to(embedding.dtype)[:, None]
            embedding = embedding + is_fake * self.fake_embedding.to(embedding.dtype)
        return embedding


_swapped_classes: dict[type[nn.Module], type[nn.Module]] = {}


def find_time_mlp(transformer: StockModule) -> str:
    """Path of the time MLP inside ``transformer``; ValueError says what was looked for."""
    modules = dict(transformer.named_modules())
    for path in TIME_MLP_PATHS:
        if path in modules and len(_linears(modules[path])) == 2:
            return path
    raise ValueError(
        f"no time MLP found in {type(transformer).__name__}: looked for a module with two Linear layers at "
        + ", ".join(TIME_MLP_PATHS)
    )


def attach_target_time(transformer: StockModule, *, fake_time: str = "negative") -> None:
    """Give ``transformer`` a target-time branch, in place. The network's function does not change.

    ``fake_time`` says how the fake trajectory (t < 0) is marked: "negative" lets the stock sinusoid see the
    negative time, as in the paper; "sign" shows it ``|t|`` and adds a learned embedding that starts at zero,
    so that the fake field starts equal to the real one.
    """
    if fake_time not in ("negative", "sign"):
        raise ValueError(f"fake_time must be 'negative' or 'sign', got {fake_time!r}")
    if has_target_time(transformer):
        raise ValueError("this transformer has a target-time branch already")
    path = find_time_mlp(transformer)
    mlp = transformer.get_submodule(path)
    embedder = TargetTimeEmbedder(mlp, _first_linear(mlp).in_features)
    stock_class = type(mlp)
    if stock_class not in _swapped_classes:
        namespace = {"_stock_class": stock_class}
        _swapped_classes[stock_class] = type(
            f"TargetTime{stock_class.__name__}", (_TargetTimeMixin, stock_class), namespace
        )
    mlp.__class__ = _swapped_classes[stock_class]
    mlp.target_embedder = embedder
    last = _last_linear(mlp.target_embedder.mlp)
    signed = fake_time == "sign"
    mlp.register_parameter(
        "fake_embedding", nn.Parameter(torch.zeros_like(last.weight[:, 0])) if signed else None
    )
    mlp._time_state = transformer._time_state = TimeState()
    transformer._time_mlp_path = path


def detach_target_time(transformer: StockModule) -> None:
    """Take the branch off again, in place: the stock class and state dict are back."""
    mlp = _time_mlp(transformer)
    mlp.__class__ = mlp._stock_class
    del mlp.target_embedder, mlp.fake_embedding, mlp._time_state
    del transformer._time_state, transformer._time_mlp_path


@contextmanager
def detached(transformer: StockModule) -> Iterator[None]:
    """The stock transformer for the length of a block (to save it, say); then the same branch again."""
    mlp, path, state = _time_mlp(transformer), transformer._time_mlp_path, transformer._time_state
    embedder, fake_embedding, swapped = mlp.target_embedder, mlp.fake_embedding, type(mlp)
    detach_target_time(transformer)
    try:
        yield
    finally:
        mlp.__class__ = swapped
        mlp.target_embedder = embedder
        mlp.register_parameter("fake_embedding", fake_embedding)
        mlp._time_state = transformer._time_state = state
        transformer._time_mlp_path = path


def has_target_time(transformer: StockModule) -> bool:
    return hasattr(transformer, "_time_mlp_path")


def marks_fake_by_sign(transformer: StockModule) -> bool:
    """Whether the fake trajectory is marked by the learned embedding instead of a negative time."""
    return _time_mlp(transformer).fake_embedding is not None


def target_time_state_dict(transformer: StockModule) -> dict[str, Tensor]:
    """The branch's own parameters, under their names in the transformer."""
    prefix = transformer._time_mlp_path + "."
    return {
        name: value
        for name, value in transformer.state_dict().items()
        if name.startswith((prefix + "target_embedder.", prefix + "fake_embedding"))
    }


@contextmanager
def times(transformer: StockModule, *, t: Tensor, r: Tensor) -> Iterator[None]:
    """Let the branch see ``t`` and ``r`` (B,) fp32 during one forward pass.

    Enter it inside the trained module's own ``forward``: a recomputation by activation checkpointing then
    sets the same times again.
    """
    state = transformer._time_state
    state.t, state.r = t, r
    try:
        yield
    finally:
        state.t = state.r = None


def _time_mlp(transformer: StockModule) -> StockModule:
    return transformer.get_submodule(transformer._time_mlp_path)


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def _first_linear(module: nn.Module) -> nn.Linear:
    return _linears(module)[0]


def _last_linear(module: nn.Module) -> nn.Linear:
    return _linears(module)[1]


def _sinusoid(x: Tensor, channels: int, max_period: float = 10_000.0) -> Tensor:
    """Cosines then sines of ``x`` (B,) at geometric frequencies, (B, channels) fp32."""
    half = channels // 2
    exponent = torch.arange(half, dtype=torch.float32, device=x.device) / half
    angles = x.float()[:, None] * torch.exp(-math.log(max_period) * exponent)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
