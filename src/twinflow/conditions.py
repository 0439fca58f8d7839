"""Row-indexable conditions: select and join rows without knowing what a condition is.

An objective evaluates the network only on the rows that matter, and joins several such sets into
one call. A condition may be a tensor whose first dimension is the batch, a tuple, list or dict of
conditions, ``None`` (unconditional models), or any object with ``take(rows)`` and
``concat(list_of_conditions)`` (a classmethod), such as ``twinflow.pipelines.Condition``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def take_rows(cond: Any, rows: Tensor) -> Any:
    """Rows ``rows`` (K,) int64 of ``cond``, in that order; repeats are allowed."""
    if cond is None:
        return None
    if isinstance(cond, Tensor):
        return cond[rows.to(cond.device)]
    if hasattr(cond, "take"):
        return cond.take(rows)
    if isinstance(cond, dict):
        return {key: take_rows(value, rows) for key, value in cond.items()}
    if isinstance(cond, (tuple, list)):
        return type(cond)(take_rows(value, rows) for value in cond)
    raise TypeError(f"a condition of type {type(cond).__name__} has no rows: give it take() and concat()")


def concat_rows(conds: list[Any]) -> Any:
    """The rows of all ``conds`` after one another; every entry has the same structure."""
    first = conds[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.cat(conds)
    if hasattr(first, "concat"):
        return type(first).concat(conds)
    if isinstance(first, dict):
        return {key: concat_rows([c[key] for c in conds]) for key in first}
    if isinstance(first, (tuple, list)):
        return type(first)(concat_rows(list(parts)) for parts in zip(*conds, strict=True))
    raise TypeError(f"a condition of type {type(first).__name__} has no rows: give it take() and concat()")


def count_rows(cond: Any) -> int | None:
    """Number of rows of a condition; ``None`` when it has no rows of its own or does not tell."""
    if isinstance(cond, Tensor):
        return cond.shape[0]
    if cond is None:
        return None
    if hasattr(cond, "take"):
        return len(cond) if hasattr(cond, "__len__") else None
    parts = cond.values() if isinstance(cond, Mapping) else cond
    counts = (count_rows(part) for part in parts)
    return next((count for count in counts if count is not None), None)


def to_device(value: Any, device: torch.device) -> Any:
    """A tensor or condition on ``device``. From the host it comes without waiting for what the device has to do."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=value.device.type == "cpu")
    if hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    return type(value)(to_device(item, device) for item in value)
