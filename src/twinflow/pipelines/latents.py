"""Between an autoencoder's latents and the state that is denoised, found by watching the stock pipeline.

Families normalise and pack latents in many ways: a shift and a scale, a mean and a deviation for each channel,
batch norm; 2 x 2 patches into tokens. All of them are a permutation of the elements with a scale and a shift for
each. Both are read off by letting the pipeline decode states that number their own elements.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twinflow.errors import TwinflowError
from twinflow.pipelines.watching import Stop, Watcher, run_stock
from twinflow.pipelines.wiring import PROMPTS, Wiring, first

BASE = 8  # elements are numbered in digits small enough for bf16


@dataclass(frozen=True)
class LatentCodec:
    """``z = scale · state[order] + shift`` with the state flattened, and its inverse. ``beside``: what the decoder
    gets beside z, one row each: the decoders of later LTX-Videos have a time of their own.
    """

    order: Tensor  # (N,) int64: element of the state at each element of z
    scale: Tensor  # z's shape without the batch
    shift: Tensor
    state_shape: tuple[int, ...]
    beside: tuple[Any, ...] = ()

    def to_autoencoder(self, state: Tensor) -> Tensor:
        """Latents (B, …) as the decoder takes them, of a state (B, …)."""
        flat = state.flatten(1)[:, self.order.to(state.device)]
        return flat.reshape(-1, *self.scale.shape) * self.scale.to(state) + self.shift.to(state)

    def to_state(self, z: Tensor) -> Tensor:
        """The state (B, …) of latents (B, …) as the encoder returns them."""
        flat = ((z - self.shift.to(z)) / self.scale.to(z)).flatten(1)
        state = torch.empty_like(flat)
        state[:, self.order.to(z.device)] = flat
        return state.reshape(-1, *self.state_shape)


def find_codec(
    pipe: Any, wiring: Wiring, *, call: Mapping[str, Any], state_shape: tuple[int, ...], output: Any
) -> LatentCodec:
    """Watch ``pipe`` decode states (B, *state_shape). ``output``: something that its transformer returned in this
    ``call``, to be returned again. Noise that it would add before it decodes is left out.
    """
    if "decode_noise_scale" in inspect.signature(type(pipe).__call__).parameters:
        call = {**call, "decode_noise_scale": 0.0}
    count = math.prod(state_shape)
    digits = max(1, math.ceil(math.log(count, BASE)))
    number = torch.arange(count)
    probes = [torch.zeros(count), torch.ones(count)]
    probes += [((number // BASE**k) % BASE).float() for k in range(digits)]
    states = torch.stack(probes).reshape(-1, *state_shape)
    groups = states.split(1) if wiring.one_prompt_a_call else [states]
    seen = [_decoder_input(pipe, call, group, output) for group in groups]
    z, beside = torch.cat([latents for latents, *_ in seen]), seen[0][1:]
    if z[0].numel() != count:
        raise TwinflowError(
            f"{type(pipe).__name__} decodes {z[0].numel()} numbers from a state of {count}: this version can only "
            "encode for pipelines that decode all of the state"
        )
    shift, scale = z[0], z[1] - z[0]
    places = [((plane - shift) / scale).round().long().flatten() for plane in z[2:]]
    order = sum((place * BASE**k for k, place in enumerate(places)), torch.zeros(count, dtype=torch.int64))
    if not torch.equal(order.sort().values, number):
        raise TwinflowError(
            f"{type(pipe).__name__} mixes the elements of its latents before it decodes them: this version knows "
            "packing and normalisation only"
        )
    return LatentCodec(order=order, scale=scale, shift=shift, state_shape=state_shape, beside=beside)


def _decoder_input(pipe: Any, call: Mapping[str, Any], states: Tensor, output: Any) -> tuple[Any, ...]:
    """What the pipeline passes to its decoder for final states (P, …): latents, fp32 on the CPU, and one row of the
    rest.
    """
    seen: list[tuple[Any, ...]] = []

    def decode(latents: Tensor, *beside: Any) -> Any:
        rest = [value[:1] if isinstance(value, Tensor) else value for value in beside]
        seen.append((latents.detach().float().cpu(), *rest))
        raise Stop

    repeated = _repeated(first(output), len(states))
    watcher = Watcher(
        network=lambda _: (repeated,), result=states.to(pipe._execution_device), autoencoder=decode
    )
    run_stock(pipe, PROMPTS[:1] * len(states), call=call, watcher=watcher, decode=True)
    if not seen:
        raise TwinflowError(f"{type(pipe).__name__} never calls vae.decode: it can't be told how it decodes")
    return seen[0]


def _repeated(output: Any, rows: int) -> Any:
    """The first row of ``output``, ``rows`` times."""
    if isinstance(output, Tensor):
        return output[:1].expand(rows, *output.shape[1:])
    entries: Sequence[Tensor] = output
    return [entries[0]] * rows
