"""Give a stock diffusers transformer a target time ``r``, without forking its ``forward``.

The class of the time MLP is swapped in place for a subclass that adds ``(t - r) * target_embedder(r)`` to its
output. ``target_embedder`` is a new child of the MLP, so every stock parameter keeps its name and a stock
checkpoint still loads. The gate ``t - r`` makes ``F(x, t, t)`` the pretrained velocity field for any weights of
the branch, and the last Linear starts at zero, so that the network equals the stock one bit for bit at birth.

``t`` and ``r`` travel in a :class:`TimeState`, not in keyword arguments: mixed-precision wrappers cast
arguments, and a time rounded to bf16 is off by up to 40 % of the step that RCGM differentiates over. For the
same reason the sinusoid before the MLP is swapped too: it reads the fp32 time, whatever reached it.
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

from twinflow.pipelines.time_path import TimePath, find_time_mlp, linears

# A stock module with attributes that nn.Module's type does not tell of.
StockModule = Any

BRANCH = ("target_embedder", "fake_embedding")  # what attaching adds to the MLP


@dataclass
class TimeState:
    """The times of the running forward pass: ``t``, ``r`` (B,) fp32, signed; None outside of one.

    ``shown`` is the time that the stock sinusoid sees: ``t``, or ``|t|`` where an embedding marks t < 0.
    ``sinusoids`` counts the calls of that sinusoid.
    """

    t: Tensor | None = None
    r: Tensor | None = None
    shown: Tensor | None = None
    sinusoids: int = 0


class TargetTimeEmbedder(nn.Module):
    """Embedding of the target time: ``1000 r``, or its sinusoid, through a copy of the stock time MLP."""

    def __init__(self, time_mlp: nn.Module, *, takes_number: bool) -> None:
        super().__init__()
        self.takes_number = takes_number
        self.channels = linears(time_mlp)[0].in_features
        self.mlp = copy.deepcopy(time_mlp)
        self.mlp.requires_grad_(True)
        last = linears(self.mlp)[-1]
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)

    def forward(self, r: Tensor) -> Tensor:
        if self.takes_number:
            return self.mlp(1000.0 * r)
        return self.mlp(_sinusoid(1000.0 * r, self.channels).to(linears(self.mlp)[0].weight.dtype))


class _ExactTimes:
    """What the swapped class of a sinusoid, or of an MLP that takes numbers, does to its input."""

    _time_state: TimeState
    _time_path: TimePath | None

    def _exact(self, number: Tensor) -> Tensor:
        """``number`` (R,) with the fp32 time in every row but those of clean tokens."""
        path, shown = self._time_path, self._time_state.shown
        if path is None or shown is None:
            return number
        exact = path.number(shown)  # (B,)
        if path.rows == "samples":
            return exact.reshape(number.shape)
        if path.rows == "clean_after":
            return torch.cat([exact, number.flatten()[exact.shape[0] :].to(exact.dtype)])
        tokens = exact.repeat_interleave(number.numel() // exact.shape[0]).reshape(number.shape)
        return torch.where(number == path.offset, number.to(exact.dtype), tokens)


class _SinusoidMixin(_ExactTimes):
    def forward(self, timesteps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        state, path = self._time_state, self._time_path
        turn = state.sinusoids
        state.sinusoids += 1
        if path is not None and turn == path.turn:  # not that of the guidance, say
            timesteps = self._exact(timesteps)
        return super().forward(timesteps, *args, **kwargs)  # type: ignore[misc]


class _TargetTimeMixin(_ExactTimes):
    """What the swapped class adds to the stock time MLP."""

    target_embedder: TargetTimeEmbedder
    fake_embedding: nn.Parameter | None

    def forward(self, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.target_embedder.takes_number:
            sample = self._exact(sample)
        embedding = super().forward(sample, *args, **kwargs)  # type: ignore[misc]  # the stock class's
        t, r = self._time_state.t, self._time_state.r
        if t is None or r is None:
            return embedding
        signal = (t - r)[:, None].to(embedding.dtype) * self.target_embedder(r).to(embedding.dtype)
        if self.fake_embedding is not None:
            is_fake = (t < 0).to(embedding.dtype)[:, None]
            signal = signal + is_fake * self.fake_embedding.to(embedding.dtype)
        return embedding + self._to_rows(signal, sample, embedding)

    def _to_rows(self, signal: Tensor, sample: Tensor, embedding: Tensor) -> Tensor:
        """``signal`` (B, D) for every row of ``embedding``; clean rows, of condition tokens, get none."""
        rows, batch = embedding.numel() // embedding.shape[-1], signal.shape[0]
        if rows == batch:
            return signal.reshape(embedding.shape)
        if self._time_path is not None and self._time_path.rows == "clean_after":
            clean = signal.new_zeros(rows - batch, signal.shape[1])
            return torch.cat([signal, clean]).reshape(embedding.shape)
        # One row a token. Clean ones are at time 0, whose sines, the second half of the sinusoid, are 0.
        sines = sample.reshape(rows, -1)[:, sample.shape[-1] // 2 :]
        noisy = (sines != 0).any(1, keepdim=True).to(signal.dtype)
        return (noisy * signal.repeat_interleave(rows // batch, 0)).reshape(embedding.shape)


_swapped_classes: dict[tuple[type, type], type] = {}


def _swap(module: StockModule, mixin: type) -> None:
    """Give ``module`` the subclass of its stock class that has ``mixin``."""
    stock = type(module)
    key = (mixin, stock)
    if key not in _swapped_classes:
        _swapped_classes[key] = type(f"TargetTime{stock.__name__}", key, {"_stock_class": stock})
    module.__class__ = _swapped_classes[key]


def attach_target_time(
    transformer: StockModule, *, path: TimePath | None = None, fake_time: str = "negative"
) -> None:
    """Give ``transformer`` a target-time branch, in place. The network's function does not change.

    ``path``: where time enters, as found by watching the pipeline; without it the time MLP is looked for, and
    the time is as exact as the stock pipeline passes it. ``fake_time`` says how the fake trajectory (t < 0) is
    marked: "negative" lets the stock sinusoid see the negative time, as in the paper; "sign" shows it ``|t|``
    and adds a learned embedding that starts at zero, so that the fake field starts equal to the real one.
    """
    if fake_time not in ("negative", "sign"):
        raise ValueError(f"fake_time must be 'negative' or 'sign', got {fake_time!r}")
    if has_target_time(transformer):
        raise ValueError("this transformer has a target-time branch already")
    mlp_path = path.mlp if path else find_time_mlp(transformer)
    mlp = transformer.get_submodule(mlp_path)
    state = TimeState()
    embedder = TargetTimeEmbedder(mlp, takes_number=path is not None and path.sinusoid is None)
    _swap(mlp, _TargetTimeMixin)
    mlp.target_embedder = embedder
    signed = fake_time == "sign"
    last = linears(embedder.mlp)[-1]
    mlp.register_parameter(
        "fake_embedding", nn.Parameter(torch.zeros_like(last.weight[:, 0])) if signed else None
    )
    mlp._time_state, mlp._time_path = state, path
    if path and path.sinusoid:
        sinusoid = transformer.get_submodule(path.sinusoid)
        _swap(sinusoid, _SinusoidMixin)
        sinusoid._time_state, sinusoid._time_path = state, path
    transformer._time_state, transformer._time_mlp_path = state, mlp_path


def detach_target_time(transformer: StockModule) -> None:
    """Take the branch off again, in place: the stock classes and state dict are back."""
    mlp = _time_mlp(transformer)
    path = mlp._time_path
    modules = [mlp] + ([transformer.get_submodule(path.sinusoid)] if path and path.sinusoid else [])
    for module in modules:
        module.__class__ = module._stock_class
        del module._time_state, module._time_path
    del mlp.target_embedder, mlp.fake_embedding
    del transformer._time_state, transformer._time_mlp_path


@contextmanager
def detached(transformer: StockModule) -> Iterator[None]:
    """The stock transformer for the length of a block (to save it, say); then the same branch again."""
    mlp = _time_mlp(transformer)
    path, embedder, fake_embedding = mlp._time_path, mlp.target_embedder, mlp.fake_embedding
    detach_target_time(transformer)
    try:
        yield
    finally:
        attach_target_time(transformer, path=path, fake_time="negative" if fake_embedding is None else "sign")
        mlp.target_embedder = embedder
        mlp.fake_embedding = fake_embedding


def has_target_time(transformer: StockModule) -> bool:
    return hasattr(transformer, "_time_mlp_path")


def marks_fake_by_sign(transformer: StockModule) -> bool:
    """Whether the fake trajectory is marked by the learned embedding instead of a negative time."""
    return _time_mlp(transformer).fake_embedding is not None


def target_time_state_dict(transformer: StockModule) -> dict[str, Tensor]:
    """The branch's own parameters, under their names in the transformer."""
    prefixes = tuple(f"{transformer._time_mlp_path}.{name}" for name in BRANCH)
    return {name: value for name, value in transformer.state_dict().items() if name.startswith(prefixes)}


