"""A LoRA is the base until it is trained, knows r, and leaves the base as it was."""

import copy

import pytest
import torch

from families import FAMILIES
from twinflow.conditions import take_rows
from twinflow.errors import TwinflowError
from twinflow.objectives import TwinFlow
from twinflow.pipelines import LoraSettings
from twinflow.pipelines import target_time as tt
from twinflow.pipelines.checkpoint import BRANCH_FILE, LORA_FILE
from twinflow.pipelines.lora import FACTORS, lora_layers, name_pattern
from twinflow.pipelines.model_name import CONFIG_FILE
from twinflow.recipes.sections import Ema
from twinflow.training.averages import Averages

from .driven import PROMPTS, noise, opened
from .loras import SETTINGS, R, T, close, in_fp64, train_lora, trained


@torch.no_grad()
def test_a_lora_is_the_base_at_birth(family):
    stock, any_step = opened(family, target_time=False), opened(family)
    any_step.add_lora(SETTINGS)
    in_fp64(stock, any_step)
    x, cond = noise(stock), stock.encode_prompts(PROMPTS)
    # Not always to the last bit: PEFT's sum may take another path through memory.
    close(any_step.field(x, T, R, cond), stock.field(x, T, T, cond))


@torch.no_grad()
def test_a_lora_is_the_base_when_it_is_off(family):
    stock, any_step = opened(family, target_time=False), opened(family)
    x, cond = noise(stock), stock.encode_prompts(PROMPTS)
    expected = stock.field(x, T, T, cond)
    before = copy.deepcopy(any_step.pipe.transformer.state_dict())
    any_step.add_lora(SETTINGS)
    base = any_step.network.frozen_twin()
    train_lora(any_step)
    velocity = any_step.field(x, T, T, cond)
    assert ((velocity - expected).flatten(1).abs().amax(1) > 1e-4).all()
    assert not torch.allclose(any_step.field(x, T, R, cond)[:2], velocity[:2], atol=1e-4)  # it knows r
    assert torch.equal(base(x, T, R, cond), expected)
    assert torch.equal(any_step.field(x, T, T, cond), velocity)  # and on again
    assert not list(base.parameters())
    now = any_step.pipe.transformer.state_dict()
    for name, value in before.items():
        if "target_embedder" not in name:
            path, _, leaf = name.rpartition(".")
            assert torch.equal(now.get(name, now.get(f"{path}.base_layer.{leaf}")), value)


@pytest.mark.parametrize("name", ["sd3", "flux", "sana"])
def test_the_base_is_computed_again_without_the_adapter(name):
    """A discriminator on its features passes gradients on; the backward pass comes when the adapter is on again."""

    any_step = trained(FAMILIES[name])
    x, cond = noise(any_step).requires_grad_(), any_step.encode_prompts(PROMPTS)
    parameters = [p for p in any_step.network.parameters() if p.requires_grad]

    def gradient():
        of_base = any_step.network.frozen_twin().features(x, T.abs(), cond)
        of_all = any_step.network.features(x, T.abs(), cond)
        assert not any(torch.equal(a, b) for a, b in zip(of_base, of_all, strict=True))
        loss = sum(f.square().mean() for f in [*of_base, *of_all])
        return torch.autograd.grad(loss, [x, *parameters], allow_unused=True)

    plain = gradient()
    any_step.enable_gradient_checkpointing()
    for again, before in zip(gradient(), plain, strict=True):
        torch.testing.assert_close(again, before)


def test_adapter_and_branch_alone_are_trained(family):
    any_step = opened(family)
    any_step.add_lora(SETTINGS)
    names = {name for name, p in any_step.network.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "target_embedder" in name for name in names)
    assert any("target_embedder" in name for name in names)
    assert not any("lora_" in name and "target_embedder" in name for name in names)
    assert any(f"{any_step.adapter.wiring.time_path.mlp}." in name and "lora_A" in name for name in names)
    assert any_step.freeze_unused() == []  # none was put where it is of no use
    for layer in lora_layers(any_step.pipe.transformer).values():
        assert min(layer.in_features, layer.out_features) > 1


