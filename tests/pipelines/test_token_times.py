"""Wan 2.2 TI2V gives every token a time of its own, so that those of a given first frame can be clean."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from families import FAMILIES
from twinflow.conditions import concat_rows, take_rows
from twinflow.export import to_slim
from twinflow.export.diffusers_folder import baked_stock
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.condition import NOISY
from twinflow.pipelines.geometry import Size
from twinflow.sampling import few_step_times, seeded_noise

from .driven import PROMPTS, noise
from .tiny import train_branch

CALL = FAMILIES["wan"].call
FRAME = 4 * 4  # tokens of a frame of 8 x 8 latents in patches of 2 x 2
SEED, RENOISE_SEED = 3, 7


def stock_pipeline():
    pipe = FAMILIES["wan"].stock()
    pipe.register_to_config(expand_timesteps=True)
    return pipe


def opened(**options) -> AnyStepPipeline:
    return AnyStepPipeline(stock_pipeline(), call=CALL, **options)


def first_frame_clean(cond):
    """The condition in which the first frame is a source: its tokens stay at time 0."""
    noisy = cond.tensors[NOISY].clone()
    noisy[:, :FRAME] = False
    return replace(cond, tensors=cond.tensors | {NOISY: noisy})


@torch.no_grad()
def test_a_few_euler_steps_are_the_stock_pipelines():
    any_step, stock = opened(target_time=False), stock_pipeline()
    assert any_step.adapter.wiring.time_per_token
    x, cond = noise(any_step, 1), any_step.encode_prompts(PROMPTS[1:2])
    assert cond.tensors[NOISY].all()
    stock.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    final = stock(
        PROMPTS[1], latents=x.clone(), num_inference_steps=3, output_type="latent", guidance_scale=1.0, **CALL
    )[0]
    for now, then in pairwise(stock.scheduler.sigmas.tolist()):
        t = torch.full((1,), now)
        x = x - (now - then) * any_step.field(x, t, t, cond)
    torch.testing.assert_close(x, final, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_a_branch_is_the_stock_network_at_birth_and_rows_stand_alone():
    plain, any_step = opened(target_time=False), opened()
    x, t, r = noise(any_step), torch.tensor([1.0, 0.5, -0.25]), torch.tensor([0.0, 0.5, -0.1])
    cond = any_step.encode_prompts(PROMPTS)
    assert torch.equal(any_step.field(x, t, r, cond), plain.field(x, t, t, cond))
    train_branch(any_step).pipe.transformer.double()
    together = any_step.field(x, t, r, cond)
    rows = torch.tensor([2, 0])
    mixed = concat_rows([take_rows(cond, rows[:1]), first_frame_clean(take_rows(cond, rows[1:]))])
    picked = any_step.field(x[rows], t[rows], r[rows], take_rows(cond, rows))
    torch.testing.assert_close(picked, together[rows], rtol=0, atol=1e-9)
    # A row with a source beside one without.
    torch.testing.assert_close(
        any_step.field(x[rows], t[rows], r[rows], mixed)[:1], together[2:], rtol=0, atol=1e-9
    )


@torch.no_grad()
def test_clean_tokens_get_no_target_time():
    any_step = train_branch(opened())
    path = any_step.adapter.wiring.time_path
    assert path.rows == "tokens"
    seen = []
    mlp = any_step.pipe.transformer.get_submodule(path.mlp)
    mlp.register_forward_hook(
        lambda module, args, output: seen.append(output.reshape(2, -1, output.shape[-1]))
    )
    x, t = noise(any_step, 2), torch.tensor([0.9, 0.4])
    cond = first_frame_clean(any_step.encode_prompts(PROMPTS[:2]))
    for times, r in ((t, t), (t, torch.zeros(2)), (torch.zeros(2), torch.zeros(2))):
        any_step.field(x, times, r, cond)
    at_t, jump, clean = seen
    assert torch.equal(at_t[:, :FRAME], jump[:, :FRAME])
    torch.testing.assert_close(at_t[:, :FRAME], clean[:, :FRAME])  # they are at time 0 whatever t is
    assert ((at_t - jump)[:, FRAME:].abs().amax(-1) > 1e-3).all()


def stock_clip(pipe: AnyStepPipeline, stock, nfe: int) -> torch.Tensor:
    torch.manual_seed(RENOISE_SEED)
    latents = seeded_noise(pipe.latent_shape, [SEED])
    stock.set_progress_bar_config(disable=True)
    options = {"prompt": PROMPTS[0], "latents": latents, "num_inference_steps": nfe, "output_type": "pt"}
    return stock(**options, guidance_scale=1.0, **CALL)[0]


def our_clip(pipe: AnyStepPipeline, nfe: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(RENOISE_SEED)
    return pipe(PROMPTS[:1], nfe=nfe, seeds=[SEED], generator=generator, output_type="pt").images


@pytest.mark.parametrize("nfe", [1, 2, 4])
def test_an_export_draws_the_same_clip(nfe):
    pipe = train_branch(opened())
    stock, _ = baked_stock(pipe, nfe=nfe)
    ours = our_clip(pipe, nfe)
    torch.testing.assert_close(stock_clip(pipe, stock, nfe), ours, rtol=0, atol=1e-5)
    without = our_clip(opened(), nfe)
    assert (without - ours).abs().max() > 1e-3


@torch.no_grad()
def test_a_bake_leaves_clean_tokens_as_they_are():
    """The export is asked for the first frame by other pipelines, whose tokens are clean."""
    pipe = train_branch(opened())
    pipe.pipe.transformer.double()
    cond = first_frame_clean(pipe.encode_prompts(PROMPTS[:1]))
    baked = AnyStepPipeline(baked_stock(pipe, nfe=2)[0], target_time=False, call=CALL)
    x = noise(pipe, 1)
    for time in few_step_times(2):
        t = torch.full((1,), time)
        jump, ours = pipe.field(x, t, torch.zeros(1), cond), baked.field(x, t, t, cond)
        torch.testing.assert_close(ours, jump, rtol=0, atol=1e-8 * float(jump.abs().max()))


def test_a_slim_folder_draws_the_one_step_clip(tmp_path):
    pipe = train_branch(opened())
    made = to_slim(pipe, tmp_path)
    assert made.kept < 0.95 * made.parameters
    slim = AnyStepPipeline.from_pretrained(tmp_path, target_time=False, call=CALL)
    torch.testing.assert_close(our_clip(slim, 1), our_clip(pipe, 1), rtol=0, atol=1e-5)


def test_another_size_is_as_good_as_a_pipeline_opened_with_it():
    size = Size(64, 32, 9)
    small = train_branch(opened())
    large = AnyStepPipeline(stock_pipeline(), call=CALL | size.arguments(), target_time=False)
    large.pipe.transformer = small.pipe.transformer
    large.network.transformer = small.pipe.transformer
    ours = small(PROMPTS[:2], nfe=2, seed=3, size=size).latents
    theirs = large(PROMPTS[:2], nfe=2, seed=3).latents
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
