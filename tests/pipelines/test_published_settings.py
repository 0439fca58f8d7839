"""What published pipelines do, and tiny ones only if asked: half precision, own sizes, decoders that see a time."""

from dataclasses import replace
from itertools import pairwise

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from families import FAMILIES
from families.family import enliven
from twinflow.errors import TwinflowError
from twinflow.export.diffusers_folder import baked_stock
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.geometry import Size
from twinflow.sampling import seeded_noise

from .driven import PROMPTS, noise
from .test_families import stock_euler
from .tiny import train_branch


def test_a_state_that_is_rounded_to_bf16_is_found():
    """Z-Image, Wan, LTX and SANA keep their latents in fp32; of many, some are rounded by 1/64."""
    pipe = FAMILIES["zimage"].stock()
    pipe.transformer.to(torch.bfloat16)
    any_step = AnyStepPipeline(pipe, call=FAMILIES["zimage"].call | {"height": 128, "width": 128})
    assert any_step.latent_shape == (16, 64, 64)


def test_sana_draws_the_size_that_it_is_asked_for():
    """By default its pipeline draws the nearest of its own sizes, 1024 x 1024 here, and resizes the picture."""
    family = FAMILIES["sana"]
    call = {name: value for name, value in family.call.items() if name != "use_resolution_binning"}
    any_step = AnyStepPipeline(family.stock(), call=call)
    assert any_step.latent_shape == AnyStepPipeline(family.stock(), call=family.call).latent_shape
    assert any_step(PROMPTS[:1], size=(64, 32)).pixels.shape == (1, 3, 64, 32)
    assert any_step.encode_images(torch.zeros(1, 3, 96, 64)).shape == (1, 4, 48, 32)


def later_ltx():
    """The autoencoders from LTX-Video 0.9.1 on: the decoder removes the last of the noise, and is told how much."""
    pipe = FAMILIES["ltx"].build()
    config = dict(pipe.vae.config) | {"timestep_conditioning": True}
    pipe.vae = diffusers.AutoencoderKLLTXVideo.from_config(config)
    enliven(pipe.vae)
    return pipe


def test_a_decoder_that_sees_a_time():
    timed = {"decode_timestep": 0.05, "decode_noise_scale": 0.0}
    family = replace(FAMILIES["ltx"], build=later_ltx, call=FAMILIES["ltx"].call | timed)
    any_step = AnyStepPipeline(family.stock(), call=family.call)
    x = noise(any_step, 1)
    final, pictures, _ = stock_euler(family, latents=x, steps=1)
    decoded = any_step.decode(torch.cat([final, x]))
    torch.testing.assert_close((decoded[:1] + 1) / 2, pictures.movedim(1, 2), rtol=0, atol=1e-4)
    # Noise that the pipeline would add before is none of the codec's.
    noisy = AnyStepPipeline(family.stock(), call=family.call | {"decode_noise_scale": 0.025})
    torch.testing.assert_close(noisy.decode(x), decoded[1:], rtol=0, atol=1e-5)
    other = AnyStepPipeline(family.stock(), call=family.call | {"decode_timestep": 0.5})
    assert (other.decode(x) - decoded[1:]).abs().max() > 1e-4


