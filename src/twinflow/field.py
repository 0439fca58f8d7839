"""A network as the maths sees it."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Field(Protocol):
    """``field(x_t, t, r, cond) -> v``: the average velocity (noise minus data) from time t to r.

    ``x_t`` (B, …) state in the dtype of the data or noise it comes from; ``t`` (B,) signed time in [-1, 1] and
    ``r`` (B,) target time, both fp32 (fp64 for fp64 data); ``cond`` a row-indexable condition of B rows;
    ``v`` (B, …) of any floating dtype.

    A negative ``t`` is the trajectory of the model's own samples. How the network tells it from ``|t|`` (a
    negative argument of the sinusoid, a learned sign embedding, …) is the field's business: the objectives
    just call it with ``(t, r) = (-tau, -tau)``. Rows are evaluated in varying groups, so a row's output must
    not depend on its neighbours (no batch norm), and dropout, if any, must be off.
    """

    def __call__(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Any, /) -> Tensor: ...


class FeatureField(Field, Protocol):
    """A field that also shows what its network computes on the way, for a discriminator to judge by.

    ``features(x_t, t, cond)`` asks the network at r = t and gives one tensor (B, N, D) a tap, shallow to
    deep: N places (tokens, pixels) of D channels, of any floating dtype. Gradients flow through them to
    ``x_t``. Their number, N and D are those of the network, the same in every call for the same shape of
    ``x_t``.
    """

    def features(self, x_t: Tensor, t: Tensor, cond: Any, /) -> list[Tensor]: ...
