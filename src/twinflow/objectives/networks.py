"""Networks that an objective needs besides the student, and which of them a step trains.

An objective declares, and owns nothing: whoever runs it makes the networks, their optimisers and checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

STUDENT = "student"
KINDS = ("trained", "average", "stage", "new")


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """How a network comes into being and what changes it.

    ``kind``: ``"trained"``, a copy of the student as it was at the start, with an optimiser of its own (a fake
    score); ``"average"``, the moving average of the student with the decay ``decay`` (a target network);
    ``"stage"``, a copy of the student that is overwritten with the student's weights whenever a
    :class:`Phase` says so (the teacher of progressive distillation); ``"new"``, a module from ``build``, with
    an optimiser of its own (a discriminator).

    ``build`` gets the features of one row, one (1, N, D) a tap, of the network ``features_of``: the name of
    another network here, or "teacher", the frozen one. Without ``features_of`` it gets an empty list.
    ``lr``: factor on the learning rate of the run.

    The frozen teacher, the initial student that never changes, is not declared here: an objective asks for
    it by its attribute ``teacher = "frozen"``, and its field comes as the argument ``teacher`` of ``step``.
    """

    kind: Literal["trained", "average", "stage", "new"]
    decay: float = 0.0
    build: Callable[[list[Tensor]], nn.Module] | None = None
    features_of: str | None = None
    lr: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not 0 <= self.decay < 1 or (self.kind != "average" and self.decay > 0):
            raise ValueError(f"decay must be in [0, 1), and 0 unless kind is 'average', got {self.decay}")
        if (self.build is None) == (self.kind == "new"):
            raise ValueError("a network of kind 'new' needs build, and no other may have it")
        if not self.lr > 0:
            raise ValueError(f"lr must be a positive factor, got {self.lr}")

    @property
    def trained(self) -> bool:
        """Whether it has an optimiser."""
        return self.kind in ("trained", "new")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What one optimiser step does.

    ``name``: steps of one name make the same evaluations, up to random numbers of rows, so that the operations
    of the first can be counted for all. ``trains``: the networks whose parameters get gradients and are changed;
    all others must be frozen for the step (see :func:`only_trained`). ``refresh``: networks of kind "stage" that
    take the student's weights before the step.
    """

    name: str = STUDENT
    trains: tuple[str, ...] = (STUDENT,)
    refresh: tuple[str, ...] = ()


@contextmanager
def only_trained(parameters: Mapping[str, Sequence[nn.Parameter]], trains: Sequence[str]) -> Iterator[None]:
    """Let gradients reach the ``parameters`` of the networks ``trains`` alone, for the length of a block.

    ``parameters``: of each network, those that are ever trained; they require gradients again afterwards. What
    a loss asks of a frozen network still passes gradients on to its input.
    """
    unknown = sorted(set(trains) - set(parameters))
    if unknown:
        raise ValueError(
            f"there is no trained network {', '.join(unknown)}; there are {', '.join(parameters)}"
        )
    frozen = [p for name, own in parameters.items() if name not in trains for p in own]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def named(networks: Mapping[str, Any] | None, name: str, *, objective: object) -> Any:
    """The network ``name``; ``ValueError`` says what the objective needs if it was not given."""
    if networks is None or name not in networks:
        given = ", ".join(networks or {}) or "none"
        raise ValueError(
            f"{type(objective).__name__} needs the network {name!r}: pass networks={{{name!r}: …}} as its "
            f"networks() declares it; given: {given}"
        )
    return networks[name]
