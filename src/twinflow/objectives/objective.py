"""What every training objective has in common: the field it trains and the step it returns.

An objective owns no network, optimiser, device or file. It asks a :class:`Field` for velocities and returns
a :class:`Step` whose ``loss`` is ready for ``backward()``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from twinflow.field import Field
from twinflow.objectives.networks import NetworkSpec, Phase


@dataclass(kw_only=True)
class RowLog:
    """Role, times and loss of each row of a step, in the order of the batch, to explain a bad one."""

    roles: list[str]  # B names; on the host, so reading them never waits for the device
    t: Tensor  # (B,) on the host, if the random generator is
    r: Tensor  # (B,) likewise
    loss: Tensor  # (B,) detached, on the device: what the row added to the loss, before the mean

    def describe_non_finite(self) -> list[str]:
        """One line a row with a NaN or infinite loss. Waits for the device: for when something is wrong."""
        bad = (~self.loss.detach().cpu().isfinite()).nonzero().flatten().tolist()
        return [
            f"row {i}: role {self.roles[i]}, t = {self.t[i].item():.6g}, r = {self.r[i].item():.6g}, "
            f"loss = {self.loss[i].item()}"
            for i in bad
        ]


@dataclass(kw_only=True)
class Step:
    """Result of one evaluation of an objective on one batch."""

    loss: Tensor  # () with gradient
    losses: dict[str, Tensor]  # () detached, by role, and "rectify" before its kappa: means over their rows;
    # a role without rows in this batch has no entry
    metrics: dict[str, float | Tensor]  # detached; a tensor is on the device, reading it waits
    rows: RowLog


class Objective:
    """Base of all objectives: those without state across steps need nothing but :meth:`step`.

    One that needs more networks than the student names them in :meth:`networks` and says in :meth:`phase`
    which are trained when; its :meth:`step` then takes them as ``networks``, a mapping of names to fields
    (copies of the student) and modules (new ones).
    """

    _at, _of = 0, 1  # optimiser step at hand, and how many the run has

    def step(
        self,
        field: Field,
        x: Tensor,
        cond: Any,
        *,
        uncond: Any = None,
        teacher: Field | None = None,
        generator: Generator | None = None,
    ) -> Step:
        """Loss of ``field`` on the data ``x`` (B, …) under the conditions ``cond``. See the subclass."""
        raise NotImplementedError

    def networks(self) -> dict[str, NetworkSpec]:
        """The networks that are needed besides the student and the frozen teacher."""
        return {}

    def phase(self, step: int) -> Phase:
        """What optimiser step number ``step`` (0 is the first) trains."""
        return Phase()

    def begin(self, step: int, total: int) -> Phase:
        """Say that the next calls of :meth:`step` belong to optimiser step ``step`` of ``total``.

        All schedules (curricula, warm-ups, stages, phases) are functions of these two numbers, so they have
        no state of their own to resume.
        """
        if not 0 <= step < total:
            raise ValueError(f"step must be in [0, total), got step = {step}, total = {total}")
        self._at, self._of = step, total
        return self.phase(step)

    def set_shard(self, rank: int, world_size: int) -> None:
        """Tell the objective which of ``world_size`` data-parallel processes it runs in."""
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size), got rank = {rank}, world_size = {world_size}")

    def state_dict(self) -> dict[str, int]:
        """What an exact resume needs besides the random generator."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from ``state_dict()``; the number of processes may have changed in between."""
        if state:
            raise ValueError(f"{type(self).__name__} has no state, got keys {sorted(state)}")


def role_means(row_losses: Tensor, roles: list[str]) -> dict[str, Tensor]:
    """Mean of ``row_losses`` (B,) over the rows of each role present, detached."""
    rows_of: dict[str, list[int]] = {}
    for row, role in enumerate(roles):
        rows_of.setdefault(role, []).append(row)
    detached = row_losses.detach()
    return {
        role: detached[send(torch.tensor(rows), detached.device)].mean() for role, rows in rows_of.items()
    }


def finish(
    row_loss: Tensor, losses: dict[str, Tensor], metrics: dict[str, float | Tensor], *, t: Tensor
) -> Step:
    """The step of rows whose losses (B,) by name make up ``row_loss`` (B,); ``t`` (B,) for the log."""
    roles = [next(iter(losses))] * len(row_loss)
    means = {name: role_means(loss, [name] * len(loss))[name] for name, loss in losses.items()}
    log = RowLog(roles=roles, t=t, r=torch.zeros_like(t), loss=row_loss.detach())
    return Step(loss=row_loss.mean(), losses=means, metrics=metrics, rows=log)


def check_batch(x: Tensor) -> None:
    """Raise ``ValueError`` unless ``x`` is a batch of at least one row of floating-point data."""
    if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[0] < 1:
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be data of shape (B, …) with at least one row, got {shape}")
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point (latents or scaled pixels), got {x.dtype}")


def send(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on ``device``. A copy from the host does not wait for what the device still has to do."""
    return x.to(device, non_blocking=x.device.type == "cpu")


def working_dtype(x: Tensor) -> torch.dtype:
    """Dtype of times, targets and losses: fp32, or fp64 when the data is fp64."""
    return torch.promote_types(x.dtype, torch.float32)
