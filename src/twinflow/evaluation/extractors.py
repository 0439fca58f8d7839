"""Feature extractors by name: what distances between pictures, and sets of pictures, are taken on.

An extractor is any callable, pixels (N, 3, H, W) in [-1, 1] -> features (N, D), with a ``name`` and a ``hash`` of its
weights: both go into every result, since only numbers of equal features compare.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from twinflow.errors import TwinflowError
from twinflow.evaluation.features import pixel_features
from twinflow.evaluation.fingerprint import fingerprint
from twinflow.evaluation.inception import Inception
from twinflow.evaluation.ranks import device
from twinflow.pipelines import to_pil

KINDS = {
    "pixels": "the pixels themselves, for tiny pictures of one size",
    "texture": "a fixed random convolution network: no download; for tests, and to compare with itself alone",
    "dinov2": "a DINOv2 encoder of transformers, dinov2:facebook/dinov2-large or a path",
    "clip": "the image half of a CLIP model, clip:openai/clip-vit-large-patch14 or a path",
    "inception": "FID's Inception-v3 of 2015, inception:FILE of its weights in torchvision's names",
    "python": "your own, python:module:function; called without arguments it returns an extractor",
}


class FeatureExtractor(Protocol):
    name: str
    hash: str  # of the weights

    def __call__(self, pixels: Tensor) -> Tensor: ...


def open_extractor(text: str) -> FeatureExtractor:
    """``KIND`` or ``KIND:MODEL``. ``TwinflowError`` for one that is not known or can't be loaded."""
    kind, _, model = text.partition(":")
    if kind == "pixels":
        return _Plain("pixels", "-", pixel_features)
    if kind == "texture":
        return Texture()
    if kind == "python":
        return _plug_in(model)
    if kind == "inception" and model:
        return Inception(model)
    if kind in ("dinov2", "clip") and model:
        return Encoder(kind, model)
    kinds = "; ".join(f"{name}: {what}" for name, what in KINDS.items())
    raise TwinflowError(f"features {text!r} are not known. There are {kinds}")


class _Plain:
    def __init__(self, name: str, hashed: str, function: Callable[[Tensor], Tensor]) -> None:
        self.name, self.hash, self.function = name, hashed, function

    def __call__(self, pixels: Tensor) -> Tensor:
        return self.function(pixels)


def _plug_in(text: str) -> FeatureExtractor:
    module, _, function = text.partition(":")
    try:
        extractor = getattr(importlib.import_module(module), function)()
        if not (callable(extractor) and isinstance(extractor.name, str) and isinstance(extractor.hash, str)):
            raise TypeError("it must be callable, with a name and a hash as text")
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise TwinflowError(f"features python:{text}: {error}") from error
    return extractor


class Texture:
    """Means and deviations of a random convolution network, the same on every machine. Any size of picture."""

    name, hash = "texture-1", "seed 0"

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        widths = (3, 32, 64)
        self.weights = [
            torch.randn(b, a, 5, 5, generator=generator, dtype=torch.float64) / (25 * a) ** 0.5
            for a, b in pairwise(widths)
        ]

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        values, found = pixels.detach().cpu().double(), []
        for weight in self.weights:
            values = torch.nn.functional.leaky_relu(
                torch.nn.functional.conv2d(values, weight, stride=2, padding=2)
            )
            found += [values.mean((2, 3)), values.std((2, 3), correction=0)]
        return torch.cat(found, dim=1)


class Encoder:
    """A vision encoder of transformers, with the model's own preprocessing. Only safetensors are read.

    DINOv2 alone is not shown the middle of a picture: FD-DINOv2 (arXiv 2306.04675) is taken on whole ones, squeezed
    into the square that the model looks at.
    """

    def __init__(self, kind: str, model: str) -> None:
        from transformers import AutoImageProcessor, CLIPModel, Dinov2Model

        # The whole CLIP: its vision half alone takes the projection's width from elsewhere, and may miss it.
        classes: dict[str, Any] = {"dinov2": Dinov2Model, "clip": CLIPModel}
        try:
            network = classes[kind].from_pretrained(model, use_safetensors=True)
            self.processor = AutoImageProcessor.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise TwinflowError(f"features {kind}:{model} can't be loaded: {error}") from error
        self.network = network.to(device()).eval()
        self.square: dict[str, int] | None = self.processor.crop_size if kind == "dinov2" else None
        self.name, self.hash = f"{kind}:{model.rstrip('/').rpartition('/')[2]}", fingerprint(model)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        images, options = to_pil(pixels), {}
        if self.square is not None:
            size = (self.square["width"], self.square["height"])
            images = [image.resize(size, Image.Resampling.BICUBIC) for image in images]
            options = {"do_resize": False, "do_center_crop": False}
        inputs = self.processor(images=images, return_tensors="pt", **options)["pixel_values"]
        inputs = inputs.to(self.network.device)
        clip = hasattr(self.network, "get_image_features")
        output = self.network.get_image_features(pixel_values=inputs) if clip else self.network(inputs)
        # DINOv2's pooled output is its class token, normalised: what FD-DINOv2 is taken on.
        return output if isinstance(output, Tensor) else output.pooler_output


def extractor_hash(extractor: FeatureExtractor) -> str:
    """Short, of the name and the weights."""
    return hashlib.sha256(f"{extractor.name}\0{extractor.hash}".encode()).hexdigest()[:12]
