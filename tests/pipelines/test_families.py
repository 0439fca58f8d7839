"""Every family is driven as its own pipeline drives it, without a line of code that knows the family."""

import copy
import json
from itertools import pairwise

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
)
from PIL import Image

from families import FAMILIES
from twinflow.conditions import concat_rows, take_rows
from twinflow.errors import TwinflowError
from twinflow.pipelines import AnyStepPipeline, Condition
from twinflow.pipelines import target_time as tt
from twinflow.pipelines.geometry import Size
from twinflow.pipelines.wiring import guidance_off

from .driven import PROMPTS, SIZE, SOURCES, noise, opened
from .tiny import train_branch


def stock_euler(family, *, latents, steps):
    """Final latents and pictures of the stock pipeline with the plain Euler scheduler and no guidance."""
    pipe = family.stock()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    off = guidance_off(pipe)[-1 if family.name == "zimage" else 0]
    call = {"prompt": PROMPTS[1], "num_inference_steps": steps} | off | family.call
    if family.name == "flux2_klein":  # takes its latents before they are packed
        latents = latents.transpose(1, 2).reshape(1, 16, 8, 8)
    final = pipe(latents=latents.clone(), output_type="latent", **call)[0]
    pictures = pipe(latents=latents.clone(), output_type="pt", **call)[0]
    times = [float(sigma) for sigma in pipe.scheduler.sigmas]
    return final, pictures, times


def test_a_few_euler_steps_are_the_stock_pipelines(family):
    any_step = opened(family, target_time=False)
    x = noise(any_step, 1)
    final, pictures, times = stock_euler(family, latents=x, steps=3)
    cond = any_step.encode_prompts(PROMPTS[1:2])
    with torch.no_grad():
        for now, then in pairwise(times):
            t = torch.full((1,), now)
            x = x - (now - then) * any_step.field(x, t, t, cond)
    # FLUX.2 calls "latent" what it gives to its decoder.
    ours = any_step.adapter.geometry().codec.to_autoencoder(x) if family.name == "flux2_klein" else x
    torch.testing.assert_close(ours, final.reshape(ours.shape), rtol=1e-4, atol=2e-5)

    # And they are decoded as the stock pipeline decodes them, clips with their frames first.
    ours = (any_step.decode(x) + 1) / 2
    pictures = pictures.movedim(1, 2) if family.video else pictures
    assert ours.std() > 0.01
    torch.testing.assert_close(ours, pictures, rtol=0, atol=1e-3)


def test_a_pipeline_that_edits_one_picture_a_call_is_driven_row_by_row(monkeypatch):
    """The first Qwen-Image-Edit refuses two prompts with one source picture. Its parts are those of its successor."""
    import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit as edit

    calculate = edit.calculate_dimensions
    monkeypatch.setattr(edit, "calculate_dimensions", lambda area, ratio: calculate(SIZE, ratio))
    family = FAMILIES["qwen_edit"]
    stock = edit.QwenImageEditPipeline(**family.stock().components)
    stock.set_progress_bar_config(disable=True)
    any_step = AnyStepPipeline(stock, call=family.call, target_time=False)
    assert any_step.edits
    assert any_step.adapter.wiring.one_prompt_a_call
    cond = any_step.encode_prompts(PROMPTS[:2], images=SOURCES[:2])
    x, plain = noise(any_step, 2), FlowMatchEulerDiscreteScheduler(shift=1.0)
    final = []
    for row in range(2):
        stock.scheduler = plain
        call = family.call | {"prompt": PROMPTS[row], "image": SOURCES[row], "num_inference_steps": 3}
        final.append(stock(latents=x[row : row + 1], output_type="latent", true_cfg_scale=1.0, **call)[0])
    with torch.no_grad():
        for now, then in pairwise(plain.sigmas.tolist()):
            t = torch.full((2,), now)
            x = x - (now - then) * any_step.field(x, t, t, cond)
    torch.testing.assert_close(x, torch.cat(final), rtol=1e-4, atol=2e-5)


def test_a_new_network_that_still_returns_zero_is_driven_alike(family):
    pipe, expected = family.stock(), opened(family, target_time=False)
    with torch.no_grad():
        for name, parameter in pipe.transformer.named_parameters():
            if name.startswith(("proj_out", "all_final_layer", "norm_out")):
                parameter.zero_()
    any_step = AnyStepPipeline(pipe, call=family.call, target_time=False)
    x, t = noise(any_step), torch.full((3,), 0.5)
    cond = any_step.encode_prompts(PROMPTS)
    with torch.no_grad():
        assert not any_step.field(x, t, t, cond).any()
    assert any_step.adapter.wiring.sign == expected.adapter.wiring.sign


