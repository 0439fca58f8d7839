"""RCGM (arXiv 2512.05150, eq. 1): any-step generation by jumps that agree with jumps along their way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from twinflow.objectives.roles import Roles
from twinflow.objectives.twinflow import TwinFlow


def _any_step_only() -> Roles:
    return Roles(one_step=0, tangent=0, any_step=1, fake=0)


@dataclass(kw_only=True)
class RCGM(TwinFlow):
    """L_base of eq. 10 alone: :class:`TwinFlow` without the fake trajectory and without rectification.

    Settings are those of :class:`AnyStepSettings`, with these defaults. ``roles``: any_step alone, which is
    the theory; in practice ``Roles(one_step=1, tangent=1, any_step=1, fake=0)`` gives better few-step
    samples. ``order=1`` with the roles ``{"consistency": 1}`` is consistency training. ``rectify`` stays 0,
    as eq. 9 needs the fake trajectory.
    """

    roles: Roles | Mapping[str, float] = field(default_factory=_any_step_only)
    rectify: float = 0.0

    def _validate(self) -> None:
        super()._validate()
        if self._weights.fake > 0:
            raise ValueError(
                f"roles.fake must be 0 in RCGM, got {self._weights.fake}; TwinFlow has this role"
            )
        if self.rectify > 0:
            raise ValueError(f"rectify must be 0 in RCGM, got {self.rectify}; TwinFlow has this loss")
