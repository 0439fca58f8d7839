"""The distribution that training times are drawn from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Generator, Tensor


@dataclass(kw_only=True)
class TimeDistribution:
    """Where on the path from data (t = 0) to noise (t = 1) the training looks.

    ``kind``: ``"uniform"``; ``"beta"``, Beta(``a``, ``b``) as in the source (large ``a``: more noise, large
    ``b``: more data; (1, 1) is uniform); ``"logit_normal"``, the sigmoid of N(``mean``, ``std``²)
    (arXiv 2403.03206: most times in the middle; ``mean`` > 0 moves them towards noise).
    ``shift``: ``t -> s t / (1 + (s - 1) t)``; above 1 moves times towards noise, as large images need.
    ``scale``: the drawn time is multiplied by it at last, so times beyond ``scale`` are never trained.
    """

    kind: Literal["uniform", "beta", "logit_normal"] = "uniform"
    a: float = 1.0
    b: float = 1.0
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("uniform", "beta", "logit_normal"):
            raise ValueError(f"time.kind must be uniform, beta or logit_normal, got {self.kind!r}")
        for key in ("a", "b", "std", "shift"):
            if not getattr(self, key) > 0:
                raise ValueError(f"time.{key} must be positive, got {getattr(self, key)}")
        if not 0 < self.scale <= 1:
            raise ValueError(f"time.scale must be in (0, 1], got {self.scale}")

    @classmethod
    def of(cls, time: TimeDistribution | Mapping[str, Any]) -> TimeDistribution:
        """``time`` itself, or the distribution with the settings of a mapping."""
        if isinstance(time, TimeDistribution):
            return time
        allowed = [f.name for f in fields(cls)]
        unknown = sorted(set(time) - set(allowed))
        if unknown:
            raise ValueError(f"time: unknown key {', '.join(unknown)}; allowed are {', '.join(allowed)}")
        return cls(**time)

    def sample(
        self, count: int, *, generator: Generator | None, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """Draw ``count`` times (count,) in [0, scale]."""
        if self.kind == "uniform":
            t = torch.rand(count, generator=generator, device=device, dtype=dtype)
        elif self.kind == "beta":
            # X / (X + Y) of two gamma variables. torch.distributions offers no generator argument.
            ones = torch.ones(count, device=device, dtype=dtype)
            x = torch._standard_gamma(self.a * ones, generator=generator)
            y = torch._standard_gamma(self.b * ones, generator=generator)
            t = x / (x + y).clamp_min(torch.finfo(dtype).tiny)
        else:
            normal = torch.randn(count, generator=generator, device=device, dtype=dtype)
            t = torch.sigmoid(self.mean + self.std * normal)
        t = self.shift * t / (1 + (self.shift - 1) * t)
        return t.clamp(0, 1) * self.scale


def log_normal_noise(mean: float, std: float, *, deviation: float = 0.5) -> TimeDistribution:
    """Times at which the noise level sigma is log-normal, e^N(``mean``, ``std``²), on data of ``deviation``.

    So the papers that follow EDM (arXiv 2206.00364) write theirs, sCM's and SANA-Sprint's ``t = arctan(sigma /
    sigma_d)`` too. What matters is the ratio of noise to data, t / (1 - t) here, where data has unit variance.
    """
    return TimeDistribution(kind="logit_normal", mean=mean - math.log(deviation), std=std)
