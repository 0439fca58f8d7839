"""How a stock diffusers pipeline is driven as a field ``F(x_t, t, r, cond)``.

The adapter knows what :mod:`twinflow.pipelines.wiring` found out, and passes to the transformer what the stock
pipeline would. It changes nothing in the pipeline.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from twinflow.errors import TwinflowError
from twinflow.pipelines.condition import Condition
from twinflow.pipelines.latents import LatentCodec, find_codec
from twinflow.pipelines.single_frame import use_single_frames
from twinflow.pipelines.watching import Stop, Watcher, run_stock
from twinflow.pipelines.wiring import PROMPTS, Wiring, discover

# Names of entries of a condition that are no arguments of the transformer.
TAIL = "source_tokens"  # (B, tokens, channels) of source pictures, which follow the state
NOISY = "noisy_tokens"  # (B, tokens) true where a token's time is t, false where it is 0


class Adapter:
    """Any pipeline that :func:`twinflow.pipelines.wiring.discover` can make sense of."""

    folds = False  # whether equal padding tokens are computed once

    def __init__(self, pipe: Any, *, call: Mapping[str, Any] | None = None) -> None:
        self.pipe = pipe
        self.wiring: Wiring = discover(pipe, call=call)
        use_single_frames(getattr(pipe, "vae", None))
        known = inspect.signature(type(pipe.transformer).forward).parameters
        self._plain_output = {"return_dict": False} if "return_dict" in known else {}

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one sample's state, at the picture size of the call that was watched."""
        return self.wiring.state_shape

    # The field

    def predict(self, network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Velocity (B, …) of the stock network at the state ``x_t`` (B, …) and times ``t`` (B,) fp32.

        State and embeddings may be of any floating dtype; times are never cast.
        """
        wiring = self.wiring
        arguments = cond.cast(network.dtype).arguments()
        state = x_t.to(network.dtype)
        tail = arguments.pop(TAIL, None)
        if tail is not None:
            state = torch.cat([state, tail], dim=1)
        noisy = arguments.pop(NOISY, None)
        time = (t + wiring.offset / wiring.slope) * wiring.slope
        if noisy is not None:
            time = torch.where(noisy.bool(), time[:, None], torch.full_like(time, wiring.offset)[:, None])
        arguments[wiring.time] = time
        arguments[wiring.state] = self._as_argument(state)
        return wiring.velocity_of(network(**arguments, **self._plain_output))

    def _as_argument(self, state: Tensor) -> Any:
        wiring = self.wiring
        shaped = state if wiring.state_has_tail else state.reshape(len(state), *wiring.argument_shape)
        return list(shaped.unbind()) if wiring.state_is_list else shaped

    # Conditions

    @torch.no_grad()
    def encode_prompts(
        self, prompts: Sequence[str], *, images: Sequence[Image.Image] | None = None
    ) -> Condition:
        """Conditions of ``prompts``, with the source picture of each where the pipeline edits."""
        if images is not None and len(images) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many source images, got {len(images)}")
        if images is None and not self.wiring.one_prompt_a_call:
            return self._encode(list(prompts))
        sources: Sequence[Any] = images or [None] * len(prompts)
        return Condition.concat(
            [self._encode([prompt], image=image) for prompt, image in zip(prompts, sources, strict=True)]
        )

    def _encode(self, prompts: list[str], image: Image.Image | None = None) -> Condition:
        """What the stock pipeline conditions its first network call on."""
        call = dict(self.wiring.call)
        if image is not None:
            if "image" not in inspect.signature(type(self.pipe).__call__).parameters:
                raise TwinflowError(f"{type(self.pipe).__name__} takes no source image: it does not edit")
            call["image"] = image
        arguments = self._first_call(prompts, call)
        wiring = self.wiring
        state, time = arguments.pop(wiring.state), arguments.pop(wiring.time)
        arguments.pop("return_dict", None)
        tensors: dict[str, Tensor] = {}
        lists: dict[str, list[Any]] = {}
        for name in [n for n in arguments if n in wiring.rows or n.endswith("_mask")]:
            value = arguments[name]
            if isinstance(value, Tensor):
                tensors[name] = arguments.pop(name).detach()
            elif isinstance(value, list):
                lists[name] = list(arguments.pop(name))
        if wiring.state_has_tail:
            tensors[TAIL] = state[:, wiring.state_shape[0] :].detach()
        if wiring.time_per_token:
            tensors[NOISY] = (time - wiring.offset - wiring.slope).abs() < 0.1 * abs(wiring.slope)
        return Condition(tensors=tensors, lists=lists, shared=arguments)

    def _first_call(self, prompts: list[str], call: Mapping[str, Any]) -> dict[str, Any]:
        seen: list[dict[str, Any]] = []

        def network(arguments: dict[str, Any]) -> Any:
            seen.append(arguments)
            raise Stop

        run_stock(self.pipe, prompts, call=call, watcher=Watcher(network=network))
        return seen[0]

    # Pictures

    @cached_property
    def codec(self) -> LatentCodec:
        watcher = Watcher()
        run_stock(self.pipe, PROMPTS[:1], call=self.wiring.call, watcher=watcher)
        return find_codec(self.pipe, self.wiring, output=watcher.calls[0].output)

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """States (B, …) of ``pixels`` (B, 3, H, W), or of clips (B, 3, T, H, W), in [-1, 1]: the posterior's mean."""
        vae = self.pipe.vae
        pixels = pixels.to(vae.device, vae.dtype)
        if self.codec.scale.dim() == 4 and pixels.dim() == 4:
            pixels = pixels[:, :, None]
        encoded = vae.encode(pixels)
        z = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
        if z[0].numel() != self.codec.scale.numel():
            raise ValueError(
                f"pixels of shape {tuple(pixels.shape[1:])} give latents of shape {tuple(z.shape[1:])}, but the "
                f"pipeline was opened for {tuple(self.codec.scale.shape)}: give pictures of the size of its call"
            )
        return self.codec.to_state(z.float().reshape(-1, *self.codec.scale.shape))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), or (B, 3, T, H, W) of clips, in [-1, 1] of states (B, …)."""
        vae = self.pipe.vae
        z = self.codec.to_autoencoder(latents.to(vae.device).float()).to(vae.dtype)
        pixels = vae.decode(z, return_dict=False)[0].clamp(-1, 1)
        return pixels[:, :, 0] if pixels.dim() == 5 and pixels.shape[2] == 1 else pixels
