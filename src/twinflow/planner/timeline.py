"""The memory of a step over time, put together from stretches that were measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from twinflow.planner.tracker import Segment


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A measured segment, and how often it comes in succession: once for each block that it stands for."""

    segment: Segment
    count: int
    gradients: int  # bytes of the parameters' gradients in the segment's change
    more: int = 0  # bytes by which the change of the whole network differs from that of the shortened one


@dataclass
class Timeline:
    """Adds stretches after one another, a repeated one in closed form."""

    live: int = 0
    gradients: int = 0
    peak: int = 0
    peak_at: str = ""
    gradients_at_peak: int = 0
    passing_at_peak: int = 0
    each: int = 0  # bytes of what is passing that a block lets go of
    released: int = 0  # so far
    host: int = 0
    host_peak: int = 0
    flops: dict[str, int] = field(default_factory=dict)  # by the phase of the step

    @classmethod
    def of(
        cls,
        stretches: Iterable[Stretch],
        *,
        gradient_share: float = 1.0,
        activation_share: float = 1.0,
        passing: Callable[[str], int] = lambda phase: 0,
        released: int = 0,
    ) -> Timeline:
        """Of ``stretches``; of complete gradients only a share stays (where they are sharded), and of all else only a
        share is there (where tokens are divided).

        ``passing``: bytes that are there besides for the length of a phase of the step, by its name; of which each
        block lets go of ``released`` at the end of its backward.
        """
        timeline = cls(each=released)
        for stretch in stretches:
            timeline.add(
                stretch, gradient_share, activation_share, passing(stretch.segment.label.partition("|")[0])
            )
        return timeline

    def add(
        self,
        stretch: Stretch,
        gradient_share: float = 1.0,
        activation_share: float = 1.0,
        passing: int = 0,
    ) -> None:
        segment, arriving = stretch.segment, max(stretch.gradients, 0)
        release = self.each if segment.label == "backward|block" else 0
        gradients = round(stretch.gradients * gradient_share)
        change = round((segment.change - stretch.gradients) * activation_share) + gradients
        rise = round((segment.rise - arriving) * activation_share) + arriving
        before = stretch.count - 1 if change > release else 0  # of the repetition that starts highest
        passing -= self.released + before * release
        top = self.live + before * change + rise + passing
        if top > self.peak:
            self.peak, self.peak_at, self.passing_at_peak = top, segment.label, passing
            self.gradients_at_peak = self.gradients + before * max(gradients, 0) + arriving
        self.released += stretch.count * release
        self.live += stretch.count * change + round(stretch.more * activation_share)
        self.gradients += stretch.count * gradients
        moved = round(stretch.count * segment.host * activation_share)
        self.host_peak = max(self.host_peak, self.host + max(moved, 0))
        self.host += moved
        phase = segment.label.partition("|")[0]
        self.flops[phase] = self.flops.get(phase, 0) + stretch.count * segment.flops
