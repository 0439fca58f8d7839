"""A real Stable Diffusion 3 pipeline, small enough to run hundreds of times in a test."""

import copy

import torch
from torch import nn

from twinflow.data.shapeworld.captions import vocabulary
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.new import Architecture, new_pipeline
from twinflow.pipelines.target_time import target_time_state_dict
from twinflow.sampling import seeded_noise

PROMPTS = ["a photo of a red circle", "a photo of two squares", "a photo of a ring above a cross"]


def tiny_architecture() -> Architecture:
    return Architecture(
        words=tuple(vocabulary("full")),
        max_words=12,
        image_size=16,
        autoencoder_channels=(8, 16),
        autoencoder_attention=False,
        latent_channels=4,
        text_width=16,
        width=32,
        layers=2,
        head_width=16,
    )


def lively_pipeline():
    """A stock pipeline in which everything has an effect: a new one starts with zeros in many places."""
    pipe = new_pipeline(tiny_architecture(), seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in pipe.transformer.named_parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1 if name.endswith("bias") else 0.2, generator=generator)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def copy_of(pipe):
    """The same stock pipeline with a transformer of its own: all that the library may change."""
    copied = type(pipe)(**pipe.components | {"transformer": copy.deepcopy(pipe.transformer)})
    copied.set_progress_bar_config(disable=True)
    return copied


def train_branch(any_step: AnyStepPipeline, *, seed: int = 3) -> AnyStepPipeline:
    """Give the target-time branch random weights, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in target_time_state_dict(any_step.pipe.transformer).values():
            value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return any_step


def latents(any_step: AnyStepPipeline, rows: int, *, seed: int = 0) -> torch.Tensor:
    return seeded_noise(any_step.latent_shape, range(seed, seed + rows))
