"""The target-time branch: invisible until trained, exact where it must be, and never rounding a time."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from twinflow.errors import TwinflowError
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines import target_time as tt

from .tiny import PROMPTS, copy_of, latents, train_branch

TIMES = [(1.0, 0.0), (0.75, 0.25), (0.5, 0.5), (0.01, 0.0), (0.3, 0.9)]
MODES = ("negative", "sign")


def row_times(*pairs: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    t, r = torch.tensor(pairs).T
    return t, r


def stock_velocity(transformer: nn.Module, x_t, t, cond) -> torch.Tensor:
    """What the stock pipeline computes, without a line of ours."""
    return transformer(hidden_states=x_t, timestep=1000 * t, **cond.tensors).sample


@pytest.fixture
def inputs(any_step):
    """A state and a condition for each of the times."""
    cond = any_step.encode_prompts(PROMPTS).take(torch.arange(len(TIMES)) % len(PROMPTS))
    return latents(any_step, len(TIMES)), cond


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fake_time", MODES)
def test_identity_at_birth(tiny_pipeline, inputs, fake_time, dtype):
    stock = copy_of(tiny_pipeline)
    stock.transformer.to(dtype)
    x_t, cond = inputs[0].to(dtype), type(inputs[1])({k: v.to(dtype) for k, v in inputs[1].tensors.items()})
    t, r = row_times(*TIMES)
    expected = stock_velocity(stock.transformer, x_t, t, cond)
    names = list(stock.transformer.state_dict())
    any_step = AnyStepPipeline(stock, fake_time=fake_time, fold_padding=False)
    assert expected.std() > 0.1
    assert set(names) < set(any_step.pipe.transformer.state_dict())
    for network in (any_step.network, copy.deepcopy(any_step.network)):
        assert torch.equal(network(x_t, t, r, cond), expected)


@pytest.mark.parametrize("fake_time", MODES)
def test_at_r_equal_t_any_branch_is_the_stock_network(tiny_pipeline, inputs, fake_time):
    x_t, cond = inputs
    any_step = train_branch(AnyStepPipeline(copy_of(tiny_pipeline), fake_time=fake_time, fold_padding=False))
    t, r = row_times(*TIMES)
    expected = stock_velocity(tiny_pipeline.transformer, x_t, t, cond)
    assert torch.equal(any_step.field(x_t, t, t, cond), expected)
    assert not torch.isclose(any_step.field(x_t, t, r, cond)[t != r], expected[t != r]).all(1).any()


def test_target_time_is_seen_once_the_last_layer_is_not_zero(any_step, inputs):
    x_t, cond = inputs
    train_branch(any_step)
    outputs = [any_step.field(x_t, torch.ones(5), torch.full((5,), r), cond) for r in (0.0, 0.3, 0.6)]
    for one, other in pairwise(outputs):
        assert (one - other).abs().amax(dim=(1, 2, 3)).min() > 1e-2


def test_every_weight_of_the_branch_learns_within_two_steps(any_step, inputs):
    # The last layer starts at zero, so the others have no gradient before it has moved.
    x_t, cond = inputs
    t, r = row_times(*TIMES)
    own = tt.target_time_state_dict(any_step.pipe.transformer)
    weights = {n: p for n, p in any_step.pipe.transformer.named_parameters() if n in own}
    optimizer = torch.optim.SGD(weights.values(), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        any_step.field(x_t, t, r, cond).square().mean().backward()
        optimizer.step()
    assert len(weights) == 4
    assert all(weight.grad.any() for weight in weights.values())


def test_negative_time_is_the_stock_network_at_a_negative_time(any_step, inputs):
    x_t, cond = inputs
    t = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.1])
    real, fake = any_step.field(x_t, t, t, cond), any_step.field(x_t, -t, -t, cond)
    assert torch.equal(fake, stock_velocity(any_step.pipe.transformer, x_t, -t, cond))
    assert fake.isfinite().all()
    assert (real - fake).abs().amax(dim=(1, 2, 3)).min() > 1e-2


def test_sign_marks_the_fake_trajectory_by_an_embedding_that_starts_at_zero(tiny_pipeline, inputs):
    x_t, cond = inputs
    any_step = AnyStepPipeline(copy_of(tiny_pipeline), fake_time="sign", fold_padding=False)
    t = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.1])
    real = any_step.field(x_t, t, t, cond)
    assert torch.equal(any_step.field(x_t, -t, -t, cond), real)
    train_branch(any_step)
    assert torch.equal(any_step.field(x_t, t, t, cond), real)  # the real trajectory never sees it
    assert (any_step.field(x_t, -t, -t, cond) - real).abs().amax(dim=(1, 2, 3)).min() > 1e-2


@pytest.mark.parametrize("fake_time", MODES)
def test_a_row_does_not_depend_on_its_neighbours(tiny_pipeline, inputs, fake_time):
    x_t, cond = inputs
    any_step = train_branch(AnyStepPipeline(copy_of(tiny_pipeline), fake_time=fake_time))
    cond = any_step.encode_prompts(PROMPTS).take(torch.arange(len(TIMES)) % len(PROMPTS))
    t, r = row_times(*TIMES[:3], (-0.4, -0.4), (-1.0, -0.2))
    together = any_step.field(x_t, t, r, cond)
    for i in range(len(t)):
        alone = any_step.field(x_t[i : i + 1], t[i : i + 1], r[i : i + 1], cond.take(torch.tensor([i])))
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("fake_time", MODES)
def test_detaching_gives_the_stock_transformer_back(tiny_pipeline, fake_time):
    any_step = train_branch(AnyStepPipeline(copy_of(tiny_pipeline), fake_time=fake_time))
    transformer, stock = any_step.pipe.transformer, tiny_pipeline.transformer
    tt.detach_target_time(transformer)
    assert [type(m) for m in transformer.modules()] == [type(m) for m in stock.modules()]
    assert list(transformer.state_dict()) == list(stock.state_dict())
    for name, value in stock.state_dict().items():
        assert torch.equal(transformer.state_dict()[name], value), name
    assert not tt.has_target_time(transformer)
    for module, original in zip(transformer.modules(), stock.modules()):
        assert set(vars(module)) == set(vars(original))  # nothing of ours is left behind
    tt.attach_target_time(transformer)  # and it can be given another branch


@pytest.mark.parametrize("fake_time", MODES)
def test_detached_block_restores_the_same_branch_after_an_error(tiny_pipeline, inputs, fake_time):
    x_t, cond = inputs
    any_step = train_branch(AnyStepPipeline(copy_of(tiny_pipeline), fake_time=fake_time, fold_padding=False))
    t, r = row_times(*TIMES[:4], (-0.5, -0.5))
    before = any_step.field(x_t, t, r, cond)
    parameters = [id(p) for p in any_step.network.parameters()]
    kinds = [type(module) for module in any_step.network.modules()]

    def body():
        with tt.detached(any_step.pipe.transformer):
            assert not tt.has_target_time(any_step.pipe.transformer)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        body()
    assert torch.equal(any_step.field(x_t, t, r, cond), before)
    assert sorted(id(p) for p in any_step.network.parameters()) == sorted(parameters)
    # The sinusoid too is the one that reads exact times again: a checkpoint in the middle of a run loses none.
    assert [type(module) for module in any_step.network.modules()] == kinds


def test_times_are_forgotten_when_a_forward_pass_fails(tiny_pipeline, any_step, inputs):
    x_t, cond = inputs
    train_branch(any_step)
    t, r = row_times(*TIMES)
    with pytest.raises(RuntimeError):
        any_step.field(x_t[:, :1], t, r, cond)  # the wrong number of channels
    after = stock_velocity(any_step.pipe.transformer, x_t, t, cond)
    assert torch.equal(after, stock_velocity(tiny_pipeline.transformer, x_t, t, cond))


def test_a_deep_copy_has_its_own_branch_and_times(any_step, inputs):
    x_t, cond = inputs
    train_branch(any_step)
    t, r = row_times(*TIMES)
    average = copy.deepcopy(any_step.network)
    before = any_step.network(x_t, t, r, cond)
    assert torch.equal(average(x_t, t, r, cond), before)
    train_branch(any_step, seed=4)
    assert torch.equal(average(x_t, t, r, cond), before)
    assert not torch.allclose(any_step.network(x_t, t, r, cond), before, atol=1e-3)
    train_branch(any_step, seed=5)
    own = {id(p) for p in any_step.network.parameters()}
    assert not own & {id(p) for p in average.parameters()}


def gradients(network: nn.Module, *args) -> dict[str, torch.Tensor]:
    network.zero_grad()
    network(*args).square().mean().backward()
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("fold_padding", [False, True])
def test_gradient_checkpointing_changes_no_gradient(tiny_pipeline, inputs, fold_padding):
    x_t, _ = inputs
    any_step = train_branch(AnyStepPipeline(copy_of(tiny_pipeline), fold_padding=fold_padding))
    cond = any_step.encode_prompts(["a photo of a ring"]).take(torch.zeros(len(TIMES), dtype=torch.int64))
    args = (x_t, *row_times(*TIMES[:4], (-0.5, -0.5)), cond)
    plain = gradients(any_step.network, *args)
    any_step.pipe.transformer.enable_gradient_checkpointing()
    checkpointed = gradients(any_step.network, *args)
    assert any("target_embedder" in name for name in plain)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-6, atol=1e-8)


def test_whole_network_may_be_recomputed(any_step, inputs):
    # The times are set inside forward, so a recomputation during backward sees them again.
    x_t, cond = inputs
    train_branch(any_step)
    args = (x_t, *row_times(*TIMES), cond)
    plain = gradients(any_step.network, *args)
    any_step.network.zero_grad()
    again = torch.utils.checkpoint.checkpoint(any_step.network, *args, use_reentrant=False)
    again.square().mean().backward()
    for name, parameter in any_step.network.named_parameters():
        if name in plain:
            torch.testing.assert_close(parameter.grad, plain[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("fake_time", "fold_padding"), [("negative", True), ("sign", False)])
def test_compiles_to_one_graph_for_all_times(tiny_pipeline, fake_time, fold_padding):
    any_step = train_branch(
        AnyStepPipeline(copy_of(tiny_pipeline), fake_time=fake_time, fold_padding=fold_padding)
    )
    cond, x_t, graphs = any_step.encode_prompts(PROMPTS), latents(any_step, 3), []

    def counting(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(any_step.network, fullgraph=True, backend=counting)
    with torch.no_grad():
        for pair in [*TIMES, (-0.5, -0.5), (-1.0, -1.0)]:
            t, r = row_times(pair, pair, (0.2, 0.1))
            assert torch.equal(compiled(x_t, t, r, cond), any_step.network(x_t, t, r, cond))
    torch._dynamo.reset()
    assert len(graphs) == 1


# Two times in one bf16 cell: a cast on the way to the sinusoid or before the subtraction makes them equal.
CLOSE = (0.75, 0.749)


def sinusoid64(time: float) -> torch.Tensor:
    half = 128
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float64) / half)
    angles = 1000 * torch.tensor(time, dtype=torch.float32).double() * frequencies
    return torch.cat([angles.cos(), angles.sin()])


def half_precision_run(any_step: AnyStepPipeline, how: str) -> dict[str, torch.Tensor]:
    """Evaluate at CLOSE in bf16; what the two time MLPs were given, and what the stock one returned."""
    mlp = any_step.pipe.transformer.time_text_embed.timestep_embedder
    cond, x_t, seen = any_step.encode_prompts(["a photo of a ring"]), latents(any_step, 1), {}
    mlp.linear_1.register_forward_pre_hook(lambda m, args: seen.update(t=args[0]))
    mlp.target_embedder.mlp.linear_1.register_forward_pre_hook(lambda m, args: seen.update(r=args[0]))
    mlp.register_forward_hook(lambda m, args, output: seen.update(embedding=output))
    t, r = row_times(CLOSE)
    with torch.no_grad():
        if how == "weights":
            any_step.pipe.transformer.to(torch.bfloat16)
            cond = type(cond)({name: value.bfloat16() for name, value in cond.tensors.items()})
            any_step.field(x_t, t, r, cond)
        else:
            with torch.autocast("cpu", torch.bfloat16):
                any_step.field(x_t, t, r, cond)
    return seen


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_sinusoids_are_of_the_exact_times_in_bf16(any_step, how):
    assert torch.tensor(CLOSE).bfloat16().unique().numel() == 1
    seen = half_precision_run(any_step, how)
    for name, time in zip("tr", CLOSE, strict=True):
        # The values of a sinusoid may be rounded to bf16 (half a unit in the last place), its angles not.
        torch.testing.assert_close(seen[name][0].double(), sinusoid64(time), rtol=0, atol=2**-9 + 1e-4)


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_gap_is_subtracted_before_it_is_rounded_to_bf16(any_step, how):
    mlp = any_step.pipe.transformer.time_text_embed.timestep_embedder
    with torch.no_grad():  # a stock embedding of 0 and a branch of 1 leave the gap alone
        for parameter in (mlp.linear_2.weight, mlp.linear_2.bias):
            parameter.zero_()
        mlp.target_embedder.mlp.linear_2.bias.fill_(1)
    embedding = half_precision_run(any_step, how)["embedding"].float()
    expected = torch.full_like(embedding, CLOSE[0] - CLOSE[1])
    torch.testing.assert_close(embedding, expected, rtol=2**-8, atol=0)


def test_attaching_says_what_is_wrong(any_step):
    with pytest.raises(ValueError, match="already"):
        tt.attach_target_time(any_step.pipe.transformer)
    with pytest.raises(ValueError, match="'sideways'"):
        tt.attach_target_time(nn.Module(), fake_time="sideways")
    with pytest.raises(TwinflowError, match=r"no time MLP found in Linear.*t_embedder"):
        tt.attach_target_time(nn.Linear(1, 1))
