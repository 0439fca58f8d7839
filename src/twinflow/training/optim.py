"""Optimisers, and the learning rate as a plain function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from twinflow.recipes.sections import Optimizer as Settings
from twinflow.training.optim_adafactor import Adafactor
from twinflow.training.optim_in_backward import InBackward, blockwise
from twinflow.training.optim_low_bit import LowBitAdamW
from twinflow.training.optim_muon import Muon
from twinflow.training.optim_rounding import GPU_CHUNK, UPDATE_BYTES, RoundingOptimizer
from twinflow.training.shards import Cut

LOW_BITS = {"adamw8bit": 8, "adamw4bit": 4}


def learning_rate(settings: Settings, step: int, total: int) -> float:
    """Learning rate of step ``step`` (0 is the first) of ``total``. It has no state, so nothing to resume.

    The warm-up rises linearly and gives the first step 1 / warmup_steps of the rate. The decay ends at
    ``final_lr`` times the rate just after the last step.
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    start = settings.warmup_steps
    if settings.schedule == "wsd":
        start = max(start, round(total * (1 - settings.decay_fraction)))
    done = min(max(step - start, 0) / max(total - start, 1), 1.0)
    final = settings.final_lr
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "cosine":
        return settings.lr * (final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)
    return settings.lr * (final + (1 - final) * (1 - done))  # linear, and the last part of wsd


class Optimizers:
    """All optimisers of a run, seen as one.

    One for all parameters, or Muon for the matrices of repeated blocks and AdamW for the rest; with
    ``in_backward`` these for each block of its own, see :class:`~twinflow.training.optim_in_backward.InBackward`.
    ``seed``: of the random numbers of stochastic rounding. ``cut``: the parameters of which ``parameters`` are slices,
    by name.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        settings: Settings,
        *,
        seed: int = 0,
        cut: Mapping[str, DTensor] | None = None,
    ) -> None:
        self.settings = settings
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in parameters.items()}
        self._cuts: dict[Tensor, Cut] = {
            parameters[name]: Cut.of(whole) for name, whole in (cut or {}).items()
        }
        self.in_backward: InBackward | None = None
        if settings.in_backward:
            units = [_build(unit, settings, self._names, seed, self._cuts) for unit in blockwise(parameters)]
            self.all = [optimizer for unit in units for optimizer in unit]
            self.in_backward = InBackward(
                units, sources={parameters[name]: whole for name, whole in (cut or {}).items()}
            )
        else:
            self.all = _build(parameters, settings, self._names, seed, self._cuts)

    def begin(self, *, lr: float) -> None:
        """The learning rate of the step whose backward pass comes next."""
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = lr

    def step(self) -> None:
        for optimizer in self.all:
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.all:
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, and all else as JSON can hold it; keys are ``quantity|parameter``."""
        tensors: dict[str, Tensor] = {}
        scalars: dict[str, Any] = {}
        for optimizer in self.all:
            for parameter, state in optimizer.state.items():
                for quantity, value in state.items():
                    kind: dict[str, Any] = tensors if isinstance(value, Tensor) else scalars
                    kind[f"{quantity}|{self._names[parameter]}"] = value
        return tensors, scalars

    def load_state_dict(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        states: dict[str, dict[str, Any]] = {}
        for key, value in (*tensors.items(), *scalars.items()):
            quantity, _, name = key.partition("|")
            states.setdefault(name, {})[quantity] = value
        for optimizer in self.all:
            members = [p for group in optimizer.param_groups for p in group["params"]]
            named = [(i, self._names[parameter]) for i, parameter in enumerate(members)]
            state = {i: states[name] for i, name in named if name in states}
            if isinstance(optimizer, RoundingOptimizer):
                for i, saved in state.items():
                    optimizer.restore(members[i], saved)
                continue
            optimizer.load_state_dict(
                {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
            )


def state_bytes(settings: Settings, shape: Sequence[int], dtype: torch.dtype, *, in_block: bool) -> int:
    """What the optimiser keeps of a parameter of this shape; its counter of steps is not counted."""
    count = int(torch.Size(shape).numel())
    extra = count * settings.extra_bits // 8 if dtype == torch.bfloat16 else 0
    if settings.name == "adafactor":
        return Adafactor.state_bytes(shape) + extra
    if _bits(settings) is not None:
        return LowBitAdamW.state_bytes(shape, bits=_bits(settings) or 32) + extra
    moments = 1 if settings.name == "muon" and len(shape) == 2 and in_block else 2
    return moments * count * dtype.itemsize


def update_bytes(settings: Settings, largest: int) -> int:
    """Passing memory of an update on a GPU whose largest parameter has so many elements."""
    if settings.name == "adafactor" or _bits(settings) is not None:
        return min(largest, GPU_CHUNK) * UPDATE_BYTES
    return 0  # fused


def _build(
    parameters: Mapping[str, nn.Parameter],
    settings: Settings,
    names: dict[Tensor, str],
    seed: int,
    cuts: Mapping[Tensor, Cut],
) -> list[torch.optim.Optimizer]:
    groups = _groups(parameters, settings)
    common: dict[str, Any] = {
        "lr": settings.lr,
        "names": names,
        "seed": seed,
        "extra_bits": settings.extra_bits,
    }
    if settings.name == "adafactor":
        return [Adafactor(groups, beta2=settings.betas[1], cuts=cuts, **common)]
    bits = _bits(settings)
    if bits is not None:
        return [LowBitAdamW(groups, bits=bits, betas=settings.betas, eps=settings.eps, **common)]
    if settings.name == "muon":
        hidden = {name: p for name, p in parameters.items() if p.dim() == 2 and _in_block(name)}
        rest = {name: p for name, p in parameters.items() if name not in hidden}
        optimizers: list[torch.optim.Optimizer] = []
        if hidden:
            # Scaled to AdamW's size of step, so that one learning rate serves both (arXiv 2502.16982).
            optimizers.append(
                Muon(
                    list(hidden.values()),
                    lr=settings.lr,
                    weight_decay=settings.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        return [*optimizers, _adamw(rest, settings)] if rest else optimizers
    if settings.name == "radam":
        return [
            torch.optim.RAdam(
                groups,
                lr=settings.lr,
                betas=settings.betas,
                eps=settings.eps,
                decoupled_weight_decay=True,
                foreach=True,
            )
        ]
    return [_adamw(parameters, settings)]


def _bits(settings: Settings) -> int | None:
    """Those of the moments, where AdamW is our own: torch's has no extra bits for the weights."""
    if settings.name == "adamw" and settings.extra_bits:
        return 32
    return LOW_BITS.get(settings.name)


def _adamw(parameters: Mapping[str, nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        _groups(parameters, settings), lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True
    )


def _groups(parameters: Mapping[str, nn.Parameter], settings: Settings) -> list[dict[str, Any]]:
    """Matrices decay, biases and the scales of norms do not."""
    matrices = [p for p in parameters.values() if p.dim() >= 2]
    vectors = [p for p in parameters.values() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _in_block(name: str) -> bool:
    """Whether the parameter lies in one of several like modules (``blocks.3.…``), not at input or output."""
    return any(part.isdigit() for part in name.split("."))
