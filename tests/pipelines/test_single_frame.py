"""A picture through a video autoencoder's 2-D shortcut is the picture through the stock one."""

import copy

import pytest
import torch

from families import FAMILIES
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.single_frame import _SingleFrame, use_single_frames


def stock_autoencoder(name):
    """Its convolutions as diffusers has them: pipelines that other tests have opened share theirs."""
    vae = copy.deepcopy(FAMILIES[name].original.vae)
    for module in vae.modules():
        if isinstance(module, _SingleFrame):
            module.__class__ = next(kind for kind in type(module).__mro__[1:] if kind is not _SingleFrame)
    return vae


@pytest.mark.parametrize("name", ["qwen", "wan"])
@pytest.mark.parametrize("frames", [1, 5])
def test_pictures_and_clips_are_the_stock_ones(name, frames):
    stock = stock_autoencoder(name)
    swapped = copy.deepcopy(stock)
    assert use_single_frames(swapped) > 10
    assert set(swapped.state_dict()) == set(stock.state_dict())
    pixels = 2 * torch.rand(2, 3, frames, 32, 32, generator=torch.Generator().manual_seed(0)) - 1
    with torch.no_grad():
        z = stock.encode(pixels).latent_dist.mean
        torch.testing.assert_close(swapped.encode(pixels).latent_dist.mean, z, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(swapped.decode(z).sample, stock.decode(z).sample, rtol=1e-4, atol=1e-5)


@pytest.fixture
def kernels(monkeypatch):
    """Sizes of the 3-D kernels that are computed with."""
    seen = []
    stock = torch.nn.Conv3d._conv_forward

    def spy(self, x, weight, bias):
        seen.append(tuple(weight.shape[2:]))
        return stock(self, x, weight, bias)

    monkeypatch.setattr(torch.nn.Conv3d, "_conv_forward", spy)
    return seen


def test_no_three_dimensional_convolution_is_left_for_a_picture(kernels):
    vae = stock_autoencoder("qwen")
    use_single_frames(vae)
    with torch.no_grad():
        vae.decode(torch.randn(1, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert kernels == []


def test_a_pipeline_encodes_and_decodes_pictures_without_them(kernels):
    stock = FAMILIES["qwen"].stock()
    stock.vae = stock_autoencoder("qwen")
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stock.vae.encode(pixels[:, :, None])
        assert (3, 3, 3) in kernels
        pipe = AnyStepPipeline(stock, call=FAMILIES["qwen"].call)
        kernels.clear()
        pipe.decode(pipe.encode_images(pixels))
    assert kernels == []


def test_an_image_autoencoder_is_left_alone():
    assert use_single_frames(FAMILIES["flux"].original.vae) == 0
    assert use_single_frames(None) == 0
