"""Settings of the sampler, and the ones that are recommended for a number of network evaluations.

The sampler is UCGM-S (LINs-lab/UCGM), as TwinFlow (arXiv 2512.05150) uses it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict

Style = Literal["few", "any", "multi"]
STYLES: tuple[Style, ...] = ("few", "any", "multi")
MAX_ANY_GAP_NFE = 8  # the end gap of the style "any" is published for 4 and 8 evaluations


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How a field is integrated from noise (t = 1) to data (t = 0).

    ``style`` says which velocity the network is asked for at time t, on the way to t': the jump to data
    (``"few"``, r = 0), the jump to t' (``"any"``, r = t'), or the instantaneous one (``"multi"``, r = t).
    """

    style: Style = "few"
    # Kumaraswamy exponents (a, b, c) that warp the uniform grid: t = 1 - (1 - (1 - u^a)^b)^c.
    time_dist: tuple[float, float, float] = (1.0, 1.0, 1.0)
    # (start, end): before the warp, the first evaluation is at t = 1 - start and the last at t = end.
    # An end of 0 means no gap: the last evaluation is one step of the uniform grid away from t = 0.
    gaps: tuple[float, float] = (0.0, 0.0)
    # Share of fresh noise (as variance) in the noise that is added back after a step; "sde": the share that
    # a stochastic differential equation with the same marginals has at that step, at most 1.
    stochastic: float | Literal["sde"] = 0.0
    extrapolation: float = (
        0.0  # estimates move on by this multiple of their last change; UCGM uses 0.2 to 0.6
    )
    order: Literal[1, 2] = 1  # 2: Heun's corrector
    guidance: float = 1.0  # classifier-free guidance scale; 1 is off, and right for what TwinFlow trained
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # times t, ends included, at which guidance acts

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"style must be one of {', '.join(STYLES)}, got {self.style!r}")
        if self.order not in (1, 2):
            raise ValueError(f"order must be 1 (Euler) or 2 (Heun), got {self.order!r}")
        self._check_tuple("time_dist", 3, "three exponents above 0", lambda a: a > 0)
        self._check_tuple("gaps", 2, "two numbers in [0, 1)", lambda g: 0 <= g < 1)
        if sum(self.gaps) >= 1:
            raise ValueError(f"gaps must leave room between them: their sum is below 1, got {self.gaps}")
        if self.stochastic != "sde" and not (_is_number(self.stochastic) and 0 <= self.stochastic <= 1):
            raise ValueError(f'stochastic must be a number in [0, 1] or "sde", got {self.stochastic!r}')
        if not (_is_number(self.extrapolation) and self.extrapolation >= 0):
            raise ValueError(f"extrapolation must be a number of at least 0, got {self.extrapolation!r}")
        if not _is_number(self.guidance):
            raise ValueError(f"guidance must be a finite number (1 is off), got {self.guidance!r}")
        self._check_tuple("guidance_interval", 2, "two times in [0, 1]", lambda t: 0 <= t <= 1)
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError(
                f"guidance_interval must be (lowest t, highest t), got {self.guidance_interval}: swap them"
            )

    def _check_tuple(self, name: str, length: int, what: str, allowed: Any) -> None:
        values = getattr(self, name)
        try:
            entries = tuple(values)
        except TypeError:
            entries = ()
        if len(entries) != length or not all(_is_number(value) and allowed(value) for value in entries):
            raise ValueError(f"{name} must be {what}, got {values!r}")
        object.__setattr__(self, name, entries)  # YAML brings lists

    @property
    def guided(self) -> bool:
        return self.guidance != 1.0


class SettingOverrides(TypedDict, total=False):
    """Keyword arguments that replace single :class:`SamplerSettings` of the recommended ones."""

    time_dist: tuple[float, float, float]
    gaps: tuple[float, float]
    stochastic: float | Literal["sde"]
    extrapolation: float
    order: Literal[1, 2]
    guidance: float
    guidance_interval: tuple[float, float]


def published_preset(nfe: int, style: Style = "few") -> SamplerSettings:
    """Settings that TwinFlow's authors recommend for a style at ``nfe`` (unguided) evaluations.

    ``few``: fresh noise at every step; times .999, .6 (2 evaluations) or .999, .8327, .6663, .5 (4).
    ``any``: no fresh noise, last evaluation at t = .5 for up to 8 evaluations, which are those with a
    published value. ``multi``: a warped grid down to t = 0, for 30 evaluations and more.
    """
    check_nfe(nfe)
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
    if style == "few":
        return SamplerSettings(style=style, stochastic=1.0, gaps=(0.001, 0.6 if nfe <= 2 else 0.5))
    if style == "any":
        return SamplerSettings(style=style, gaps=(0.001, 0.5 if nfe <= MAX_ANY_GAP_NFE else 0.0))
    return SamplerSettings(style=style, time_dist=(1.17, 0.8, 1.1), gaps=(0.001, 0.0))


def preset(nfe: int, style: Style = "few") -> SamplerSettings:
    """The settings that :func:`twinflow.sampling.sample` starts from: the published ones from t = 1.

    The published start gap of .001 keeps their sampler off t = 1, where its second-order step divides by
    zero. Ours has no such place, the noise that a sampler is given belongs to t = 1, one-step rows are
    trained there, and stock diffusers schedulers start there too, so that an exported model makes the same
    steps as this sampler. With one evaluation, ``few`` and ``any`` ask for exactly t = 1, r = 0.
    """
    published = published_preset(nfe, style)
    return replace(published, gaps=(0.0, published.gaps[1]))


def resolve_settings(
    *, nfe: int, style: Style, settings: SamplerSettings | None, overrides: SettingOverrides
) -> SamplerSettings:
    """``settings``, or else the preset of ``style`` at ``nfe``, with the overrides applied."""
    allowed = {field.name for field in fields(SamplerSettings)} - {"style"}
    unknown = sorted(set(overrides) - allowed)
    if unknown:
        raise TypeError(
            f"unknown sampler setting {', '.join(unknown)}; there are {', '.join(sorted(allowed))}"
        )
    if settings is None:
        guided = overrides.get("guidance", 1.0) != 1.0
        settings = preset(max(1, nfe // 2) if guided else nfe, style)
    return replace(settings, **overrides)


def check_nfe(nfe: int) -> None:
    if isinstance(nfe, bool) or not isinstance(nfe, int) or nfe < 1:
        raise ValueError(f"nfe must be a whole number of network evaluations of at least 1, got {nfe!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
