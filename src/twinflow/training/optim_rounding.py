"""bf16 weights that learn from steps too small for them: rounding by chance (arXiv 2010.06192).

A bf16 number has 8 significant bits, so a step below 1/512 of a weight is lost when rounded to the nearest: at a
learning rate of 1e-5 that is nearly every step. Rounded up with the probability of the part that is cut off, the
mean of many steps is exact.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

# Elements of a weight that are updated together: bounds the fp32 copies that this takes. Of a GPU, which has made an
# update of the smaller number before the host has asked for the next.
CHUNK, GPU_CHUNK = 1 << 22, 1 << 25
EXTRA = {8: torch.int8, 16: torch.int16}  # how so many extra bits are kept
UPDATE_BYTES = 24  # of passing memory for each of these; an H100 took 22.6 for 4-bit AdamW, compiled


def round_stochastically(value: Tensor, *, generator: Generator) -> Tensor:
    """``value`` (…) fp32 as bf16: each element one of its two neighbours, with ``value`` as the mean."""
    return _cut_off(value, _chance(16, value, generator))


def _chance(bits: int, like: Tensor, generator: Generator) -> Tensor:
    """Random numbers (…) of so many bits, as many as ``like`` has elements."""
    return torch.randint(0, 1 << bits, like.shape, generator=generator, device=like.device, dtype=torch.int32)


def _cut_off(value: Tensor, noise: Tensor) -> Tensor:
    # The lower half of the bits is what bf16 cuts off; a carry out of it is the next number away from zero.
    return ((value.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


class ExtraBits:
    """The bits of a weight that bf16 has no place for, in a tensor beside it: together they are its master weight.

    The bf16 weight is the master's nearest, and ``extra`` the distance from there in units of the master's last place:
    int8 for masters of 24 bits, int16 for 32, which is fp32, exactly. (A carry at the top of an exponent is none of
    the pattern: bf16 numbers of one sign are ordered as their patterns are.)
    """

    @staticmethod
    def master(weight: Tensor, extra: Tensor) -> Tensor:
        """fp32 of ``weight`` (…) bf16 and ``extra`` (…)."""
        unit = 1 << (16 - 8 * extra.element_size())
        pattern = weight.view(torch.int16).int() << 16
        return (pattern + extra.int() * unit).view(torch.float32)

    @staticmethod
    def split(value: Tensor, dtype: torch.dtype, *, generator: Generator) -> tuple[Tensor, Tensor]:
        """bf16 and extra bits of ``value`` (…) fp32, rounded by chance to the master's last place."""
        low = ExtraBits.cut_off(dtype)
        return ExtraBits.split_by(value, dtype, _chance(low, value, generator) if low else None)

    @staticmethod
    def cut_off(dtype: torch.dtype) -> int:
        """How many bits of fp32 a master has no place for."""
        return 16 - 8 * dtype.itemsize

    @staticmethod
    def split_by(value: Tensor, dtype: torch.dtype, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """:meth:`split` with given random numbers."""
        pattern, low = value.view(torch.int32), ExtraBits.cut_off(dtype)
        if noise is not None:
            pattern = (pattern + noise) & -(1 << low)
        upper = ((pattern + (1 << 15)) >> 16).to(torch.int16)
        extra = ((pattern - (upper.int() << 16)) >> low).to(dtype)
        return upper.view(torch.bfloat16), extra


class Rounding:
    """Writes fp32 values into weights of any dtype.

    The random numbers are a function of (seed, parameter, its step): nothing has to be saved to resume exactly, and
    the order in which parameters are updated makes no difference.
    """

    def __init__(self, *, seed: int) -> None:
        self.seed = seed
        self._generators: dict[torch.device, Generator] = {}

    def generator(self, name: str, step: int, device: torch.device) -> Generator:
        if device not in self._generators:
            self._generators[device] = Generator(device)
        key = _mix(_mix(_mix(self.seed) ^ zlib.crc32(name.encode())) ^ step)
        return self._generators[device].manual_seed(key >> 1)

    @staticmethod
    def read(weight: Tensor, extra: Tensor | None) -> Tensor:
        """fp32 of ``weight``, with its extra bits if it has some."""
        return weight.float() if extra is None else ExtraBits.master(weight, extra)

    @staticmethod
    def write(weight: Tensor, value: Tensor, generator: Generator, extra: Tensor | None = None) -> None:
        """``weight <- value`` (fp32), and ``extra`` with what the weight does not hold of it."""
        new, rest = Rounding.rounded(value, extra, Rounding.noise(weight, extra, generator))
        weight.copy_(new)
        if extra is not None:
            extra.copy_(rest)

    @staticmethod
    def noise(weight: Tensor, extra: Tensor | None, generator: Generator) -> Tensor | None:
        """The random numbers by which a value is rounded into ``weight`` and ``extra``; None where none is."""
        bits = 16 if weight.dtype == torch.bfloat16 else 0
        if extra is not None:
            bits = ExtraBits.cut_off(extra.dtype)
        return _chance(bits, weight, generator) if bits else None

    @staticmethod
    def rounded(value: Tensor, extra: Tensor | None, noise: Tensor | None) -> tuple[Tensor, Any]:
        """What of ``value`` (fp32) goes into a weight, and into the tensor of its extra bits, if it has one."""
        if extra is not None:
            return ExtraBits.split_by(value, extra.dtype, noise)
        return (value if noise is None else _cut_off(value, noise)), None


@torch.no_grad()
def lerp_(averages: Mapping[str, Tensor], weights: Mapping[str, Tensor], share: float, *, step: int) -> None:
    """``average <- average + share (weight - average)`` for all names, bf16 averages rounded by chance.

    Their random numbers are a function of the name and ``step``, as those of :class:`Rounding` are. An average on
    another device than its weight, the host, visits it a chunk at a time.
    """
    apart = {name for name, average in averages.items() if average.device != weights[name].device}
    plain = [n for n, average in averages.items() if average.dtype != torch.bfloat16 and n not in apart]
    if plain:
        torch._foreach_lerp_([averages[name] for name in plain], [weights[name] for name in plain], share)
    rounding = Rounding(seed=0)
    for name in averages.keys() - set(plain):
        average, weight = averages[name], weights[name]
        generator = rounding.generator(name, step, weight.device)
        if name in apart:
            _visit(average, weight, share, rounding, generator)
            continue
        if not (average.is_contiguous() and weight.is_contiguous()):
            rounding.write(average, average.float().lerp_(weight.float(), share), generator)
            continue
        for part in chunks(average.numel(), device=average.device):
            own, other = average.view(-1)[part], weight.view(-1)[part]
            rounding.write(own, own.float().lerp_(other.float(), share), generator)


def _visit(average: Tensor, weight: Tensor, share: float, rounding: Rounding, generator: Generator) -> None:
    """:func:`lerp_` of one contiguous ``average`` where its ``weight`` is; the result is the same."""
    home, away = average.view(-1), weight.contiguous().view(-1)
    for part in chunks(average.numel(), device=weight.device):
        own, other = home[part].to(weight.device, non_blocking=True), away[part]
        mixed = own.float().lerp_(other.float(), share)
        if average.dtype == torch.bfloat16:
            rounding.write(own, mixed, generator)
            mixed = own
        home[part].copy_(mixed)


def _mix(x: int) -> int:
    """splitmix64: near keys get unrelated seeds."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


class RoundingOptimizer(torch.optim.Optimizer):
    """Base of optimisers that compute in fp32, a chunk at a time, and round what they write by chance.

    ``names``: of the parameters, which their random numbers follow from. ``extra_bits``: of bf16 weights, kept in the
    state ``extra``, see :class:`ExtraBits`.
    """

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        names: dict[Tensor, str],
        seed: int,
        extra_bits: int = 0,
    ) -> None:
        super().__init__(params, defaults)
        self.names, self.extra_bits = names, extra_bits
        self.rounding = Rounding(seed=seed)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(self._first_state(parameter))
                state["step"] += 1
                device = parameter.device
                generator = self.rounding.generator(self.names[parameter], state["step"], device)
                self.update(parameter, parameter.grad, state, group, generator)

    def _first_state(self, parameter: nn.Parameter) -> dict[str, Any]:
        state = self.new_state(parameter)
        if self.extra_bits and parameter.dtype == torch.bfloat16:
            state["extra"] = torch.zeros_like(parameter, dtype=EXTRA[self.extra_bits])
        return state

    def new_state(self, parameter: nn.Parameter) -> dict[str, Any]:
        """State before the first step, with ``step`` 0."""
        raise NotImplementedError

    def update(
        self,
        parameter: nn.Parameter,
        gradient: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        generator: Generator,
    ) -> None:
        raise NotImplementedError

    def restore(self, parameter: nn.Parameter, state: dict[str, Any]) -> None:
        """Take ``state`` as it was saved: torch's own loading would cast it to the parameter's dtype."""
        new = self._first_state(parameter)
        for key, value in new.items():
            if isinstance(value, Tensor):
                if key not in state:
                    raise ValueError(f"the optimiser there has no {key} of {self.names[parameter]}")
                if state[key].shape != value.shape or state[key].dtype != value.dtype:
                    raise ValueError(
                        f"the optimiser's {key} of {self.names[parameter]} is {state[key].dtype} of shape "
                        f"{tuple(state[key].shape)} there, and {value.dtype} of shape {tuple(value.shape)} here"
                    )
                new[key] = value.copy_(state[key])
            else:
                new[key] = type(value)(state[key])
        self.state[parameter] = new


def chunks(count: int, *, device: torch.device, multiple: int = 1) -> Iterator[slice]:
    """Slices of ``range(count)``, of :data:`CHUNK` elements (on a GPU :data:`GPU_CHUNK`) down to a multiple of
    ``multiple``."""
    length = max((GPU_CHUNK if device.type == "cuda" else CHUNK) // multiple, 1) * multiple
    for start in range(0, count, length):
        yield slice(start, min(start + length, count))
