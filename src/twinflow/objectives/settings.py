"""The knobs of the any-step objectives, each with what it does to the result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from twinflow.conditions import count_rows
from twinflow.objectives.losses import validate_distance
from twinflow.objectives.objective import Field, Objective, check_batch
from twinflow.objectives.roles import RoleRotation, Roles
from twinflow.objectives.times import TimeDistribution

_SCALE = 2.5  # of the guidance that is baked in, unless it is said


@dataclass(kw_only=True)
class AnyStepSettings(Objective):
    """Settings shared by :class:`TwinFlow` and :class:`RCGM`. Defaults: what won in our experiments, the preset
    ``"tuned"``; what the authors train with is ``"paper"`` (:mod:`twinflow.objectives.presets`).

    ``roles``: shares of the rows that each loss gets, see :class:`Roles`; a mapping names those above 0.

    **Jumps (eq. 1).** ``order``: number N of teacher jumps that the student's one jump is compared with; each
    costs a no-grad forward. 2 is the paper's; 1 without a ``longest_jump`` is consistency training, cheaper
    and less stable. ``longest_jump``: rows whose way is longer than ``order`` jumps of this length make as
    many more as it takes, so that long jumps are compared with short ones, which are learnt first and more
    accurately, for a tenth of a step's time; ``None`` (source) is no bound. ``delta``: length of the
    instantaneous first piece. Smaller has less bias (O(delta)) but amplifies the rounding of the network by
    1/delta. ``clamp``: bound on each element of the residual, which keeps early training from exploding
    (source: 1), but makes signs of large residuals; ``None`` is the pure objective. With ``loss="l2"``, which
    bounds nothing itself, set it. ``nodes``: the inner times of the jumps, ``"uniform"`` (source) or
    ``"random"`` (paper). ``any_step_span``: largest part of the way to 0 that any_step rows jump; below 1
    long jumps are learnt only by one_step and consistency rows. ``tangent_gap``: the same for tangent rows; 0
    makes them plain flow matching.

    **Velocity.** ``velocity``: what the instantaneous piece of eq. 1 follows. ``"data"`` (source): z - x of the
    row, whose scatter drowns what tangent rows have left to learn. ``"field"``: the teacher's F(x_t, t, t),
    its mean, which has none. With a frozen teacher that is distillation: every row follows the initial
    model's guided field, and the noise of the data is gone from the loss. With ``"self"`` and ``"ema"``,
    tangent rows keep learning the field from data, and rows that jump follow it. One more no-grad row for
    each one-step row.

    **Guidance.** ``guidance``: omega, how much of classifier-free guidance is baked into the velocity, so
    that sampling needs none; 0 is off. With the teacher ``"self"`` or ``"ema"`` the learnt scale is 1 / (1 -
    omega), hence omega < 1; with ``"frozen"`` it is 1 + omega. ``None`` becomes what has the scale 2.5 with
    this teacher. Higher: sharper, closer to the prompt, less diverse. ``guidance_range``: only rows with t
    strictly inside are guided. Leave out the ends for more diversity.

    **Teacher.** ``"frozen"``: the initial model, for the guidance alone, which is full from the first step;
    jumps use the student. ``"self"``: the student's present weights; no second copy and the fewest calls.
    ``"ema"`` (source): their average, steadier.

    **Loss.** ``loss``: ``"barron"`` gives each row a gradient of the same size whatever its error
    (``barron_alpha`` = 1; 2 is l2 / ``barron_c``; errors below ``barron_c`` fade out: try 0.5 with
    ``velocity="field"``, or the small errors of short jumps weigh as much as those of long ones);
    ``"l2"`` favours the rows with large errors. ``weighting``: ``"tangent"`` stresses short jumps, up to
    4.08 to 1, ``"none"`` does not.

    **Rectification (eq. 9).** ``rectify``: kappa, the pull of the one-step samples' distribution to the
    model's own data distribution; what makes one step sharp. Too high: loss of diversity, or instability
    while the fake trajectory is still wrong. 0 is off. ``rectify_clamp``: bound on its elements, or ``None``.

    ``time``: distribution of t, see :class:`TimeDistribution`. ``image_free``: train without images: data is
    the student's own one-step sample of each prompt, and guidance comes from the teacher. With
    ``teacher="frozen"`` the velocity is the teacher's guided one alone, at the scale omega.

    ``lockstep``: call the networks equally often in every step, if need be on one spare row. Needed when the
    processes shard the weights (FSDP); costs a little otherwise.

    How the network tells t < 0 from ``|t|`` is no setting here: the objectives call it with negative times,
    and whether it feeds them to its sinusoid, or maps them to ``|t|`` and a learned sign embedding, is the
    field's choice.
    """

    roles: Roles | Mapping[str, float] = field(default_factory=Roles)
    order: int = 2
    longest_jump: float | None = 0.25
    delta: float = 0.01
    clamp: float | None = None
    nodes: Literal["uniform", "random"] = "uniform"
    any_step_span: float = 1.0
    tangent_gap: float = 0.05
    velocity: Literal["data", "field"] = "data"
    guidance: float | None = None
    guidance_range: tuple[float, float] = (0.0, 1.0)
    teacher: Literal["self", "ema", "frozen"] = "frozen"
    loss: Literal["barron", "l2"] = "barron"
    barron_alpha: float = 1.0
    barron_c: float = 1e-3
    weighting: Literal["tangent", "none"] = "tangent"
    rectify: float = 0.5
    rectify_clamp: float | None = 1.0
    time: TimeDistribution | Mapping[str, Any] = field(default_factory=TimeDistribution)
    image_free: bool = False
    lockstep: bool = False

    def __post_init__(self) -> None:
        self.roles = Roles.of(self.roles)
        self.time = TimeDistribution.of(self.time)
        self.guidance_range = (float(self.guidance_range[0]), float(self.guidance_range[1]))
        if self.guidance is None:
            self.guidance = self._guidance_of(_SCALE)
        self._validate()
        self._rotation = RoleRotation(self.roles)

    def _validate(self) -> None:
        def need(good: bool, key: str, allowed: str) -> None:
            if not good:
                raise ValueError(f"{key} must be {allowed}, got {getattr(self, key)!r}")

        need(isinstance(self.order, int) and self.order >= 1, "order", "a whole number of at least 1")
        need(self.longest_jump is None or 0 < self.longest_jump <= 1, "longest_jump", "in (0, 1], or None")
        need(0 < self.delta < 1, "delta", "in (0, 1)")
        need(self.clamp is None or self.clamp > 0, "clamp", "positive, or None for no clamp")
        need(self.nodes in ("uniform", "random"), "nodes", "'uniform' or 'random'")
        need(0 < self.any_step_span <= 1, "any_step_span", "in (0, 1]")
        need(0 <= self.tangent_gap <= 1, "tangent_gap", "in [0, 1]")
        need(self.velocity in ("data", "field"), "velocity", "'data' or 'field'")
        need(math.isfinite(self.omega) and self.omega >= 0, "guidance", "finite and at least 0")
        low, high = self.guidance_range
        need(0 <= low < high <= 1, "guidance_range", "two times (a, b) with 0 <= a < b <= 1")
        need(self.teacher in ("self", "ema", "frozen"), "teacher", "'self', 'ema' or 'frozen'")
        need(self.weighting in ("tangent", "none"), "weighting", "'tangent' or 'none'")
        need(math.isfinite(self.rectify) and self.rectify >= 0, "rectify", "finite and at least 0")
        need(
            self.rectify_clamp is None or self.rectify_clamp > 0,
            "rectify_clamp",
            "positive, or None for no clamp",
        )
        validate_distance(self.loss, alpha=self.barron_alpha, c=self.barron_c)
        if self.longest_jump is not None and self.nodes == "random":
            raise ValueError(
                "longest_jump bounds evenly spaced jumps: use nodes='uniform', or longest_jump=None"
            )
        if self.teacher != "frozen" and self.omega >= 1:
            raise ValueError(
                f"guidance must be below 1 with teacher={self.teacher!r}, got {self.guidance}: the learnt "
                "scale is 1 / (1 - guidance), with teacher='frozen' 1 + guidance. Use that teacher, or "
                f"guidance={self._guidance_of(1 + self.omega):.4g} for the same scale"
            )
        if self.image_free and self.teacher == "frozen" and self.omega == 0:
            raise ValueError(
                "guidance must be positive with image_free=True and teacher='frozen', got 0: the velocity is "
                "the teacher's at this scale; guidance=1 is its plain conditional velocity"
            )

    # What the settings imply

    @property
    def omega(self) -> float:
        """``guidance``, which is a number from the beginning on: ``__post_init__`` sees to that."""
        assert self.guidance is not None
        return self.guidance

    def _guidance_of(self, scale: float) -> float:
        """The ``guidance`` that has this ``scale`` with the teacher: :attr:`guidance_scale` the other way round."""
        if self.teacher != "frozen":
            return (scale - 1) / scale
        return scale if self.image_free else scale - 1

    @property
    def guidance_scale(self) -> float:
        """The classifier-free guidance scale that ends up in the trained field (1 is no guidance)."""
        if not self._guides:
            return 1.0
        if self.teacher != "frozen":
            return 1 / (1 - self.omega)
        return self.omega if self.image_free else 1 + self.omega

    @property
    def _weights(self) -> Roles:
        return Roles.of(self.roles)

    @property
    def _learns_jumps(self) -> bool:
        """Whether any role learns jumps (eq. 1): all but fake."""
        return self._weights.share("fake") < 1

    @property
    def most_jumps(self) -> int:
        """The largest number of jumps that a row can make, hence of network calls for them."""
        return self.order if self.longest_jump is None else max(self.order, math.ceil(1 / self.longest_jump))

    @property
    def _guides(self) -> bool:
        """Whether any row can be guided: one_step is at t = 1, outside the range, and fake never is."""
        roles = self._weights
        return self.omega > 0 and roles.tangent + roles.any_step + roles.consistency > 0

    @property
    def _distills(self) -> bool:
        """Whether any row can follow a field's velocity: fake rows never do, tangent ones a frozen teacher's."""
        roles = self._weights
        asked = roles.one_step + roles.any_step + roles.consistency
        asked += roles.tangent if self.teacher == "frozen" else 0
        return self.velocity == "field" and asked > 0

    @property
    def _samples(self) -> bool:
        """Whether any row's data is the model's own sample."""
        return self.image_free or self._weights.fake > 0

    @property
    def _rectifies(self) -> bool:
        return self.rectify > 0 and self._weights.one_step > 0

    def _check_call(self, x: Tensor, cond: Any, uncond: Any, teacher: Field | None) -> None:
        check_batch(x)
        rows = count_rows(cond)
        if rows is not None and rows != x.shape[0]:
            raise ValueError(f"cond must have one row for each of the {x.shape[0]} rows of x, got {rows}")
        if self._guides and uncond is None:
            raise ValueError(
                f"guidance = {self.guidance} needs an unconditional condition: pass uncond= with 1 or "
                f"{x.shape[0]} rows (for example the encoded neutral prompt), or set guidance=0"
            )
        rows = count_rows(uncond)
        if self._guides and rows is not None and rows not in (1, x.shape[0]):
            raise ValueError(f"uncond must have 1 or {x.shape[0]} rows, got {rows}")
        asks_frozen = self._guides or self._distills
        needed = {"self": False, "ema": self._learns_jumps, "frozen": asks_frozen}[self.teacher]
        if needed and teacher is None:
            raise ValueError(
                f"teacher = {self.teacher!r} needs the teacher's field: pass teacher=field of the "
                f"{'averaged' if self.teacher == 'ema' else 'initial'} weights, or set teacher='self'"
            )

    # State

    def set_shard(self, rank: int, world_size: int) -> None:
        """Deal the roles of one rotation over ``world_size`` processes; all must use the same batch size."""
        super().set_shard(rank, world_size)
        self._rotation.rank, self._rotation.world_size = rank, world_size

    def state_dict(self) -> dict[str, int]:
        """``rows``: how many rows have got a role so far, in all processes together."""
        return {"rows": self._rotation.rows}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if set(state) != {"rows"}:
            raise ValueError(f"state must have the key 'rows' alone, got {sorted(state)}")
        self._rotation.rows = int(state["rows"])
