"""A saved LoRA finds its base again, and is not put on anything else."""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from families import FAMILIES
from twinflow.errors import TwinflowError
from twinflow.pipelines import AnyStepPipeline, LoraSettings
from twinflow.pipelines.checkpoint import BRANCH_FILE, LORA_FILE
from twinflow.pipelines.lora import lora_layers
from twinflow.pipelines.model_name import CONFIG_FILE

from .driven import noise
from .loras import SETTINGS, R, T, train_lora, trained
from .tiny import copy_of, lively_pipeline


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
