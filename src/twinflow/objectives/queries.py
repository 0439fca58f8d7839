"""Questions to networks, grouped so that each network is called once for all that can be asked together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from twinflow.conditions import concat_rows, count_rows, take_rows
from twinflow.field import Field


@dataclass(kw_only=True)
class Query:
    """States at which the velocity of ``field`` is wanted; there may be none."""

    field: Field
    x_t: Tensor  # (K, …)
    t: Tensor  # (K,)
    r: Tensor  # (K,)
    rows: Tensor | None = None  # (K,) int64: the rows of the batch whose conditions go with them; None: all
    uncond: bool = False  # take the unconditional condition's rows instead


@dataclass(kw_only=True)
class Evaluator:
    """Answers named queries in one call a network, under the conditions of one batch.

    States are handed over in ``state_dtype``; answers come back in the dtype of the times (at least fp32),
    so that whatever is subtracted afterwards is subtracted in that precision.

    ``lockstep``: a network that is asked about no rows at all is called on one made-up row, and the answer is
    dropped. Processes that shard a network's weights (FSDP) must all make the same calls.
    """

    cond: Any
    uncond: Any
    state_dtype: torch.dtype
    lockstep: bool = False

    def __call__(self, queries: Mapping[str, Query]) -> dict[str, Tensor]:
        """Velocities (K, …) by the name of the query."""
        answers = {name: torch.empty_like(query.x_t, dtype=query.t.dtype) for name, query in queries.items()}
        networks = {id(query.field): query.field for query in queries.values()}
        for network in networks.values():
            same = {name: query for name, query in queries.items() if query.field is network}
            asked = {name: query for name, query in same.items() if query.x_t.shape[0] > 0}
            if asked:
                joint = self._call(network, list(asked.values()))
                parts = joint.split([query.x_t.shape[0] for query in asked.values()])
                answers.update(zip(asked, parts, strict=True))
            elif self.lockstep:
                self._call(network, [_made_up(next(iter(same.values())))])
        return answers

    def _call(self, network: Field, queries: list[Query]) -> Tensor:
        x_t = torch.cat([query.x_t for query in queries])
        t = torch.cat([query.t for query in queries])
        r = torch.cat([query.r for query in queries])
        conds = [self._condition(query) for query in queries]
        # A single query is not concatenated: no copy of the text embeddings of the forward with gradient.
        v = network(x_t.to(self.state_dtype), t, r, conds[0] if len(conds) == 1 else concat_rows(conds))
        if v.shape != x_t.shape:
            raise ValueError(
                f"the field must return a velocity of the state's shape {tuple(x_t.shape)}, "
                f"got {tuple(v.shape)}"
            )
        return v.to(t.dtype)

    def _condition(self, query: Query) -> Any:
        rows = query.rows
        if not query.uncond:
            return self.cond if rows is None else take_rows(self.cond, rows)
        if rows is None:
            rows = torch.arange(query.x_t.shape[0], device=query.x_t.device)
        return take_rows(self.uncond, torch.zeros_like(rows) if count_rows(self.uncond) == 1 else rows)


def _made_up(query: Query) -> Query:
    """One row of noiseless zeros at t = r = 1, for the network and kind of condition of ``query``."""
    one = query.t.new_ones(1)
    zeros = query.x_t.new_zeros((1, *query.x_t.shape[1:]))
    first = torch.zeros(1, dtype=torch.int64, device=query.x_t.device)
    return replace(query, x_t=zeros, t=one, r=one, rows=first)
