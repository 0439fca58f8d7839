"""A LoRA is the base until it is trained, knows r, and leaves the base as it was."""

import copy
import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from families import FAMILIES, NAMES
from twinflow.conditions import take_rows
from twinflow.errors import TwinflowError
from twinflow.objectives import TwinFlow
from twinflow.pipelines import AnyStepPipeline, LoraSettings
from twinflow.pipelines import target_time as tt
from twinflow.pipelines.checkpoint import BRANCH_FILE, CONFIG_FILE, LORA_FILE
from twinflow.pipelines.lora import FACTORS, lora_layers, lora_state_dict, name_pattern
from twinflow.recipes.sections import Ema
from twinflow.training.averages import Averages

from .driven import PROMPTS, noise, opened
from .tiny import copy_of, lively_pipeline, train_branch

T, R = torch.tensor([1.0, 0.37, -0.807]), torch.tensor([0.0, 0.2, -0.807])
SETTINGS = LoraSettings(rank=2, alpha=3.0)


@pytest.fixture(params=NAMES)
def family(request):
    return FAMILIES[request.param]


def train_lora(any_step, *, seed=5):
    """Give adapter and branch random weights, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in lora_state_dict(any_step.pipe.transformer).values():
            value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return train_branch(any_step)


def trained(family, **options):
    any_step = opened(family, **options)
    any_step.add_lora(SETTINGS)
    return train_lora(any_step)


def in_fp64(*pipes):
    """Where sums of another order differ by 1e-16 instead of 1e-7, which some random networks amplify a hundredfold on
    one machine and not on another."""
    for any_step in pipes:
        any_step.pipe.transformer.double()


def close(value, expected):
    """Equal in :func:`in_fp64`. Times are fp32 there too, and so are some networks' rotations: that is the 1e-7."""
    assert value.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-7 * float(expected.abs().max()))


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


# Checkpoints in folders


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a stock pipeline, and that of a LoRA on it with its pipeline."""
    folder = tmp_path_factory.mktemp("base")
    lively_pipeline().save_pretrained(folder)
    any_step = AnyStepPipeline.from_pretrained(folder)
    any_step.words = ["circle", "red"]
    any_step.add_lora(SETTINGS)
    train_lora(any_step)
    any_step.save_pretrained(folder / "lora")
    return folder, any_step


@pytest.fixture
def adapter(base, tmp_path):
    return shutil.copytree(base[0] / "lora", tmp_path / "adapter")


def same_field(one, other):
    x, cond = noise(one), one.encode_prompts(["a photo of a red circle"] * 3)
    for any_step in (one, other):  # safetensors maps tensors unaligned, which changes the order of sums
        for parameter in any_step.network.parameters():
            parameter.data = parameter.data.clone()
    with torch.no_grad():
        return torch.equal(one.field(x, T, R, cond), other.field(x, T, R, cond))


def test_a_lora_finds_its_base_again(base, adapter):
    again = AnyStepPipeline.from_pretrained(adapter)
    assert again.knows_target_time
    assert again.words == ["circle", "red"]
    assert same_field(again, base[1])
    again.save_pretrained(adapter.with_name("twice"))
    for name in (LORA_FILE, BRANCH_FILE):
        first, second = load_file(adapter / name), load_file(adapter.with_name("twice") / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert (adapter / CONFIG_FILE).read_text() == (adapter.with_name("twice") / CONFIG_FILE).read_text()


def test_a_lora_on_a_lora_has_both(base, adapter, tmp_path):
    first = AnyStepPipeline.from_pretrained(adapter)
    first.merge_lora()
    assert first.base is None
    first.base = str(adapter)
    first.add_lora(LoraSettings(rank=1))
    train_lora(first, seed=9)
    first.save_pretrained(tmp_path / "second")
    again = AnyStepPipeline.from_pretrained(tmp_path / "second")
    assert same_field(again, first)
    assert again.base == str(adapter)


def test_a_merged_lora_is_a_whole_any_step_pipeline(base, tmp_path):
    _, any_step = base
    any_step.merged().save_pretrained(tmp_path)
    assert same_field(AnyStepPipeline.from_pretrained(tmp_path), any_step.merged())
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is type(any_step.pipe)


def test_a_pipeline_with_a_lora_goes_on_with_it_alone(adapter):
    again = AnyStepPipeline.from_pretrained(adapter)
    again.add_lora(SETTINGS)
    with pytest.raises(TwinflowError, match=r"has a LoRA with other settings.*rank=2.*merge it first"):
        again.add_lora(LoraSettings(rank=4))


# What is wrong is said


def test_a_lora_of_another_family(adapter, tmp_path):
    flux = trained(FAMILIES["flux"])
    flux.save_pretrained(tmp_path / "flux")
    sd3 = AnyStepPipeline(copy_of(lively_pipeline()))
    with pytest.raises(
        TwinflowError, match=r"LoRA of a FluxTransformer2DModel .*has a SD3Transformer2DModel"
    ):
        sd3.load_lora(tmp_path / "flux")
    with pytest.raises(TwinflowError, match="is a LoRA that names no base"):
        AnyStepPipeline.from_pretrained(tmp_path / "flux")
    assert sd3.lora is None
    assert not lora_layers(sd3.pipe.transformer)


@pytest.mark.parametrize("damage", ["less", "elsewhere", "shape", "strange"])
def test_a_lora_of_another_model_of_the_family(base, adapter, damage):
    factors = load_file(adapter / LORA_FILE)
    name = next(name for name in factors if "transformer_blocks.0" in name and "lora_B" in name)
    if damage == "less":
        del factors[name]
    elif damage == "elsewhere":
        factors[name.replace("transformer_blocks.0", "transformer_blocks.7")] = factors.pop(name)
    elif damage == "shape":
        factors[name] = factors[name][:-1].contiguous()
    else:
        factors["transformer.proj_out.weight"] = torch.zeros(1)
    save_file(factors, adapter / LORA_FILE)
    said = (
        "no LoRA's: transformer.proj_out"
        if damage == "strange"
        else "does not fit this SD3Transformer2DModel"
    )
    with pytest.raises(TwinflowError, match=said):
        AnyStepPipeline.from_pretrained(adapter)


def test_a_base_that_has_moved_or_changed(base, adapter):
    folder, any_step = base
    config = json.loads((adapter / CONFIG_FILE).read_text())
    assert config["adapter"]["base"] == str(folder)

    changed = shutil.copytree(folder, adapter.with_name("changed"))
    (weights,) = (changed / "transformer").glob("*.safetensors")
    tensors = load_file(weights)
    tensors["pos_embed.proj.bias"] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    config["adapter"]["base"] = str(changed)
    (adapter / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(TwinflowError, match=r"changed, the base of the LoRA .* has changed since"):
        AnyStepPipeline.from_pretrained(adapter)
    assert not same_field(AnyStepPipeline.from_pretrained(adapter, base=changed), any_step)

    shutil.rmtree(changed)
    with pytest.raises(TwinflowError, match=r"base of the LoRA .* can't be opened; base= names another"):
        AnyStepPipeline.from_pretrained(adapter)
    assert same_field(AnyStepPipeline.from_pretrained(adapter, base=folder), any_step)


def test_a_base_for_what_is_no_lora(base):
    with pytest.raises(TwinflowError, match="is no LoRA, but a whole pipeline"):
        AnyStepPipeline.from_pretrained(base[0], base="another")


def test_a_lora_is_not_saved_into_a_whole_pipeline(base):
    folder, any_step = base
    with pytest.raises(TwinflowError, match="holds a whole pipeline"):
        any_step.save_pretrained(folder)


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
