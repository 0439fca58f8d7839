"""Features of pictures, on which distances between pictures and sets of pictures are taken."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

FeatureFunction = Callable[[Tensor], Tensor]  # pictures (N, …) -> features (N, D)


def pixel_features(images: Tensor) -> Tensor:
    """The pixels themselves, (N, …) -> (N, D): needs no network, means little for large pictures."""
    return images.flatten(1)


def extract(features: FeatureFunction, images: Tensor) -> Tensor:
    """``features(images)`` as (N, D) fp64 on the CPU, checked."""
    values = features(images).detach().to("cpu").double()
    if values.dim() != 2 or values.shape[0] != images.shape[0]:
        raise ValueError(
            f"features of {images.shape[0]} pictures must have the shape ({images.shape[0]}, D), "
            f"got {tuple(values.shape)}"
        )
    return values
