"""What the trainer needs to know of a pipeline and of a data set; anything that has these can be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from twinflow.objectives import Field


class Trainable(Protocol):
    """A pipeline as the trainer sees it; :class:`twinflow.pipelines.AnyStepPipeline` is one.

    Previews also need ``latent_shape`` and ``decode``, see :class:`Drawable`.
    """

    network: nn.Module  # its parameters with requires_grad are trained

    @property
    def field(self) -> Field:
        """The field of :attr:`network`."""
        ...

    def field_of(self, network: nn.Module) -> Field:
        """The field of other weights: of a deep copy of :attr:`network`."""
        ...

    def encode_prompts(self, prompts: list[str]) -> Any:
        """A row-indexable condition (see :mod:`twinflow.conditions`)."""
        ...

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Latents (B, …) of pixels (B, 3, H, W) in [-1, 1]."""
        ...

    def save_pretrained(self, path: Path) -> None: ...


class Drawable(Trainable, Protocol):
    """A pipeline that can draw."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one picture's latents, without the batch."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, C, H, W) in [-1, 1]."""
        ...


class Dataset(Protocol):
    """Map-style; an item has at least "pixels" (3, H, W) float32 in [-1, 1] and "caption"."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...