@torch.no_grad()
def test_rows_of_conditions_are_as_good_as_separate_calls(family):
    any_step = trained(family)
    in_fp64(any_step)
    x, cond = noise(any_step), any_step.encode_prompts(PROMPTS)
    together = any_step.field(x, T, R, cond)
    rows = torch.tensor([2, 0])
    close(any_step.field(x[rows], T[rows], R[rows], take_rows(cond, rows)), together[rows])


@torch.no_grad()
def test_copies_share_the_base_and_have_an_adapter_and_a_branch_of_their_own(family):
    any_step = trained(family)
    in_fp64(any_step)
    x, cond = noise(any_step), any_step.encode_prompts(PROMPTS)
    averages = Averages.of(any_step.network, Ema(decay=0.5, teacher_decay=0.9), teacher="ema")
    own = dict(any_step.network.named_parameters())
    for average in (averages.drawn, averages.taught):
        for name, parameter in average.network.named_parameters():
            assert (parameter is own[name]) != own[name].requires_grad, name
    before = averages.drawn.network(x, T, R, cond)
    close(before, any_step.field(x, T, R, cond))
    train_lora(any_step, seed=6)
    assert torch.equal(averages.drawn.network(x, T, R, cond), before)
    averages.update()  # the first copies the weights
    close(averages.drawn.network(x, T, R, cond), any_step.field(x, T, R, cond))


@torch.no_grad()
def test_a_saved_lora_is_lossless_small_and_loads_in_diffusers(family, tmp_path):
    any_step = trained(family)
    any_step.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {LORA_FILE, BRANCH_FILE, CONFIG_FILE}
    again = opened(family)
    again.load_lora(tmp_path)
    assert again.lora == SETTINGS
    x, cond = noise(any_step), any_step.encode_prompts(PROMPTS)
    expected = any_step.field(x, T, R, cond)
    assert torch.equal(again.field(x, T, R, cond), expected)

    # Diffusers alone has the trained velocity field, at r = t.
    stock = opened(family, target_time=False)
    stock.pipe.load_lora_weights(tmp_path)
    in_fp64(stock, any_step)
    expected = any_step.field(x, T, R, cond)
    close(stock.field(x, T, T, cond), any_step.field(x, T, T, cond))

    merged = any_step.merged()
    close(merged.field(x, T, R, cond), expected)
    assert torch.equal(any_step.field(x, T, R, cond), expected)  # which has its adapter still
    assert not lora_layers(merged.pipe.transformer)
    with tt.detached(merged.pipe.transformer):
        assert merged.pipe.transformer.state_dict().keys() == family.original.transformer.state_dict().keys()


def test_recomputing_activations_changes_no_gradient(family):
    any_step = trained(family)
    x, cond = noise(any_step), any_step.encode_prompts(PROMPTS)

    def gradients():
        any_step.network.zero_grad()
        any_step.field(x, T, R, cond).square().mean().backward()
        return {n: p.grad.clone() for n, p in any_step.network.named_parameters() if p.grad is not None}

    plain = gradients()
    any_step.enable_gradient_checkpointing()
    largest = max(float(gradient.abs().max()) for gradient in plain.values())
    again = gradients()
    assert again.keys() == plain.keys()
    for name, gradient in again.items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-6 * largest)


