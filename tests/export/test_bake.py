"""Folding the branch into stock weights is exact on the schedule."""

import copy

import pytest
import torch

from pipelines.tiny import PROMPTS, copy_of, latents, train_branch
from twinflow.export.bake import bake_target_time
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines import target_time as tt
from twinflow.sampling import few_step_times


@pytest.mark.parametrize("fake_time", ["negative", "sign"])
@pytest.mark.parametrize("nfe", [1, 2, 4, 8])
def test_baked_network_is_the_jump_to_data_on_the_schedule(tiny_pipeline, nfe, fake_time):
    any_step = train_branch(AnyStepPipeline(copy_of(tiny_pipeline), fake_time=fake_time, fold_padding=False))
    times = torch.tensor(few_step_times(nfe))
    cond = any_step.encode_prompts(PROMPTS[:1]).take(torch.zeros(nfe, dtype=torch.int64))
    x_t = latents(any_step, nfe)
    with torch.no_grad():
        jump = any_step.field(x_t, times, torch.zeros(nfe), cond)
        plain = any_step.field(x_t, times, times, cond)
        bake_target_time(any_step, times.tolist())
        baked = any_step.field(x_t, times, times, cond)
    assert (baked - jump).abs().max() < 1e-5 * jump.abs().max()
    assert (jump - plain).abs().max() > 0.1


def test_baking_edits_one_weight_of_a_stock_network_by_a_matrix_of_rank_one(tiny_pipeline):
    any_step = train_branch(AnyStepPipeline(copy_of(tiny_pipeline)))
    bake_target_time(any_step, few_step_times(4))
    stock, baked = tiny_pipeline.transformer, any_step.pipe.transformer
    assert not tt.has_target_time(baked)
    assert [type(m) for m in baked.modules()] == [type(m) for m in stock.modules()]
    assert list(baked.state_dict()) == list(stock.state_dict())
    edited = [n for n, value in stock.state_dict().items() if not torch.equal(baked.state_dict()[n], value)]
    assert edited == ["time_text_embed.timestep_embedder.linear_2.weight"]
    edit = (baked.get_parameter(edited[0]) - stock.get_parameter(edited[0])).detach().double()
    assert torch.linalg.matrix_rank(edit, rtol=1e-4) == 1  # every g(t) is t times the same vector


def test_baking_an_untrained_branch_changes_nothing(tiny_pipeline):
    any_step = AnyStepPipeline(copy_of(tiny_pipeline))
    bake_target_time(any_step, few_step_times(2))
    for name, value in tiny_pipeline.transformer.state_dict().items():
        assert torch.equal(any_step.pipe.transformer.state_dict()[name], value), name


def test_times_that_the_features_cannot_tell_apart_are_refused(tiny_pipeline):
    any_step = train_branch(AnyStepPipeline(copy_of(tiny_pipeline)))
    before = copy.deepcopy(any_step.network.state_dict())
    with pytest.raises(RuntimeError, match="too close to fold the branch"):
        bake_target_time(any_step, torch.linspace(1, 0.01, 40).tolist())  # more times than features
    for name, value in any_step.network.state_dict().items():
        assert torch.equal(value, before[name]), name
