"""What the trainer needs to know of a pipeline and of a data set; anything that has these can be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

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
        """A row-indexable condition (see :mod:`twinflow.conditions`).

        Pipelines that edit take the source picture of each prompt as ``images``, a list of PIL pictures; it is
        given for data that has source pictures alone.
        """
        ...

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Latents (B, …) of pixels (B, 3, H, W), or of clips (B, 3, T, H, W), in [-1, 1].

        A pipeline whose conditions depend on the size of the picture also has ``at_size(cond, size)``, with
        :class:`twinflow.pipelines.geometry.Size`: conditions are made for the size that it was opened with, and
        moved to that of the batch.
        """
        ...

    def save_pretrained(self, path: Path) -> None: ...


@runtime_checkable
class FreezesUnused(Protocol):
    """A pipeline that knows which of its parameters have no effect; they are frozen before anything is built."""

    def freeze_unused(self) -> list[str]:
        """Names of the parameters that it has frozen."""
        ...


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
    """Map-style; an item has

    - "pixels": (3, H, W), or (3, T, H, W) of a clip, float32 in [-1, 1]; absent where there are prompts alone,
    - "caption": str, and "captions", all of them, where there are several,
    - "source": the PIL picture that is edited, in editing data alone.

    See :mod:`twinflow.data.encoding`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...
