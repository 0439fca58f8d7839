"""A LoRA file on the stock base, with the few-step scheduler, draws the few-step sampler's pictures."""

import json

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors import safe_open

from families import FAMILIES, NAMES
from twinflow.errors import TwinflowError
from twinflow.export import to_lora
from twinflow.export.diffusers_folder import baked_stock
from twinflow.export.stock import adapter_layers
from twinflow.pipelines import AnyStepPipeline, LoraSettings

from .all_families import draw, trained
from .loras import adapted, full_run, note_of, stock_pictures


@pytest.mark.parametrize("name", NAMES)
def test_the_bake_as_a_lora_on_the_stock_base(tmp_path, name):
    pipe = trained(name)
    made = to_lora(pipe, tmp_path, nfe=2)
    (rank,) = made.ranks.values()
    assert rank <= 3
    stock = FAMILIES[name].stock()
    stock.load_lora_weights(tmp_path, weight_name=made.file.name)
    torch.testing.assert_close(
        stock_pictures(stock, name, note_of(tmp_path), pipe.latent_shape),
        draw(pipe, name, 2),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_trained_adapter_comes_with_the_bake(tmp_path, name):
    pipe = adapted(name)
    ours = draw(pipe, name, 2)
    made = to_lora(pipe, tmp_path, nfe=2)
    assert len(made.ranks) > 2
    assert max(made.ranks.values()) > 4  # that of the time MLP has both
    stock = FAMILIES[name].stock()
    stock.load_lora_weights(tmp_path, weight_name=made.file.name)
    torch.testing.assert_close(
        stock_pictures(stock, name, note_of(tmp_path), pipe.latent_shape), ours, rtol=0, atol=1e-5
    )
    # Merged by stock code, and taken off again.
    stock.fuse_lora()
    stock.unload_lora_weights()
    torch.testing.assert_close(
        stock_pictures(stock, name, note_of(tmp_path), pipe.latent_shape), ours, rtol=0, atol=1e-5
    )
    # The other road: merged into a stock folder.
    merged, exported = baked_stock(pipe, nfe=2)
    assert list(merged.transformer.state_dict()) == list(FAMILIES[name].original.transformer.state_dict())
    note = json.loads(json.dumps({"nfe": 2, "call": exported.call, "scheduler": exported.scheduler}))
    torch.testing.assert_close(stock_pictures(merged, name, note, pipe.latent_shape), ours, rtol=0, atol=1e-5)
    torch.testing.assert_close(draw(pipe, name, 2), ours, rtol=0, atol=0)  # and the pipeline is as it was


@pytest.mark.parametrize("name", ["sd3", "qwen"])
def test_the_file_says_ranks_and_scales(tmp_path, name):
    """Layers differ in rank; diffusers before 0.42 took the rank of one for the alpha of all where a file says none."""
    made = to_lora(adapted(name), tmp_path, nfe=2)
    with safe_open(made.file, "pt") as file:
        said = json.loads(file.metadata()["lora_adapter_metadata"])
    config = LoraConfig(**{key.removeprefix("transformer."): value for key, value in said.items()})
    transformer = inject_adapter_in_model(config, FAMILIES[name].stock().transformer)
    layers = adapter_layers(transformer)
    assert {layer: module.r["default"] for layer, module in layers.items()} == made.ranks
    assert len(set(made.ranks.values())) > 1
    assert {module.scaling["default"] for module in layers.values()} == {1.0}


def test_a_full_run_is_the_difference_from_its_base(tmp_path):
    pipe, base = full_run("qwen", 3), FAMILIES["qwen"].original.transformer
    made = to_lora(pipe, tmp_path, nfe=2, base=base, rank=3)
    assert made.lost < 1e-5
    assert not made.left_out
    stock = FAMILIES["qwen"].stock()
    stock.load_lora_weights(tmp_path, weight_name=made.file.name)
    ours = draw(pipe, "qwen", 2)
    torch.testing.assert_close(
        stock_pictures(stock, "qwen", note_of(tmp_path), pipe.latent_shape), ours, rtol=0, atol=2e-5
    )
    # What a smaller rank loses is said, and it is the most that a rank can hold.
    poorer = to_lora(pipe, tmp_path / "poorer", nfe=2, base=base, rank=1)
    assert 0.1 < poorer.lost < 0.9


def test_the_embedded_model_is_a_base(tmp_path):
    pipe = AnyStepPipeline.from_pretrained("shapeworld-tiny")
    with torch.no_grad():
        pipe.pipe.transformer.proj_out.weight[0] += 0.1
    made = to_lora(pipe, tmp_path, nfe=1, base="shapeworld-tiny", rank=1)
    assert made.lost < 1e-5
    assert "proj_out" in made.ranks


def test_what_a_lora_cannot_hold_is_reported(tmp_path):
    base = FAMILIES["wan"].original.transformer
    made = to_lora(full_run("wan", 2, biases=True), tmp_path, nfe=1, base=base, rank=2)
    assert {name.rpartition(".")[2] for name in made.left_out} == {"bias"}
    assert 0 < made.lost < 1


def test_folders_that_hold_something_else_are_refused(tmp_path):
    pipe = trained("wan")
    pipe.save_pretrained(tmp_path / "whole")
    pipe.add_lora(LoraSettings(rank=2))
    pipe.save_pretrained(tmp_path / "checkpoint")
    files = {file: file.read_bytes() for file in tmp_path.rglob("*.*") if file.is_file()}
    with pytest.raises(TwinflowError, match="whole holds a whole pipeline: .* another folder"):
        to_lora(pipe, tmp_path / "whole", nfe=1)
    with pytest.raises(TwinflowError, match="checkpoint holds a checkpoint to train on: .* another folder"):
        to_lora(pipe, tmp_path / "checkpoint", nfe=1)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.*") if file.is_file()} == files
    for format in ("diffusers", "comfyui"):  # of one number of steps, both may stand in one folder
        to_lora(pipe, tmp_path / "export", nfe=1, format=format)
    with pytest.raises(TwinflowError, match=r"holds comfyui_lora\.safetensors for 1 step: export this one"):
        to_lora(pipe, tmp_path / "export", nfe=2)


def test_what_is_refused(tmp_path):
    pipe = trained("sana")
    with pytest.raises(TwinflowError, match="at least 1, got 0"):
        to_lora(pipe, tmp_path, nfe=0)
    with pytest.raises(TwinflowError, match="rank must be at least 1, got 0"):
        to_lora(pipe, tmp_path, nfe=1, rank=0)
    with pytest.raises(TwinflowError, match="ComfyUI has for the layers of SanaTransformer2DModel"):
        to_lora(pipe, tmp_path, nfe=1, format="comfyui")
    with pytest.raises(TwinflowError, match="format must be one of diffusers, comfyui, got 'a1111'"):
        to_lora(pipe, tmp_path, nfe=1, format="a1111")
    with pytest.raises(TwinflowError, match="the base is another transformer"):
        to_lora(pipe, tmp_path, nfe=1, base=FAMILIES["wan"].original.transformer)
    with pytest.raises(
        TwinflowError, match="nowhere is not a folder or a model on the hub: there is no such folder"
    ):
        to_lora(pipe, tmp_path, nfe=1, base=tmp_path / "nowhere")
    with pytest.raises(TwinflowError, match="trained a LoRA on its base"):
        to_lora(adapted("sana"), tmp_path, nfe=1, base=FAMILIES["sana"].original.transformer)
    plain = AnyStepPipeline(FAMILIES["sana"].stock(), target_time=False, call=FAMILIES["sana"].call)
    with pytest.raises(TwinflowError, match="nothing to export"):
        to_lora(plain, tmp_path, nfe=1)
    assert not list(tmp_path.iterdir())