@torch.no_grad()
def test_ltx_with_conditions_goes_the_way_its_scheduler_goes():
    """The pipeline of LTX-Video from 0.9.5 on gives its scheduler minus the velocity, and a time for each token."""
    family, parts = FAMILIES["ltx"], FAMILIES["ltx"].stock().components
    any_step = AnyStepPipeline(diffusers.LTXConditionPipeline(**parts), call=family.call, target_time=False)
    stock = diffusers.LTXConditionPipeline(
        **parts | {"scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0)}
    )
    stock.set_progress_bar_config(disable=True)
    final = stock(
        prompt=PROMPTS[0], num_inference_steps=2, output_type="latent", guidance_scale=1.0,
        generator=torch.Generator().manual_seed(5), **family.call,
    )[0]  # fmt: skip
    shape = final.shape
    x = stock._pack_latents(torch.randn(shape, generator=torch.Generator().manual_seed(5)), 1, 1)
    cond = any_step.encode_prompts(PROMPTS[:1])
    for now, then in pairwise(stock.scheduler.sigmas.tolist()):
        t = torch.full((1,), now)
        x = x - (now - then) * any_step.field(x, t, t, cond)
    torch.testing.assert_close(stock._unpack_latents(x, *shape[2:], 1, 1), final, rtol=1e-4, atol=2e-5)
    # Diffusers' stochastic sampling does not go the other way, too.
    baked_stock(any_step, nfe=1)
    with pytest.raises(TwinflowError, match=r"LTXConditionPipeline .* minus the velocity.*export for 1 step"):
        baked_stock(any_step, nfe=2)


def test_a_device_that_rounds_anew_each_time_leaves_a_row_its_prompt(monkeypatch):
    """At another size only what depends on the size is exchanged, and a prompt does not."""
    family = FAMILIES["sana"]
    any_step = AnyStepPipeline(family.stock(), call=family.call)
    encoder, size = any_step.pipe.text_encoder, Size(64, 32)
    expected = any_step.at_size(any_step.encode_prompts(PROMPTS), size).tensors["encoder_hidden_states"]
    any_step = AnyStepPipeline(family.stock(), call=family.call)
    stock, scale = encoder.forward, iter(1 + 1e-3 * k for k in range(100))

    def forward(*args, **kwargs):
        output, factor = stock(*args, **kwargs), next(scale)
        output["last_hidden_state"] = output["last_hidden_state"] * factor
        return output

    monkeypatch.setattr(encoder, "forward", forward)
    found = any_step.at_size(any_step.encode_prompts(PROMPTS), size).tensors["encoder_hidden_states"]
    assert (found - expected).norm() < 0.02 * expected.norm()


GUIDED = {  # of those that guide in the plain way; what else they do by default is off
    "sana": {"complex_human_instruction": ["Say more: "]},
    "lumina2": {"cfg_normalization": False, "max_sequence_length": 256},
    "wan": {},
    "ltx": {},
}


@pytest.mark.parametrize("name", GUIDED)
@torch.no_grad()
def test_an_empty_prompt_is_what_the_stock_pipeline_guides_by(name):
    """SANA and Lumina2 put an instruction before every prompt, but not before a negative one."""
    family = replace(FAMILIES[name], call=FAMILIES[name].call | GUIDED[name])
    any_step, stock = AnyStepPipeline(family.stock(), call=family.call, target_time=False), family.stock()
    x, guidance = noise(any_step, 1), 3.0
    stock.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    call = {"prompt": PROMPTS[0], "negative_prompt": "", "guidance_scale": guidance, "num_inference_steps": 2}
    final = stock(latents=x.clone(), output_type="latent", **call | family.call)[0]
    both = any_step.encode_prompts([PROMPTS[0], ""])
    for now, then in pairwise(stock.scheduler.sigmas.tolist()):
        t = torch.full((2,), now)
        cond, uncond = any_step.field(torch.cat([x, x]), t, t, both).split(1)
        x = x - (now - then) * (uncond + guidance * (cond - uncond))
    torch.testing.assert_close(x, final, rtol=1e-4, atol=1e-4)


SOURCES = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
EDIT_CALL = FAMILIES["flux2_klein"].call | {"height": 64, "width": 64, "image": SOURCES[0]}


@torch.no_grad()
def test_flux2_edits_where_it_is_opened_with_a_source_picture():
    family = replace(FAMILIES["flux2_klein"], call=EDIT_CALL, edits=True)
    any_step, stock = AnyStepPipeline(family.stock(), call=family.call, target_time=False), family.stock()
    assert any_step.edits
    x, cond = noise(any_step, 2), any_step.encode_prompts(PROMPTS[:2], images=SOURCES)
    stock.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    final = []
    for row in range(2):
        latents = (
            x[row : row + 1].transpose(1, 2).reshape(1, 16, 16, 16)
        )  # it takes them before they are packed
        call = family.call | {"prompt": PROMPTS[row], "image": SOURCES[row], "num_inference_steps": 2}
        final.append(stock(latents=latents, output_type="latent", guidance_scale=1.0, **call)[0])
    for now, then in pairwise(stock.scheduler.sigmas.tolist()):
        t = torch.full((2,), now)
        x = x - (now - then) * any_step.field(x, t, t, cond)
    ours = any_step.adapter.geometry().codec.to_autoencoder(x)
    torch.testing.assert_close(ours, torch.cat(final).reshape(ours.shape), rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_a_source_picture_of_another_size_keeps_its_positions():
    size, wide = Size(64, 96), [source.resize((96, 64)) for source in SOURCES]
    stock = FAMILIES["flux2_klein"].stock()
    small = train_branch(AnyStepPipeline(stock, call=EDIT_CALL))
    call = EDIT_CALL | size.arguments() | {"image": wide[0]}
    large = AnyStepPipeline(FAMILIES["flux2_klein"].stock(), call=call, target_time=False)
    large.pipe.transformer = large.network.transformer = small.pipe.transformer
    ours = small(PROMPTS[:2], images=wide, size=size, seed=3).latents
    torch.testing.assert_close(ours, large(PROMPTS[:2], images=wide, seed=3).latents, rtol=1e-4, atol=1e-5)
    assert ours.shape == seeded_noise(large.latent_shape, [0, 1]).shape


def test_flux2_that_was_opened_to_draw_does_not_edit():
    any_step = AnyStepPipeline(FAMILIES["flux2_klein"].stock(), call=FAMILIES["flux2_klein"].call)
    with pytest.raises(TwinflowError, match=r"opened without a source picture.*call=\{'image': …\}"):
        any_step.encode_prompts(PROMPTS[:1], images=SOURCES[:1])