def test_rows_of_conditions_are_as_good_as_separate_calls(family):
    any_step = train_branch(opened(family))
    any_step.pipe.transformer.double()  # batches of another size are sums of another order
    x, t, r = noise(any_step), torch.tensor([1.0, 0.5, 0.25]), torch.tensor([0.0, 0.5, 0.1])
    together = any_step.encode_prompts(PROMPTS)
    assert len(together) == len(PROMPTS)
    with torch.no_grad():
        expected = torch.cat(
            [
                any_step.field(
                    x[i : i + 1], t[i : i + 1], r[i : i + 1], any_step.encode_prompts([PROMPTS[i]])
                )
                for i in range(3)
            ]
        )
        spread = expected.abs().max()
        close = {"rtol": 0, "atol": 1e-7 * float(spread)}
        torch.testing.assert_close(any_step.field(x, t, r, together), expected, **close)
        rows = torch.tensor([2, 0, 0])
        picked = any_step.field(x[rows], t[rows], r[rows], take_rows(together, rows))
        torch.testing.assert_close(picked, expected[rows], **close)
        joined = concat_rows([any_step.encode_prompts([prompt]) for prompt in PROMPTS])
        torch.testing.assert_close(any_step.field(x, t, r, joined), expected, **close)


def test_states_survive_the_autoencoders_normalisation_and_packing(family):
    any_step = opened(family, target_time=False)
    codec, x = any_step.adapter.geometry().codec, noise(any_step)
    torch.testing.assert_close(codec.to_state(codec.to_autoencoder(x)), x, rtol=0, atol=1e-5)
    pixels = any_step.decode(x)
    encoded = any_step.encode_images(pixels)
    assert encoded.shape == x.shape
    vae = any_step.pipe.vae
    raw = vae.encode(pixels if pixels.dim() == codec.scale.dim() + 1 else pixels[:, :, None])
    mean = raw.latent_dist.mean if hasattr(raw, "latent_dist") else raw.latent
    torch.testing.assert_close(codec.to_autoencoder(encoded).reshape(mean.shape), mean, rtol=1e-4, atol=1e-4)


def test_another_size_is_as_good_as_a_pipeline_opened_with_it(family):
    # The positions of SD3 are a crop of a fixed table.
    size = Size(16, 24) if family.name == "sd3" else Size(64, 32, 9 if family.video else None)
    small = train_branch(opened(family, fold_padding=False))
    large = AnyStepPipeline(
        family.stock(), call=family.call | size.arguments(), fold_padding=False, target_time=False
    )
    large.pipe.transformer = small.pipe.transformer
    large.network.transformer = small.pipe.transformer
    ours = small(PROMPTS, nfe=2, seed=3, size=size, images=SOURCES if family.edits else None)
    theirs = large(PROMPTS, nfe=2, seed=3, images=SOURCES if family.edits else None)
    torch.testing.assert_close(ours.latents, theirs.latents, rtol=1e-4, atol=1e-5)
    assert ours.pixels.shape[-2:] == (size.height, size.width)
    assert ours.pixels.shape == theirs.pixels.shape
    encoded = small.encode_images(ours.pixels)
    assert encoded.shape == ours.latents.shape


def test_conditions_go_to_files_and_back(family):
    any_step = opened(family, target_time=False)
    cond = any_step.encode_prompts(PROMPTS)
    tensors, rest = cond.to_tensors()
    back = Condition.from_tensors(tensors, json.loads(json.dumps(rest)))
    x, t = noise(any_step), torch.full((3,), 0.5)
    with torch.no_grad():
        assert torch.equal(any_step.field(x, t, t, back), any_step.field(x, t, t, cond))


