"""Folding the branch into stock weights is exact on the schedule."""

import copy
from dataclasses import replace

import pytest
import torch

from families import FAMILIES, NAMES
from pipelines.tiny import PROMPTS, copy_of, latents, train_branch
from twinflow.errors import TwinflowError
from twinflow.export.bake import bake_target_time
from twinflow.export.diffusers_folder import baked_stock
from twinflow.export.stock import run_steps, stock_copy
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines import target_time as tt
from twinflow.sampling import few_step_times

from .all_families import PROMPT, trained


def folded(any_step: AnyStepPipeline, nfe: int) -> AnyStepPipeline:
    return AnyStepPipeline(baked_stock(any_step, nfe=nfe)[0], target_time=False, fold_padding=False)


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
        baked = folded(any_step, nfe).field(x_t, times, times, cond)
    assert (baked - jump).abs().max() < 1e-5 * jump.abs().max()
    assert (jump - plain).abs().max() > 0.1


def test_baking_edits_one_weight_of_a_stock_network_by_a_matrix_of_rank_two(tiny_pipeline):
    any_step = train_branch(AnyStepPipeline(copy_of(tiny_pipeline)))
    stock, baked = tiny_pipeline.transformer, folded(any_step, 4).pipe.transformer
    assert not tt.has_target_time(baked)
    assert [type(m) for m in baked.modules()] == [type(m) for m in stock.modules()]
    assert list(baked.state_dict()) == list(stock.state_dict())
    edited = [n for n, value in stock.state_dict().items() if not torch.equal(baked.state_dict()[n], value)]
    assert edited == ["time_text_embed.timestep_embedder.linear_2.weight"]
    edit = (baked.get_parameter(edited[0]) - stock.get_parameter(edited[0])).detach().double()
    assert (
        torch.linalg.matrix_rank(edit, rtol=1e-4) == 2
    )  # every g(t) is t times the same vector; and the mark


def test_baking_an_untrained_branch_changes_nothing(tiny_pipeline):
    baked = folded(AnyStepPipeline(copy_of(tiny_pipeline)), 2)
    for name, value in tiny_pipeline.transformer.state_dict().items():
        assert torch.equal(baked.pipe.transformer.state_dict()[name], value), name


def test_times_that_the_network_cannot_tell_apart_are_refused(tiny_pipeline):
    any_step = train_branch(AnyStepPipeline(copy_of(tiny_pipeline)))
    mlp = any_step.pipe.transformer.time_text_embed.timestep_embedder
    with torch.no_grad():
        mlp.linear_1.weight[:, :] = 0  # a stock time MLP that sees no time
        mlp.linear_1.bias.fill_(1)
    before = copy.deepcopy(any_step.network.state_dict())
    with pytest.raises(
        TwinflowError, match=r"can't be folded into .*linear_2 for 2 steps: .*relative residual \d"
    ):
        baked_stock(any_step, nfe=2)
    baked_stock(any_step, nfe=1)  # one time needs no telling apart
    for name, value in any_step.network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_time_mlp_of_quantised_weights_is_refused(tiny_pipeline):
    any_step = train_branch(AnyStepPipeline(copy_of(tiny_pipeline)))

    class Linear4bit(torch.nn.Linear):  # what bitsandbytes calls its own
        pass

    any_step.pipe.transformer.time_text_embed.timestep_embedder.linear_2.__class__ = Linear4bit
    with pytest.raises(TwinflowError, match="linear_2 is a Linear4bit.*keep the time MLP unquantised"):
        baked_stock(any_step, nfe=1)


@pytest.mark.parametrize("times", [[1.0, 0.4], [1.0]])
def test_a_pipeline_that_steps_at_other_times_than_the_sampler_is_refused(tiny_pipeline, times):
    pipe = AnyStepPipeline(copy_of(tiny_pipeline))
    with pytest.raises(TwinflowError, match=r"steps at \[1\.0, 0\.6.*\], the sampler at .*times of its own"):
        bake_target_time(pipe, stock_copy(pipe, few_step_times(2)), nfe=2, times=times)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_residual_is_that_of_the_stored_weight_and_a_wrong_edit_is_refused(tiny_pipeline, dtype):
    pipe = train_branch(AnyStepPipeline(copy_of(tiny_pipeline)))
    stock = stock_copy(pipe, few_step_times(4))
    bake = bake_target_time(pipe, stock, nfe=4, times=few_step_times(4))
    assert bake.residual < 1e-10
    before = stock.transformer.get_submodule(bake.layer).to(dtype).weight.detach().clone()
    residual = bake.apply(stock.transformer)
    after = stock.transformer.get_submodule(bake.layer).weight.detach()
    edit, whole = after.double() - before.double(), bake.targets + bake.features @ before.double().T
    assert (bake.features @ edit.T - bake.targets).norm() > 0.4 * residual * whole.norm() > 0
    assert residual <= max(1e-5, torch.finfo(dtype).eps)
    off = replace(bake, up=1.1 * bake.up)
    assert off.residual == pytest.approx(0.1)  # of what the branch adds
    with pytest.raises(TwinflowError, match="for 4 steps: .*relative residual 1.0e-01 > 1e-05"):
        off.check()
    kept = after.clone()
    with pytest.raises(TwinflowError, match=f"in {dtype}: relative residual"):
        replace(bake, up=3 * bake.up).apply(stock.transformer)
    assert torch.equal(kept, stock.transformer.get_submodule(bake.layer).weight)


@pytest.mark.parametrize("name", NAMES)
def test_stock_calls_get_the_embedding_that_was_trained(name):
    """In fp64, where no rounding hides what is wrong by one unit in the last place of an fp32 time."""
    pipe = trained(name)
    pipe.pipe.transformer.double()
    image = FAMILIES[name].call.get("image")
    cond = pipe.encode_prompts([PROMPT], images=[image] if image else None)
    path = pipe.adapter.wiring.time_path.mlp

    def embeddings(transformer, run) -> torch.Tensor:
        """(steps, rows, channels): what the time MLP gives while ``run`` runs."""
        seen: list[torch.Tensor] = []
        mlp = transformer.get_submodule(path)
        handle = mlp.register_forward_hook(lambda module, args, output: seen.append(output.flatten(0, -2)))
        with torch.no_grad():
            run()
        handle.remove()
        return torch.stack(seen)

    def field(nfe: int) -> None:
        for time in few_step_times(nfe):
            t = torch.full((1,), time)
            pipe.field(torch.zeros(1, *pipe.latent_shape), t, torch.zeros(1), cond)

    for nfe in (1, 2, 4):
        wanted = embeddings(pipe.pipe.transformer, lambda nfe=nfe: field(nfe))
        stock, _ = baked_stock(pipe, nfe=nfe)
        given = embeddings(
            stock.transformer, lambda stock=stock, nfe=nfe: run_steps(pipe, stock, PROMPT, nfe=nfe)
        )
        assert given.dtype == torch.float64
        # A time whose rounding changes the features by less than 1e-6 is left: Lumina2's, by 1e-9.
        assert (given - wanted).abs().max() < 1e-8 * wanted.abs().max(), nfe
