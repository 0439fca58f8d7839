"""LoRAs on the tiny pipelines, with weights as training would leave them."""

import torch

from twinflow.pipelines import LoraSettings
from twinflow.pipelines.lora import lora_state_dict

from .driven import opened
from .tiny import train_branch

T = torch.tensor([1.0, 0.37, -0.807])
R = torch.tensor([0.0, 0.2, -0.807])
SETTINGS = LoraSettings(rank=2, alpha=3.0)


def train_lora(any_step, *, seed=5):
    """Give adapter and branch random weights, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in lora_state_dict(any_step.pipe.transformer).values():
            value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return train_branch(any_step)


def trained(family, **options):
    any_step = opened(family, **options)
    any_step.add_lora(SETTINGS)
    return train_lora(any_step)


def in_fp64(*pipes):
    """Where sums of another order differ by 1e-16 instead of 1e-7, which some random networks amplify a hundredfold on
    one machine and not on another."""
    for any_step in pipes:
        any_step.pipe.transformer.double()


def close(value, expected):
    """Equal in :func:`in_fp64`. Times are fp32 there too, and so are some networks' rotations: that is the 1e-7."""
    assert value.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-7 * float(expected.abs().max()))
