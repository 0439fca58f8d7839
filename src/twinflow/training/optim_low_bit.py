"""AdamW whose two moments are kept in 8 or 4 bits (arXiv 2110.02861, 2309.01507), or in fp32.

A moment is cut into blocks that are scaled by their largest element, and each element becomes the number of the
nearest entry of a fixed table. States are plain tensors of bytes, so that they are saved like everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Generator, Tensor, nn

from twinflow.training.fused import Fused, Numbers, each
from twinflow.training.optim_rounding import Rounding, RoundingOptimizer, chunks

Table = tuple[Tensor, Tensor]
SMALLEST = 4096  # elements; the moments of smaller parameters stay fp32, which costs nothing


@dataclass(frozen=True)
class Code:
    """How one moment is stored."""

    bits: int
    signed: bool
    block: int  # elements that share a scale

    def table(self, device: torch.device) -> Table:
        """Its entries, and the numbers between them."""
        return _table_on(self.bits, self.signed, device)

    def quantise(self, x: Tensor, table: Table | None = None) -> tuple[Tensor, Tensor]:
        """Bytes and scales of ``x`` (N,) fp32, N a multiple of the block."""
        _, between = table or self.table(x.device)
        blocks = x.view(-1, self.block)
        scale = blocks.abs().amax(1)
        codes = torch.bucketize(blocks / scale.clamp_min(1e-38)[:, None], between, out_int32=True)
        codes = codes.to(torch.uint8).flatten()
        return (codes if self.bits == 8 else codes[::2] << 4 | codes[1::2]), scale

    def restore(self, codes: Tensor, scale: Tensor, table: Table | None = None) -> Tensor:
        """(N,) fp32 of what :meth:`quantise` made."""
        entries, _ = table or self.table(codes.device)
        if self.bits == 4:
            codes = torch.stack([codes >> 4, codes & 15], dim=-1).flatten()
        return (entries[codes.int()].view(-1, self.block) * scale[:, None]).flatten()

    def bytes_of(self, count: int) -> int:
        padded = -(-count // self.block) * self.block
        return padded * self.bits // 8 + padded // self.block * 4


FIRST = {8: Code(8, True, 256), 4: Code(4, True, 128)}
# The root of the second moment, in whose table no entry is 0: what is divided by stays away from it.
SECOND = {8: Code(8, False, 256), 4: Code(4, False, 128)}


@cache
def _table(bits: int, signed: bool) -> Tensor:
    """Sorted entries in [-1, 1] or (0, 1]: 2 ** bits of them.

    Signed, or of 8 bits: decades with twice as many entries from one to the next larger (dynamic tree
    quantisation). Unsigned of 4 bits: evenly spaced, as there are too few for decades.
    """
    if bits == 4 and not signed:
        return torch.arange(1, 17) / 16
    values: list[Tensor] = []
    decades = bits - 1
    for decade in range(decades):
        count = 2 ** (decade if signed else decade + 1)
        edges = torch.linspace(0.1, 1, count + 1, dtype=torch.float64)
        values.append((edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade - decades + 1))
    positive = torch.cat([*values, torch.ones(1)])
    if signed:
        return torch.cat([-positive[:-1], torch.zeros(1), positive]).sort().values.float()
    return torch.cat([positive[:1] / 10, positive]).sort().values.float()


@cache
def _table_on(bits: int, signed: bool, device: torch.device) -> Table:
    """Once on each device: sending it would wait for all that a GPU has to do."""
    table = _table(bits, signed)
    return table.to(device), ((table[1:] + table[:-1]) / 2).to(device)


@dataclass(frozen=True)
class _Held:
    """How a moment is held: in fp32 (no code), or as bytes and scales."""

    code: Code | None

    def read(self, stored: tuple[Tensor, ...], count: int, table: Table | None) -> Tensor:
        """A new tensor (count,) fp32."""
        if self.code is None:
            return stored[0].clone()
        return self.code.restore(stored[0], stored[1], table)[:count]

    def write(self, value: Tensor, table: Table | None) -> tuple[Tensor, ...]:
        if self.code is None:
            return (value,)
        missing = -value.numel() % self.code.block
        return self.code.quantise(nn.functional.pad(value, (0, missing)) if missing else value, table)


def _adamw(
    numbers: Numbers,
    weight: Tensor,
    extra: Tensor | None,
    g: Tensor,
    noise: Tensor | None,
    held: tuple[_Held, _Held],
    stored: tuple[tuple[Tensor, ...], tuple[Tensor, ...]],
    tables: tuple[Table | None, Table | None],
) -> tuple[Tensor, Any, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """New values of a chunk: weight, extra bits, first moment, root of the second."""
    rest1, rest2, correct1, correct2, eps, keep, lr = each(numbers)
    first, second = held
    count, g = g.numel(), g.float()
    m = first.read(stored[0], count, tables[0]).lerp_(g, rest1)
    v = second.read(stored[1], count, tables[1]).square_().lerp_(g.square(), rest2)
    step = (m / correct1) / ((v / correct2).sqrt_() + eps)
    new = Rounding.read(weight, extra) * keep - lr * step
    return (
        *Rounding.rounded(new, extra, noise),
        first.write(m, tables[0]),
        second.write(v.sqrt_(), tables[1]),
    )


_FUSED = Fused(_adamw)


class LowBitAdamW(RoundingOptimizer):
    """AdamW in fp32 arithmetic, with bf16 weights rounded by chance and moments in ``bits`` bits (32: fp32)."""

    def __init__(
        self,
        params: Any,
        *,
        bits: int,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        names: dict[Tensor, str],
        seed: int,
        extra_bits: int = 0,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, names=names, seed=seed, extra_bits=extra_bits)
        self.exact = bits == 32
        self.first, self.second = FIRST[min(bits, 8)], SECOND[min(bits, 8)]

    def new_state(self, parameter: nn.Parameter) -> dict[str, Any]:
        count, device = parameter.numel(), parameter.device
        if self.exact or count < SMALLEST:
            # Of the parameter's shape, where nothing else is kept: a sharded checkpoint can cut them anew.
            shape = parameter.shape if self.exact else (count,)
            zeros = torch.zeros(shape, dtype=torch.float32, device=device)
            return {"step": 0, "moment": zeros, "root": zeros.clone()}
        state: dict[str, Any] = {"step": 0}
        for name, code in (("moment", self.first), ("root", self.second)):
            padded = -(-count // code.block) * code.block
            # A scale of 0 makes every element 0, whatever its code.
            state[name] = torch.zeros(padded * code.bits // 8, dtype=torch.uint8, device=device)
            state[f"{name}_scale"] = torch.zeros(padded // code.block, device=device)
        return state

    def update(
        self,
        parameter: nn.Parameter,
        gradient: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        generator: Generator,
    ) -> None:
        weight, g = parameter.view(-1), gradient.reshape(-1)
        beta1, beta2 = group["betas"]
        numbers = (
            1 - beta1,
            1 - beta2,
            1 - beta1 ** state["step"],
            1 - beta2 ** state["step"],
            group["eps"],
            1 - group["lr"] * group["weight_decay"],
            group["lr"],
        )
        extra = state["extra"].view(-1) if "extra" in state else None
        codes = [
            None if state[name].dtype == torch.float32 else code
            for name, code in (("moment", self.first), ("root", self.second))
        ]
        held = (_Held(codes[0]), _Held(codes[1]))
        tables = tuple(None if code is None else code.table(weight.device) for code in codes)
        for part in chunks(g.numel(), device=g.device, multiple=self.first.block):
            rest = None if extra is None else extra[part]
            noise = self.rounding.noise(weight[part], rest, generator)
            stored = (_places(state, "moment", codes[0], part), _places(state, "root", codes[1], part))
            new = _FUSED(numbers, weight[part], rest, g[part], noise, held, stored, tables)
            weight[part].copy_(new[0])
            if rest is not None:
                rest.copy_(new[1])
            for places, values in zip(stored, new[2:], strict=True):
                for place, value in zip(places, values, strict=True):
                    place.copy_(value)

    @staticmethod
    def state_bytes(shape: Sequence[int], *, bits: int) -> int:
        """Of a parameter of this shape."""
        count = int(torch.Size(shape).numel())
        if bits == 32 or count < SMALLEST:
            return 8 * count
        return FIRST[bits].bytes_of(count) + SECOND[bits].bytes_of(count)


def _places(state: dict[str, Any], name: str, code: Code | None, part: slice) -> tuple[Tensor, ...]:
    """Where a moment of the elements ``part`` is held: its numbers, or its bytes and their scales."""
    stored: Tensor = state[name]
    if code is None:
        return (stored.view(-1)[part],)
    first, last = part.start // code.block, -(-part.stop // code.block)
    per_block = code.block * code.bits // 8
    return stored[first * per_block : last * per_block], state[f"{name}_scale"][first:last]
