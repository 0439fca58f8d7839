"""Optimisers, and the learning rate as a plain function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from twinflow.recipes.sections import Optimizer as Settings


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
    """One optimiser, or Muon for the matrices of repeated blocks and AdamW for the rest, seen as one."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: Settings) -> None:
        self.settings = settings
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in parameters.items()}
        self.all = _build(parameters, settings)

    def step(self, *, lr: float) -> None:
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = lr
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
            optimizer.load_state_dict(
                {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
            )


def _build(parameters: Mapping[str, nn.Parameter], settings: Settings) -> list[torch.optim.Optimizer]:
    if settings.name == "muon":
        hidden = {name: p for name, p in parameters.items() if p.dim() == 2 and _in_block(name)}
        rest = {name: p for name, p in parameters.items() if name not in hidden}
        optimizers: list[torch.optim.Optimizer] = []
        if hidden:
            # Scaled to AdamW's size of step, so that one learning rate serves both (arXiv 2502.16982).
            optimizers.append(
                torch.optim.Muon(
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
                _groups(parameters, settings),
                lr=settings.lr,
                betas=settings.betas,
                eps=settings.eps,
                decoupled_weight_decay=True,
                foreach=True,
            )
        ]
    return [_adamw(parameters, settings)]


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
