"""How a stock diffusers pipeline is driven as a field ``F(x_t, t, r, cond)``: one adapter a family.

An adapter knows what the stock pipeline passes to its transformer: the time's scale, the velocity's sign, the
conditioning arguments, the latents' normalisation. It changes nothing in the pipeline.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twinflow.errors import TwinflowError
from twinflow.pipelines.condition import Condition
from twinflow.pipelines.padding import FoldedPaddingAttention


class StableDiffusion3Adapter:
    """Stable Diffusion 3 and 3.5: timestep ``1000 t``, velocity noise minus data, latents (B, C, H/8, W/8)."""

    pipeline_classes = ("StableDiffusion3Pipeline",)
    timestep_scale = 1000.0

    def __init__(self, pipe: Any, *, fold_padding: bool = True) -> None:
        self.pipe = pipe
        self.fold_padding = False
        if fold_padding and _all_equal(self._t5_tokens(self.encode_prompts(["a"]))):
            self.fold_padding = True
            pipe.transformer.set_attn_processor(FoldedPaddingAttention())

    padding_tokens = 256  # T5 tokens: max_sequence_length of the stock pipeline's call

    def _t5_tokens(self, cond: Condition) -> Tensor:
        return cond.kwargs["encoder_hidden_states"][:, -self.padding_tokens :]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        config = self.pipe.transformer.config
        return (config.in_channels, config.sample_size, config.sample_size)

    def predict(self, network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Velocity of the stock network at times ``t`` (B,) fp32; ``x_t`` (B, C, H, W).

        State and condition may be of any floating dtype; times are never cast.
        """
        folding = {"last_token_repeats": self.padding_tokens} if self.fold_padding else None
        return network(
            hidden_states=x_t.to(network.dtype),
            timestep=self.timestep_scale * t,
            joint_attention_kwargs=folding,
            return_dict=False,
            **{name: value.to(network.dtype) for name, value in cond.kwargs.items()},
        )[0]

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Condition:
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=self.padding_tokens
        )
        if self.fold_padding:
            embeds = embeds[:, : embeds.shape[1] - self.padding_tokens + 1]
        return Condition({"encoder_hidden_states": embeds, "pooled_projections": pooled})

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Normalised posterior mean of ``pixels`` (B, 3, H, W) in [-1, 1]."""
        vae = self.pipe.vae
        mean = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mean
        return (mean - self._shift) * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] of normalised latents."""
        vae = self.pipe.vae
        latents = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor + self._shift
        return vae.decode(latents, return_dict=False)[0].clamp(-1, 1)

    @property
    def _shift(self) -> float:
        return self.pipe.vae.config.shift_factor or 0.0


def _all_equal(tokens: Tensor) -> bool:
    """Whether the tokens (B, L, D) of each row are all the same: no T5, or a silent one."""
    return bool((tokens == tokens[:, :1]).all())


ADAPTERS = (StableDiffusion3Adapter,)


def adapter_for(pipe: Any, **options: Any) -> StableDiffusion3Adapter:
    """The adapter of a stock pipeline; an error names the families there are."""
    name = type(pipe).__name__
    for adapter in ADAPTERS:
        if name in adapter.pipeline_classes:
            return adapter(pipe, **options)
    known = ", ".join(n for adapter in ADAPTERS for n in adapter.pipeline_classes)
    raise TwinflowError(f"no adapter for {name}: this version can drive {known}")
