"""Source pictures that the network sees as channels beside the state: they have the size of what is drawn."""

import copy
from itertools import pairwise

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from families import FAMILIES
from families.family import enliven
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.geometry import Size

from .driven import PROMPTS, SOURCES, noise, opened

LARGER = Size(32, 64, 9)


@pytest.fixture(scope="module")
def moving() -> AnyStepPipeline:
    """Wan 2.1 image-to-video."""
    return opened(FAMILIES["wan_i2v"])


@torch.no_grad()
def test_each_row_is_set_in_motion_from_its_own_picture(moving):
    x, t = noise(moving, 2), torch.tensor([0.5, 0.5])
    own = moving.field(x, t, t, moving.encode_prompts(["a"] * 2, images=SOURCES[:2]))
    alike = moving.field(x, t, t, moving.encode_prompts(["a"] * 2, images=SOURCES[:1] * 2))
    torch.testing.assert_close(own[0], alike[0], rtol=0, atol=1e-5)
    assert (own[1] - alike[1]).abs().max() > 1e-3


def test_sources_are_encoded_for_the_size_that_is_drawn(moving):
    cond = moving.encode_prompts(["a"], images=SOURCES[:1])
    with pytest.raises(
        ValueError, match=r"encoded for states of \(16, 2, 4, 4\).*encode_prompts\(…, size=…\)"
    ):
        moving.at_size(cond, LARGER)
    larger = moving.encode_prompts(["a"], images=SOURCES[:1], size=LARGER)
    assert larger.tensors["source_tokens"].shape == (1, 20, 3, 4, 8)
    assert moving.at_size(larger, LARGER).tensors["source_tokens"] is larger.tensors["source_tokens"]
    assert moving("a", images=SOURCES[0], size=LARGER).pixels.shape == (1, 3, 9, 32, 64)


@torch.no_grad()
def test_in_half_precision_too():
    pipe = FAMILIES["wan_i2v"].stock()
    parts = {n: copy.deepcopy(p) if isinstance(p, torch.nn.Module) else p for n, p in pipe.components.items()}
    pipe = type(pipe)(**parts).to(torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    drawn = AnyStepPipeline(pipe, call=FAMILIES["wan_i2v"].call)(["a"], images=SOURCES[:1])
    assert drawn.pixels.isfinite().all()
    assert drawn.pixels.std() > 0.01


@torch.no_grad()
def test_channels_beside_packed_tokens(monkeypatch):
    """FLUX Fill shows its network the masked picture and the mask in the channels of each token."""
    # It encodes the picture by chance.
    posterior = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution
    monkeypatch.setattr(posterior, "sample", lambda self, generator=None: self.mode())
    torch.manual_seed(0)
    parts = FAMILIES["flux"].stock().components
    factor = 2 ** (len(parts["vae"].config.block_out_channels) - 1)
    config = {k: v for k, v in parts["transformer"].config.items() if not k.startswith("_")}
    channels = {"in_channels": 2 * 16 + 4 * factor**2, "out_channels": 16}
    parts["transformer"] = diffusers.FluxTransformer2DModel(**config | channels)
    enliven(parts["transformer"])
    fill = diffusers.FluxFillPipeline(
        **{k: v for k, v in parts.items() if "image_" not in k and k != "feature_extractor"}
    )
    fill.set_progress_bar_config(disable=True)
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    call = FAMILIES["flux"].call | {"image": SOURCES[2], "mask_image": mask}
    any_step = AnyStepPipeline(fill, call=call, target_time=False)
    assert any_step.adapter.wiring.tail_axis == 2
    x, cond = noise(any_step, 1), any_step.encode_prompts(PROMPTS[:1], images=SOURCES[:1])
    fill.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    call |= {"image": SOURCES[0], "num_inference_steps": 3, "output_type": "latent"}
    final = fill(PROMPTS[0], latents=x.clone(), **call)[0]
    for now, then in pairwise(fill.scheduler.sigmas.tolist()):
        t = torch.full((1,), now)
        x = x - (now - then) * any_step.field(x, t, t, cond)
    torch.testing.assert_close(x, final, rtol=1e-4, atol=2e-5)
