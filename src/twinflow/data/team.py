"""Work that several processes divide, and of which each needs all results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol, TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")


class Team(Protocol):
    """The processes of a run, seen from one of them: :class:`twinflow.training.processes.Processes`."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def each(self, work: Callable[[], Result]) -> list[Result]:
        """What ``work`` returns in each process, by rank; what it raises in one, all raise."""
        ...


class Alone:
    """A team of one."""

    rank, world_size = 0, 1

    def each(self, work: Callable[[], Result]) -> list[Result]:
        return [work()]


def in_turns(parts: Sequence[Part], work: Callable[[Part], Result], team: Team) -> Iterator[Result]:
    """``work(part)`` for all ``parts``, in their order, each done by one process and given to all.

    They exchange results after a part each, so that no process waits for another longer than for a part, and none holds
    more than a round of them twice. Results travel through pickle: on the host, and without views of larger tensors.
    """
    for first in range(0, len(parts), team.world_size):
        # One part, or none where the last round is not full.
        mine = parts[first + team.rank : first + team.rank + 1]
        for results in team.each(partial(_all_of, work, mine)):
            yield from results


def _all_of(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    return [work(part) for part in parts]
