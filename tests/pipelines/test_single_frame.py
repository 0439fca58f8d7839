"""A picture through a video autoencoder's 2-D shortcut is the picture through the stock one."""

import copy

import pytest
import torch

from families import FAMILIES
from twinflow.pipelines.single_frame import use_single_frames


@pytest.mark.parametrize("name", ["qwen", "wan"])
@pytest.mark.parametrize("frames", [1, 5])
def test_pictures_and_clips_are_the_stock_ones(name, frames):
    stock = FAMILIES[name].original.vae
    swapped = copy.deepcopy(stock)
    assert use_single_frames(swapped) > 10
    assert set(swapped.state_dict()) == set(stock.state_dict())
    pixels = 2 * torch.rand(2, 3, frames, 32, 32, generator=torch.Generator().manual_seed(0)) - 1
    with torch.no_grad():
        z = stock.encode(pixels).latent_dist.mean
        torch.testing.assert_close(swapped.encode(pixels).latent_dist.mean, z, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(swapped.decode(z).sample, stock.decode(z).sample, rtol=1e-4, atol=1e-5)


def test_no_three_dimensional_convolution_is_left_for_a_picture(monkeypatch):
    vae = copy.deepcopy(FAMILIES["qwen"].original.vae)
    use_single_frames(vae)
    kernels = []
    stock = torch.nn.Conv3d._conv_forward

    def spy(self, x, weight, bias):
        kernels.append(tuple(weight.shape[2:]))
        return stock(self, x, weight, bias)

    monkeypatch.setattr(torch.nn.Conv3d, "_conv_forward", spy)
    with torch.no_grad():
        vae.decode(torch.randn(1, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert kernels == []


def test_an_image_autoencoder_is_left_alone():
    assert use_single_frames(FAMILIES["flux"].original.vae) == 0
    assert use_single_frames(None) == 0
