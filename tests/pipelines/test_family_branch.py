"""The target-time branch in every family: silent at birth, exact in its times, at home in copies and compilers."""

import copy

import pytest
import torch

from families import FAMILIES, NAMES
from twinflow.pipelines import target_time as tt

from .driven import PROMPTS, assert_same_gradients, gradients, noise, opened
from .tiny import train_branch

# What the sinusoid sees of the time t is offset + slope t: 1000 t, but in these. The last two count from noise to data.
SHOWN = {"qwen": (0, 1), "qwen_edit": (0, 1), "zimage": (1000, -1000), "lumina2": (1, -1)}


def test_the_branch_is_the_identity_at_birth_and_at_r_equal_t(family):
    stock, attached = opened(family, target_time=False), opened(family)
    x, cond = noise(stock), stock.encode_prompts(PROMPTS)
    t, r = torch.tensor([1.0, 0.37, 0.807]), torch.tensor([0.0, 0.2, 0.1])
    with torch.no_grad():
        expected = stock.field(x, t, t, cond)
        assert torch.equal(attached.field(x, t, r, cond), expected)
        train_branch(attached)
        assert torch.equal(attached.field(x, t, t, cond), expected)
        moved = (attached.field(x, t, r, cond) - expected).flatten(1).abs().amax(1)
        assert (moved > 1e-4).all()  # every row, and with it every family, sees its r
        backwards = attached.field(x, -t, -t, cond)
    assert backwards.isfinite().all()
    assert ((backwards - expected).flatten(1).abs().amax(1) > 1e-4).all()


def test_a_sign_embedding_starts_as_the_real_field_and_leaves_it(family):
    any_step = opened(family, fake_time="sign")
    x, cond = noise(any_step), any_step.encode_prompts(PROMPTS)
    t = torch.tensor([1.0, 0.37, 0.807])
    with torch.no_grad():
        real = any_step.field(x, t, t, cond)
        assert torch.equal(any_step.field(x, -t, -t, cond), real)
        train_branch(any_step)
        assert torch.equal(any_step.field(x, t, t, cond), real)
        assert not torch.allclose(any_step.field(x, -t, -t, cond), real)


def test_time_reaches_the_sinusoid_in_fp32_whatever_the_weights(family):
    any_step = opened(family)
    network = any_step.pipe.transformer.to(torch.bfloat16)
    path = any_step.adapter.wiring.time_path
    seen = []
    module = network.get_submodule(path.sinusoid or path.mlp)
    # What the stock class gets, after the swapped one put the exact time in.
    stock_forward = module._stock_class.forward

    def spy(self, number, *args, **kwargs):
        seen.append(number.detach().clone())
        return stock_forward(self, number, *args, **kwargs)

    module._stock_class.forward = spy
    try:
        t = torch.tensor([0.807, 0.797, -0.123])
        with torch.no_grad():
            any_step.field(noise(any_step), t, t, any_step.encode_prompts(PROMPTS))
    finally:
        module._stock_class.forward = stock_forward
    # For a negative time the line goes on: for those that count from noise to data beyond 1.
    offset, slope = SHOWN.get(family.name, (0, 1000))
    expected = offset + slope * t
    matching = [number for number in seen if number.numel() >= 3]
    torch.testing.assert_close(matching[0].flatten()[:3].float(), expected, rtol=1e-6, atol=1e-6)


def test_a_deep_copy_has_a_branch_of_its_own(family):
    any_step = train_branch(opened(family))
    twin = copy.deepcopy(any_step.network)
    x, cond = noise(any_step), any_step.encode_prompts(PROMPTS)
    t, r = torch.tensor([1.0, 0.5, 0.25]), torch.zeros(3)
    with torch.no_grad():
        before = twin(x, t, r, cond)
        torch.testing.assert_close(before, any_step.field(x, t, r, cond), rtol=1e-5, atol=1e-6)
        for value in tt.target_time_state_dict(any_step.pipe.transformer).values():
            value.add_(1.0)
        assert torch.equal(twin(x, t, r, cond), before)
        assert not torch.allclose(any_step.field(x, t, r, cond), before)


def test_recomputing_activations_changes_no_gradient(family):
    any_step = train_branch(opened(family))
    x, cond = noise(any_step), any_step.encode_prompts(PROMPTS)
    t, r = torch.tensor([1.0, 0.5, -0.25]), torch.tensor([0.0, 0.5, -0.25])

    plain = gradients(any_step, x, t, r, cond)
    assert any("target_embedder" in name for name in plain)
    any_step.pipe.transformer.enable_gradient_checkpointing()
    any_step.pipe.transformer.train()  # diffusers recomputes in training mode only; there is no dropout
    assert_same_gradients(gradients(any_step, x, t, r, cond), plain, rtol=1e-4)


# The transformer of Lumina 2 decides by the values of its mask whether to use it, which no graph can hold.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "lumina2"])
def test_compiles_to_one_graph_for_all_times(name):
    any_step = train_branch(opened(FAMILIES[name]))
    x, cond = noise(any_step), any_step.encode_prompts(PROMPTS)
    t, r = torch.tensor([1.0, 0.5, 0.25]), torch.tensor([0.0, 0.5, 0.1])
    torch._dynamo.reset()
    compiled = torch.compile(any_step.network, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(x, t, r, cond), any_step.field(x, t, r, cond))
        with torch.compiler.set_stance("fail_on_recompile"):
            assert torch.equal(compiled(x, -t, -t, cond), any_step.field(x, -t, -t, cond))
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiled_kernels_have_the_same_gradients():
    """Of the transformer with convolutions: an autoencoder's are wrong (benchmarks/compiled_autoencoder.py)."""
    any_step = train_branch(opened(FAMILIES["sana"]))
    x, cond = noise(any_step), any_step.encode_prompts(PROMPTS)
    t, r = torch.tensor([1.0, 0.5, 0.25]), torch.tensor([0.0, 0.5, 0.1])
    plain = gradients(any_step, x, t, r, cond)
    torch._dynamo.reset()
    any_step.network.compile()
    assert_same_gradients(gradients(any_step, x, t, r, cond), plain, rtol=1e-3)
    torch._dynamo.reset()