def assert_equal_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_an_any_step_checkpoint_is_lossless_and_loads_as_stock(family, tmp_path):
    any_step = train_branch(opened(family))
    any_step.save_pretrained(tmp_path)
    again = AnyStepPipeline.from_pretrained(tmp_path, call=family.call)
    assert_equal_weights(again.network, any_step.network)
    x, cond = noise(any_step), any_step.encode_prompts(PROMPTS)
    t, r = torch.tensor([1.0, 0.5, 0.25]), torch.zeros(3)
    again.pipe.transformer = copy.deepcopy(again.pipe.transformer)  # aligned memory, as the original has
    with torch.no_grad():
        ours, theirs = any_step.field(x, t, r, cond), again.field(x, t, r, cond)
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    # Stock diffusers opens a processor that sees videos too with torchvision alone.
    given = {"processor": again.pipe.processor} if family.name == "qwen_edit" else {}
    stock = DiffusionPipeline.from_pretrained(tmp_path, **given)
    assert not tt.has_target_time(stock.transformer)
    assert type(stock) is type(any_step.pipe)
    for name, part in family.original.components.items():
        if isinstance(part, torch.nn.Module):
            assert_equal_weights(getattr(stock, name), part)


def test_an_edit_pipeline_sees_the_source_picture_of_each_row():
    any_step = opened(FAMILIES["qwen_edit"])
    x, t = noise(any_step, 2), torch.tensor([0.5, 0.5])
    red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    with torch.no_grad():
        both = any_step.field(x, t, t, any_step.encode_prompts(PROMPTS[:2], images=[red, blue]))
        same = any_step.field(x, t, t, any_step.encode_prompts(PROMPTS[:2], images=[red, red]))
    torch.testing.assert_close(both[0], same[0], rtol=0, atol=1e-5)
    assert not torch.allclose(both[1], same[1], atol=1e-4)


def test_the_clean_tokens_of_a_source_picture_get_no_target_time():
    any_step = train_branch(opened(FAMILIES["qwen_edit"]))
    network = any_step.pipe.transformer
    assert any_step.adapter.wiring.time_path.rows == "clean_after"
    seen = []
    mlp = network.get_submodule(any_step.adapter.wiring.time_path.mlp)
    handle = mlp.register_forward_hook(lambda module, args, output: seen.append(output))
    x, cond, t = noise(any_step, 2), any_step.encode_prompts(PROMPTS[:2]), torch.tensor([0.9, 0.4])
    with torch.no_grad():
        for r in (t, torch.zeros(2)):
            any_step.field(x, t, r, cond)
    handle.remove()
    at_t, at_0 = seen
    assert not torch.allclose(at_t[:2], at_0[:2])
    assert torch.equal(at_t[2:], at_0[2:])


def test_an_edit_is_drawn_from_its_source_and_not_without():
    any_step = opened(FAMILIES["qwen_edit"])
    red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    with pytest.raises(ValueError, match="edits pictures"):
        any_step(PROMPTS[:1])
    drawn = any_step(["a"] * 2, images=[red, blue], seeds=[4, 4]).pixels
    assert not torch.equal(drawn[0], drawn[1])
    guided = any_step("a", images=red, nfe=4, guidance=3.0, style="multi")
    assert guided.pixels.isfinite().all()


def test_clips_are_lists_of_frames():
    any_step = opened(FAMILIES["wan"])
    drawn = any_step(PROMPTS[:2], nfe=2)
    assert [len(clip) for clip in drawn.images] == [5, 5]
    assert drawn.images[0][0].size == (32, 32)
    assert any_step(PROMPTS[:2], nfe=2, output_type="pt").images.shape == (2, 5, 3, 32, 32)


def test_a_prompt_without_a_token_gives_a_velocity_or_is_refused(family):
    """The tiny tokenizers make none of an empty prompt, where published ones end it with a token of their own."""
    any_step = opened(family)
    t, r = torch.tensor([0.7]), torch.tensor([0.2])
    if family.name != "hunyuan_video":
        assert any_step.field(noise(any_step, 1), t, r, any_step.encode_prompts([""])).isfinite().all()
        return
    latents = family.stock()("", num_inference_steps=1, output_type="latent", **family.call)[0]
    assert latents.isnan().all()  # of the stock pipeline: it takes the mean of no tokens
    for prompts in ([""], ["a", ""]):
        with pytest.raises(TwinflowError, match=r"the prompt '' has no token.*prompt_template"):
            any_step.encode_prompts(prompts)
    call = family.call | {"prompt_template": {"template": "{} end", "crop_start": 0}}
    ended = AnyStepPipeline(family.stock(), call=call)
    assert ended.field(noise(ended, 1), t, r, ended.encode_prompts([""])).isfinite().all()
