"""Folded padding is the stock attention, and conditions are rows."""

import copy
import random

import pytest
import torch

from twinflow.data.shapeworld import TASKS, all_captions
from twinflow.pipelines import AnyStepPipeline, Condition

from .tiny import PROMPTS, copy_of, latents, train_branch


@pytest.fixture
def pair(tiny_pipeline):
    """The same pipeline with 256 padding tokens and with one."""
    return [
        train_branch(AnyStepPipeline(copy_of(tiny_pipeline), fold_padding=folded)) for folded in (False, True)
    ]


def run(any_step: AnyStepPipeline):
    """Outputs of every block, picture and text, then of the network; and the gradients of all parameters.

    In fp64: the sums are of another order, which in fp32 a network amplifies, each machine by another factor.
    """
    blocks = []
    any_step.pipe.transformer.double()
    for block in any_step.pipe.transformer.transformer_blocks:
        block.register_forward_hook(lambda module, args, output: blocks.append(output))
    t, r = torch.tensor([1.0, 0.5, -0.3]), torch.tensor([0.0, 0.5, -0.3])
    velocity = any_step.field(latents(any_step, 3), t, r, any_step.encode_prompts(PROMPTS))
    velocity.square().mean().backward()
    gradients = {n: p.grad for n, p in any_step.network.named_parameters() if p.grad is not None}
    return blocks, velocity, gradients


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == torch.float64
    assert (actual - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_folding_is_the_stock_attention_in_every_layer(pair):
    (blocks, velocity, gradients), (folded_blocks, folded_velocity, folded_gradients) = map(run, pair)
    words = pair[1].encode_prompts(PROMPTS).tensors["encoder_hidden_states"].shape[1]
    assert pair[0].encode_prompts(PROMPTS).tensors["encoder_hidden_states"].shape[1] == words + 255
    for (text, picture), (folded_text, folded_picture) in zip(blocks, folded_blocks, strict=True):
        assert_near(folded_picture, picture)
        if text is not None:  # the last layer has none
            assert_near(folded_text, text[:, :words])
            assert_near(text[:, words:], text[:, -1:].expand(-1, 255, -1))
    assert [text is None for text, _ in blocks] == [False, True]
    assert_near(folded_velocity, velocity)
    assert gradients.keys() == folded_gradients.keys()
    for name, gradient in gradients.items():
        assert_near(folded_gradients[name], gradient)


def test_stock_call_is_the_same_with_folding_and_branch(stock):
    call = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "pt"}
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    before = stock(PROMPTS[:2], latents=noise, **call).images
    any_step = AnyStepPipeline(stock)
    assert any_step.adapter.folds
    assert torch.equal(stock(PROMPTS[:2], latents=noise, **call).images, before)
    any_step(PROMPTS[:2])
    assert torch.equal(stock(PROMPTS[:2], latents=noise, **call).images, before)


def test_a_t5_that_says_something_is_not_folded(stock):
    stock.text_encoder_3 = copy.deepcopy(stock.text_encoder_3)
    torch.nn.init.ones_(stock.text_encoder_3.encoder.final_layer_norm.weight)
    any_step = AnyStepPipeline(stock)
    assert not any_step.adapter.folds
    cond = any_step.encode_prompts(PROMPTS)
    with torch.no_grad():
        embeds, _, pooled, _ = stock.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)
    assert torch.equal(cond.tensors["encoder_hidden_states"], embeds)
    assert torch.equal(cond.tensors["pooled_projections"], pooled)
    t5 = embeds[:, -256:]
    assert not torch.equal(t5, t5[:, :1].expand_as(t5))


def test_conditions_are_rows(any_step):
    cond = any_step.encode_prompts(PROMPTS)
    assert len(cond) == len(PROMPTS)
    for i, prompt in enumerate(PROMPTS):  # rows do not depend on what they are encoded with
        alone, row = any_step.encode_prompts([prompt]), cond.take(torch.tensor([i]))
        for name, value in alone.tensors.items():
            torch.testing.assert_close(row.tensors[name], value, rtol=0, atol=1e-6)
    order = torch.tensor([2, 0, 0])
    picked = cond.take(order)
    joined = Condition.concat([cond.take(order[:1]), cond.take(order[1:])])
    assert len(picked) == len(joined) == 3
    for name, value in cond.tensors.items():
        assert torch.equal(picked.tensors[name], value[order])
        assert torch.equal(joined.tensors[name], value[order])
        assert torch.equal(cond.to("cpu").tensors[name], value)


@pytest.mark.parametrize(("level", "count"), [("tiny", None), ("full", 300)])
def test_different_captions_give_different_conditions(pair, level, count):
    captions = [caption["prompt"] for task in TASKS for caption in all_captions(level, task)]
    assert len(set(captions)) == len(captions)
    if count is not None:
        captions = random.Random(0).sample(captions, count)
    cond = pair[1].encode_prompts([*captions, ""])
    for value in cond.tensors.values():  # words and pooled features, each by itself
        rows = value.flatten(1).double()
        distances = torch.cdist(rows, rows) + 1e9 * torch.eye(len(rows), dtype=torch.float64)
        assert distances.min() > 1e-2