def test_prompts_alone_train_against_the_frozen_base():
    any_step = trained(FAMILIES["flux"])
    twin = copy.deepcopy(any_step.network).requires_grad_(
        False
    )  # a real second copy, whose adapters are gone
    for layer in lora_layers(twin.transformer).values():
        for factor in FACTORS:
            getattr(layer, factor)["default"].weight.zero_()
    objective = {"image_free": True, "teacher": "frozen", "guidance": 1.5}
    x, cond = noise(any_step), any_step.encode_prompts(PROMPTS)
    uncond = any_step.encode_prompts(["nothing"])

    def loss(teacher):
        generator = torch.Generator().manual_seed(0)
        step = TwinFlow(**objective).step(
            any_step.field, torch.zeros_like(x), cond, uncond=uncond, teacher=teacher, generator=generator
        )
        return step.loss

    shared, copied = loss(any_step.network.frozen_twin()), loss(twin)
    torch.testing.assert_close(shared, copied, rtol=1e-5, atol=0)
    shared.backward()
    trained_ones = [p for p in any_step.network.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained_ones)


def test_dropout_is_the_same_in_all_calls_of_a_step_and_in_copies():
    any_step = opened(FAMILIES["flux"])
    any_step.add_lora(LoraSettings(rank=2, dropout=0.5))
    train_lora(any_step)
    in_fp64(any_step)
    twin = copy.deepcopy(any_step.network)
    x, cond = noise(any_step), any_step.encode_prompts(PROMPTS)
    with torch.no_grad():
        plain = any_step.field(x, T, R, cond)
        with any_step.network.dropout():
            first = any_step.field(x, T, R, cond)
            assert torch.equal(any_step.field(x, T, R, cond), first)
            close(twin(x, T, R, cond), first)
        with any_step.network.dropout():
            assert not torch.allclose(any_step.field(x, T, R, cond), first)
        assert not torch.allclose(first, plain)
        assert torch.equal(any_step.field(x, T, R, cond), plain)


def test_factors_and_branch_are_fp32_on_a_base_that_is_not(tmp_path):
    any_step = opened(FAMILIES["flux"])
    any_step.pipe.transformer.to(torch.bfloat16)
    any_step.add_lora(SETTINGS)
    train_lora(any_step)
    assert {p.dtype for p in any_step.network.parameters() if p.requires_grad} == {torch.float32}
    any_step.field(noise(any_step), T, R, any_step.encode_prompts(PROMPTS)).float().square().mean().backward()
    assert all(p.grad is not None for p in any_step.network.parameters() if p.requires_grad)
    any_step.save_pretrained(tmp_path)
    again = opened(FAMILIES["flux"])
    again.pipe.transformer.to(torch.bfloat16)
    again.load_lora(tmp_path)
    for name, value in any_step.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value)


def test_targets_that_are_not_there():
    any_step = opened(FAMILIES["flux"])
    with pytest.raises(
        TwinflowError, match=r"no Linear layer of FluxTransformer2DModel is named 'to_x'.* to_q"
    ):
        any_step.add_lora(LoraSettings(targets=("to_q", "to_x")))
    any_step.add_lora(LoraSettings(targets=("to_q", "linear_1")))
    assert {name.rpartition(".")[2] for name in lora_layers(any_step.pipe.transformer)} == {
        "to_q",
        "linear_1",
    }
    assert not any("target_embedder" in name for name in lora_layers(any_step.pipe.transformer))


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"init": "zeros"}])
def test_settings_that_can_not_be(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} must be"):
        LoraSettings(**wrong)


def test_a_pattern_of_names_is_exact():
    import re

    names = [f"blocks.{i}.attn{k}.to_q" for i in range(12) for k in (1, 2)] + ["blocks.0.x_2-1", "t.mlp.0"]
    pattern = name_pattern([*names, "blocks.3.only", "blocks.5.only"])
    assert len(pattern) < 200
    for name in names:
        assert re.fullmatch(pattern, name)
    for name in ("blocks.12.attn1.to_q", "blocks.0.attn3.to_q", "x.t.mlp.0", "t.mlp.1", "blocks.4.only"):
        assert not re.fullmatch(pattern, name)
    assert re.fullmatch(name_pattern(["a.1.b.2", "a.2.b.1"]), "a.1.b.1") is None
