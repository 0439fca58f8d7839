"""Roles: what each row of a batch is trained for, and how rows get them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fractions import Fraction

import torch
from torch import Tensor

# A share is kept as a ratio of whole numbers; beyond this their common cycle is no longer a readable recipe.
_LONGEST_CYCLE = 10_000
_GOLDEN_RATIO = 0x9E3779B97F4A7C15  # its fraction, times 2**64


@dataclass(kw_only=True)
class Roles:
    """Shares of the rows that each loss gets; only their ratios matter, and 0 means not a single row.

    ``one_step``    t = 1, r = 0. The generator: one jump from noise to data. More of it: better 1-NFE.
    ``tangent``     r just below t. Nearly plain flow matching: keeps the velocity field, hence many-step
                    sampling and the scores that the rectification compares.
    ``any_step``    r anywhere in [0, t]. RCGM (eq. 1): few-step sampling, and what one-step learns from.
    ``fake``        t = r = -tau on the model's own samples (eq. 2): the velocity of the model's distribution.
    ``consistency`` t anywhere, r = 0. Consistency training; with ``order=1`` it takes any_step's place.

    The source's recipes: TwinFlow 1:1:1:1 (the default), RCGM in practice 1:1:1:0, in theory any_step alone.
    """

    one_step: float = 1.0
    tangent: float = 1.0
    any_step: float = 1.0
    fake: float = 1.0
    consistency: float = 0.0

    def __post_init__(self) -> None:
        weights = asdict(self)
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"roles.{name} must be a finite weight of at least 0, got {weight}")
        if not any(weights.values()):
            raise ValueError(
                "roles: every weight is 0, so no row has a loss; give at least one role a weight"
            )
        self.cycle()  # refuses ratios that it can't keep exactly

    @classmethod
    def of(cls, roles: Roles | Mapping[str, float]) -> Roles:
        """``roles`` itself, or those of a mapping; a role that a mapping does not name gets weight 0."""
        if isinstance(roles, Roles):
            return roles
        unknown = sorted(set(roles) - set(ROLE_NAMES))
        if unknown:
            raise ValueError(f"roles: unknown role {', '.join(unknown)}; allowed are {', '.join(ROLE_NAMES)}")
        return cls(**{name: roles.get(name, 0.0) for name in ROLE_NAMES})

    def share(self, name: str) -> float:
        """Fraction of all rows, in the long run, that get the role ``name``."""
        return getattr(self, name) / sum(asdict(self).values())

    def cycle(self) -> list[int]:
        """Shortest sequence of role numbers with exactly the configured ratios, each role spread evenly."""
        weights = list(asdict(self).values())
        largest = max(weights)
        ratios = [Fraction(weight / largest).limit_denominator(1000) for weight in weights]
        whole = math.lcm(*(ratio.denominator for ratio in ratios))
        counts = [int(ratio * whole) for ratio in ratios]
        lost = any(weight > 0 and count == 0 for weight, count in zip(weights, counts, strict=True))
        if lost or sum(counts) > _LONGEST_CYCLE:
            raise ValueError(
                f"roles: the ratios of {asdict(self)} are too fine to keep exactly; "
                "use small whole numbers such as 2:2:2:1"
            )
        # The j-th of n rows of a role sits at (j + 1/2) / n of the cycle.
        places = [((j + 0.5) / n, role) for role, n in enumerate(counts) for j in range(n)]
        return [role for _, role in sorted(places)]


ROLE_NAMES: tuple[str, ...] = tuple(f.name for f in fields(Roles))


class RoleRotation:
    """Deals roles to rows: exact shares in the long run, for every batch size and number of processes.

    Row n of the training, counted over all processes, gets entry n mod P of the cycle of length P, which is
    rotated anew each time round. So every P rows from a multiple of P hold each role exactly by its share. The
    rotation by multiples of the golden ratio keeps a process from meeting the same roles for ever, as it would
    when a step's rows are a multiple of P. In a step, the processes take adjoining slices of equal size.
    """

    def __init__(self, roles: Roles) -> None:
        self._cycle = roles.cycle()
        self.rows = 0  # dealt so far, by all processes together
        self.rank, self.world_size = 0, 1

    def deal(self, count: int) -> Tensor:
        """Roles (count,) int64, on the host, of this process's next ``count`` rows."""
        start = self.rows + self.rank * count
        self.rows += self.world_size * count
        return torch.tensor([self._role(n) for n in range(start, start + count)])

    def _role(self, n: int) -> int:
        period = len(self._cycle)
        time_round = n // period
        rotation = (
            time_round * _GOLDEN_RATIO % 2**64
        ) * period >> 64  # floor(P frac(time_round phi)), exactly
        return self._cycle[(n + rotation) % period]
