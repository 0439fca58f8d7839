"""What depends on the size of the picture: the state's shape, the packing, and conditions such as position ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from twinflow.errors import TwinflowError
from twinflow.pipelines.condition import NOISY, TAIL, Condition, same
from twinflow.pipelines.latents import LatentCodec, find_codec
from twinflow.pipelines.watching import Watcher, run_stock
from twinflow.pipelines.wiring import PROMPTS, Wiring, refusal

ROUNDING = 0.02  # in bf16


@dataclass(frozen=True, order=True)
class Size:
    """Height and width of a picture in pixels; of a clip its number of frames too."""

    height: int
    width: int
    frames: int | None = None

    @classmethod
    def of(cls, pixels: Tensor) -> Size:
        """Of ``pixels`` (B, 3, H, W) or (B, 3, T, H, W)."""
        height, width = pixels.shape[-2:]
        return cls(height, width, pixels.shape[2] if pixels.dim() == 5 else None)

    def arguments(self) -> dict[str, int]:
        """As arguments of a stock pipeline's call."""
        frames = {} if self.frames is None else {"num_frames": self.frames}
        return {"height": self.height, "width": self.width, **frames}


@dataclass
class Geometry:
    """One picture size of a pipeline. ``size`` None is that of the call that the pipeline was opened with."""

    pipe: Any
    wiring: Wiring
    call: Mapping[str, Any]
    arguments: dict[str, Any]  # of the transformer, in the call that was watched: one row
    output: Any  # and what it returned
    state_shape: tuple[int, ...]
    size: Size | None

    @classmethod
    def watch(cls, pipe: Any, wiring: Wiring, size: Size | None) -> Geometry:
        """Watch ``pipe`` make one step at this size. :class:`TwinflowError` if it refuses."""
        call = {**wiring.call, **(size.arguments() if size else {})}
        watcher = Watcher()
        try:
            run_stock(pipe, PROMPTS[:1], call=call, watcher=watcher)
        except TwinflowError:
            raise
        except Exception as error:  # pipelines raise whatever a wrong size leads them to
            raise TwinflowError(refusal(pipe, call, error)) from error
        made = watcher.calls[0]
        return cls(
            pipe=pipe,
            wiring=wiring,
            call=call,
            arguments=made.arguments,
            output=made.output,
            state_shape=tuple(watcher.steps[0].sample.shape[1:]),
            size=size,
        )

    @cached_property
    def codec(self) -> LatentCodec:
        """Between the autoencoder's latents and states of this size. ``ValueError`` where that is no whole number of
        latents: many pipelines then draw a smaller picture.
        """
        codec = find_codec(
            self.pipe, self.wiring, call=self.call, state_shape=self.state_shape, output=self.output
        )
        asked, latents = (self.call.get("height"), self.call.get("width")), codec.scale.shape[-2:]
        if any(isinstance(side, int) and side % length for side, length in zip(asked, latents)):
            raise ValueError(
                f"{type(self.pipe).__name__} is asked for pictures of {asked[0]} x {asked[1]}, and draws them from "
                f"latents of {latents[0]} x {latents[1]}, which are of another size: give a size that its autoencoder "
                "and its patches divide"
            )
        return codec

    def condition(self, cond: Condition, *, like: Geometry) -> Condition:
        """``cond`` for this size: what differs between a call of this size and one of ``like`` is exchanged."""
        names = [
            name
            for name, value in self.arguments.items()
            if name not in (self.wiring.state, self.wiring.time) and _differ(value, like.arguments.get(name))
        ]
        tensors, lists, shared = dict(cond.tensors), dict(cond.lists), dict(cond.shared)
        for name in names:
            value = self.arguments[name]
            if name in tensors:
                rows = value[:1].expand(len(cond), *value.shape[1:])
                tensors[name] = self._before_tail(rows, tensors[name], like=like, axis=1)
            elif name in lists:
                lists[name] = [self._sized(entry, value[0]) for entry in cond.lists[name]]
            elif name in shared:
                shared[name] = self._before_tail(value, shared[name], like=like, axis=0)
        if self.wiring.source_has_size:
            self._check_source(tensors[TAIL])
        if NOISY in tensors:  # read off the times, of which there are as many as tokens
            noisy = self.wiring.noisy(self.arguments[self.wiring.time])[:1]
            tensors[NOISY] = noisy.expand(len(cond), -1)
        return Condition(tensors=tensors, lists=lists, shared=shared)

    def _check_source(self, tail: Tensor) -> None:
        """Whether the sources' channels (B, …) are of this size: they can't be made of those of another."""
        axis = self.wiring.tail_axis or 0
        given, own = [*tail.shape[1:]], [*self.state_shape]
        given[axis - 1] = own[axis - 1]
        if given != own:
            raise ValueError(
                f"the source pictures were encoded for states of {tuple(given)}, and {type(self.pipe).__name__} draws "
                f"this size from {tuple(own)}: give the size when they are encoded, encode_prompts(…, size=…)"
            )

    def _before_tail(self, value: Any, former: Any, *, like: Geometry, axis: int) -> Any:
        """``value``; of what has an entry for each token (FLUX.2's positions), those of the row's own source picture
        stay as they are in ``former``, of the size of ``like``.
        """
        state = self.arguments[self.wiring.state]
        if self.wiring.tail_axis is None or self.wiring.source_has_size:
            return value
        if not isinstance(value, Tensor) or value.dim() <= axis:
            return value
        if value.shape[axis] != state.shape[1]:
            return value
        own, tokens = self.state_shape[0], like.state_shape[0]
        tail = former.narrow(axis, tokens, former.shape[axis] - tokens)
        return torch.cat([value.narrow(axis, 0, own), tail.to(value)], dim=axis)

    @staticmethod
    def _sized(entry: Any, sized: Any) -> Any:
        """Sizes of the row's pictures: the first is that of the one drawn, any others of its sources."""
        return [sized[0], *entry[1:]] if isinstance(entry, list) else sized

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """States (B, …) of ``pixels`` (B, 3, H, W) or (B, 3, T, H, W) in [-1, 1]: the posterior's mean."""
        vae = self.pipe.vae
        pixels = pixels.to(vae.device, vae.dtype)
        shape = self.codec.scale.shape
        if len(shape) == 4 and pixels.dim() == 4:  # a video autoencoder, and a picture
            pixels = pixels[:, :, None]
        encoded = vae.encode(pixels)
        z = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
        if z[0].numel() != self.codec.scale.numel():
            raise ValueError(
                f"pixels of shape {tuple(pixels.shape[1:])} give latents of shape {tuple(z.shape[1:])}, but "
                f"{type(self.pipe).__name__} draws such pictures from latents of shape {tuple(shape)}: give a size "
                "that its autoencoder and its patches divide"
            )
        return self.codec.to_state(z.float().reshape(-1, *shape))

    @torch.no_grad()
    def decode(self, state: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), or (B, 3, T, H, W) of clips, in [-1, 1] of states (B, …)."""
        vae = self.pipe.vae
        z = self.codec.to_autoencoder(state.to(vae.device).float()).to(vae.dtype)
        beside = [
            value.expand(len(z), *value.shape[1:]) if isinstance(value, Tensor) else value
            for value in self.codec.beside
        ]
        pixels = vae.decode(z, *beside, return_dict=False)[0].clamp(-1, 1)
        return pixels[:, :, 0] if pixels.dim() == 5 and pixels.shape[2] == 1 else pixels


def _differ(one: Any, other: Any) -> bool:
    """Whether an argument is another for another size. The same prompt encoded twice is the same, though devices may
    round it differently: or the prompt that was watched would take the place of a row's own.
    """
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return any(map(_differ, one, other))
    numbers = isinstance(one, Tensor) and isinstance(other, Tensor) and one.is_floating_point()
    if numbers and one.shape == other.shape:
        return bool((one.float() - other.float()).norm() > ROUNDING * other.float().norm())
    return not same(one, other)
