"""What the methods that learn from a teacher have in common: its guided velocity, and checks of a call."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from twinflow.conditions import count_rows
from twinflow.field import Field
from twinflow.objectives.objective import check_batch
from twinflow.objectives.queries import Evaluator, Query


@torch.no_grad()
def guided_velocity(
    ask: Evaluator, teacher: Field, x_t: Tensor, *, t: Tensor, r: Tensor, guidance: float
) -> Tensor:
    """``v_c + guidance (v_c - v_u)`` of ``teacher`` for all B rows, in one call; no gradient.

    This is classifier-free guidance of the scale 1 + ``guidance``.
    """
    queries = {"cond": Query(field=teacher, x_t=x_t, t=t, r=r)}
    if guidance > 0:
        queries["uncond"] = Query(field=teacher, x_t=x_t, t=t, r=r, uncond=True)
    answers = ask(queries)
    if guidance == 0:
        return answers["cond"]
    return answers["cond"] + guidance * (answers["cond"] - answers["uncond"])


def check_guidance(guidance: float) -> None:
    """Raise ``ValueError`` unless ``guidance`` can be used with a frozen teacher."""
    if not (math.isfinite(guidance) and guidance >= 0):
        raise ValueError(f"guidance must be finite and at least 0, got {guidance!r}")


def check_call(
    x: Tensor, cond: Any, uncond: Any, teacher: Field | None, *, guidance: float, needs_teacher: bool
) -> None:
    """Raise ``ValueError`` unless a step can be made of these arguments."""
    check_batch(x)
    rows = count_rows(cond)
    if rows is not None and rows != x.shape[0]:
        raise ValueError(f"cond must have one row for each of the {x.shape[0]} rows of x, got {rows}")
    if needs_teacher and teacher is None:
        raise ValueError(
            "this objective learns from a frozen teacher: pass teacher=field of the initial weights"
        )
    if guidance > 0 and uncond is None:
        raise ValueError(
            f"guidance = {guidance} needs an unconditional condition: pass uncond= with 1 or {x.shape[0]} "
            "rows (for example the encoded neutral prompt), or set guidance=0"
        )
    rows = count_rows(uncond)
    if guidance > 0 and rows is not None and rows not in (1, x.shape[0]):
        raise ValueError(f"uncond must have 1 or {x.shape[0]} rows, got {rows}")
