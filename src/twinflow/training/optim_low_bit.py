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

from twinflow.training.optim_rounding import RoundingOptimizer, chunks

SMALLEST = 4096  # elements; the moments of smaller parameters stay fp32, which costs nothing


@dataclass(frozen=True)
class Code:
    """How one moment is stored."""

    bits: int
    signed: bool
    block: int  # elements that share a scale

    def table(self, device: torch.device) -> Tensor:
        return _table(self.bits, self.signed).to(device)

    def quantise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Bytes and scales of ``x`` (N,) fp32, N a multiple of the block."""
        blocks = x.view(-1, self.block)
        scale = blocks.abs().amax(1)
        table = self.table(x.device)
        between = (table[1:] + table[:-1]) / 2
        codes = torch.bucketize(blocks / scale.clamp_min(1e-38)[:, None], between, out_int32=True)
        codes = codes.to(torch.uint8).flatten()
        return (codes if self.bits == 8 else codes[::2] << 4 | codes[1::2]), scale

    def restore(self, codes: Tensor, scale: Tensor) -> Tensor:
        """(N,) fp32 of what :meth:`quantise` made."""
        if self.bits == 4:
            codes = torch.stack([codes >> 4, codes & 15], dim=-1).flatten()
        return (self.table(codes.device)[codes.int()].view(-1, self.block) * scale[:, None]).flatten()

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
        correct1, correct2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
        keep = 1 - group["lr"] * group["weight_decay"]
        extra = state["extra"].view(-1) if "extra" in state else None
        for part in chunks(g.numel(), multiple=self.first.block):
            g_part = g[part].float()
            m = self._read(state, "moment", self.first, part).lerp_(g_part, 1 - beta1)
            root = self._read(state, "root", self.second, part)
            v = root.square_().lerp_(g_part.square_(), 1 - beta2)
            step = (m / correct1) / ((v / correct2).sqrt_() + group["eps"])
            rest = None if extra is None else extra[part]
            new = self.rounding.read(weight[part], rest) * keep - group["lr"] * step
            self._write(state, "moment", self.first, part, m)
            self._write(state, "root", self.second, part, v.sqrt_())
            self.rounding.write(weight[part], new, generator, rest)

    @staticmethod
    def _read(state: dict[str, Any], name: str, code: Code, part: slice) -> Tensor:
        stored: Tensor = state[name]
        if stored.dtype == torch.float32:
            return stored.view(-1)[part].clone()
        codes, scale = _places(code, part)
        return code.restore(stored[codes], state[f"{name}_scale"][scale])[: part.stop - part.start]

    @staticmethod
    def _write(state: dict[str, Any], name: str, code: Code, part: slice, value: Tensor) -> None:
        stored: Tensor = state[name]
        if stored.dtype == torch.float32:
            stored.view(-1)[part] = value
            return
        missing = -value.numel() % code.block
        codes, scale = _places(code, part)
        stored[codes], state[f"{name}_scale"][scale] = code.quantise(nn.functional.pad(value, (0, missing)))

    @staticmethod
    def state_bytes(shape: Sequence[int], *, bits: int) -> int:
        """Of a parameter of this shape."""
        count = int(torch.Size(shape).numel())
        if bits == 32 or count < SMALLEST:
            return 8 * count
        return FIRST[bits].bytes_of(count) + SECOND[bits].bytes_of(count)


def _places(code: Code, part: slice) -> tuple[slice, slice]:
    """Where the bytes and the scales of the elements ``part`` are."""
    first, last = part.start // code.block, -(-part.stop // code.block)
    per_block = code.block * code.bits // 8
    return slice(first * per_block, last * per_block), slice(first, last)
