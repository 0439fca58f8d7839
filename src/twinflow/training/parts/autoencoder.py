"""Train a pipeline's autoencoder: pictures through a narrow, noisy bottleneck and back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from twinflow.objectives.objective import Field, Objective, RowLog, Step
from twinflow.tensor_files import let_read


class AutoencoderNetwork(nn.Module):
    """The stock autoencoder as a module from (pixels, noise) to (reconstruction, latents)."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae: Any = vae

    def forward(self, pixels: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        latents = self.vae.encode(pixels).latent_dist.mean.float()
        seen = latents if noise is None else latents + noise
        return self.vae.decode(seen, return_dict=False)[0].float(), latents


@dataclass(kw_only=True)
class Reconstruction(Objective):
    """``mean (y - x)² + l1 · mean |y - x| + spread · max(mean z² - 1, 0)``, y decoded from z + noise.

    The noise on the latents is what a Gaussian posterior of fixed width would add: the decoder learns to bear
    small errors of the generator. ``spread`` keeps the latents from growing to escape the noise.
    """

    l1: float = 0.2
    noise: float = 0.1
    spread: float = 1e-3

    def __post_init__(self) -> None:
        for key in ("l1", "noise", "spread"):
            if not getattr(self, key) >= 0:
                raise ValueError(f"{key} must be at least 0, got {getattr(self, key)}")

    def step(
        self,
        field: Field,
        x: Tensor,
        cond: Any,
        *,
        uncond: Any = None,
        teacher: Field | None = None,
        generator: Generator | None = None,
    ) -> Step:
        """``field`` is an :class:`AutoencoderNetwork`, ``x`` pixels (B, 3, H, W); conditions are not used."""
        vae = field.vae  # type: ignore[attr-defined]
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        shape = (x.shape[0], vae.config.latent_channels, x.shape[2] // factor, x.shape[3] // factor)
        noise = self.noise * torch.randn(shape, generator=generator).to(x.device)
        reconstruction, latents = field(x, noise)  # type: ignore[call-arg]
        error = (reconstruction - x).flatten(1)
        square, absolute = error.square().mean(1), error.abs().mean(1)
        spread = (latents.square().mean() - 1).clamp_min(0)
        rows = square + self.l1 * absolute + self.spread * spread
        zeros = torch.zeros(x.shape[0])
        return Step(
            loss=rows.mean(),
            losses={"square": square.detach().mean(), "absolute": absolute.detach().mean()},
            metrics={"latent_rms": latents.detach().square().mean().sqrt()},
            rows=RowLog(roles=["autoencoder"] * x.shape[0], t=zeros, r=zeros, loss=rows.detach()),
        )


class AutoencoderPart:
    """A pipeline's autoencoder, trained on pixels; saving measures the latents and sets their normalisation."""

    def __init__(self, pipe: Any, *, calibration: Iterable[Tensor]) -> None:
        self.pipe = pipe
        self.network = AutoencoderNetwork(pipe.vae)
        self._calibration = calibration  # batches of pixels (B, 3, H, W)

    def field_of(self, network: nn.Module) -> nn.Module:
        return network

    @property
    def field(self) -> nn.Module:
        return self.network

    def encode_prompts(self, prompts: list[str]) -> None:
        return None

    def encode_images(self, pixels: Tensor) -> Tensor:
        return pixels

    @torch.no_grad()
    def save_pretrained(self, path: str | Path) -> None:
        """Write the whole stock pipeline; its latents then have mean 0 and variance 1 over the data."""
        vae: Any = self.network.vae
        batches = (pixels.to(vae.device, vae.dtype) for pixels in self._calibration)
        latents = torch.cat([vae.encode(pixels).latent_dist.mean for pixels in batches]).double()
        vae.register_to_config(
            shift_factor=latents.mean().item(), scaling_factor=1 / latents.std(correction=0).item()
        )
        self.pipe.vae = vae
        self.pipe.save_pretrained(path, safe_serialization=True)
        let_read(path, like="model_index.json")