def train_branch(transformer: StockModule, *, dtype: torch.dtype) -> None:
    """Let the branch be trained, with weights of ``dtype``, in a transformer that may be frozen otherwise."""
    mlp = _time_mlp(transformer)
    mlp.target_embedder.to(dtype).requires_grad_(True)
    if mlp.fake_embedding is not None:
        mlp.fake_embedding.data = mlp.fake_embedding.data.to(dtype)
        mlp.fake_embedding.requires_grad_(True)


@contextmanager
def times(transformer: StockModule, *, t: Tensor, r: Tensor) -> Iterator[None]:
    """Let the branch see ``t`` and ``r`` (B,) fp32 during one forward pass.

    Enter it inside the trained module's own ``forward``: a recomputation by activation checkpointing then
    sets the same times again.
    """
    state = transformer._time_state
    state.t, state.r, state.sinusoids = t, r, 0
    state.shown = t.abs() if marks_fake_by_sign(transformer) else t
    try:
        yield
    finally:
        state.t = state.r = state.shown = None


def _time_mlp(transformer: StockModule) -> StockModule:
    return transformer.get_submodule(transformer._time_mlp_path)


def _sinusoid(x: Tensor, channels: int, max_period: float = 10_000.0) -> Tensor:
    """Cosines then sines of ``x`` (B,) at geometric frequencies, (B, channels) fp32."""
    half = channels // 2
    exponent = torch.arange(half, dtype=torch.float32, device=x.device) / half
    angles = x.float()[:, None] * torch.exp(-math.log(max_period) * exponent)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
