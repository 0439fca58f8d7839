"""An export of which nothing but the weights is left is recognised by them."""

import diffusers
import pytest
import torch

from families import FAMILIES, NAMES
from twinflow.errors import TwinflowError
from twinflow.export import to_diffusers, to_lora, to_single_file
from twinflow.export.diffusers_folder import baked_stock
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.exported import Exported
from twinflow.pipelines.mark import direction, marked_steps

from .all_families import draw, trained
from .loras import adapted


def refused(stock, name: str, nfe: int) -> None:
    """With the scheduler of the base, which says nothing."""
    assert Exported.of_scheduler(stock.scheduler.config) is None
    with pytest.raises(TwinflowError, match=rf"export for {nfe} steps?: .*can't be trained"):
        AnyStepPipeline(stock, call=FAMILIES[name].call)
    drawn = AnyStepPipeline(stock, call=FAMILIES[name].call, target_time=False)
    with pytest.raises(ValueError, match=f"exactly {nfe} evaluations"):
        draw(drawn, name, 7)
    with pytest.raises(TwinflowError, match=f"export for {nfe} steps? already"):
        to_diffusers(drawn, "nowhere", nfe=1)


@pytest.mark.parametrize(("name", "nfe"), [("sd3", 1), ("qwen", 2), ("zimage", 4), ("wan", 8)])
def test_a_single_file_that_diffusers_opened_is_no_base(tmp_path, name, nfe):
    pipe, file = trained(name), tmp_path / "exported.safetensors"
    to_single_file(pipe, file, nfe=nfe)
    stock = FAMILIES[name].stock()
    stock.transformer.save_config(tmp_path / "transformer")
    for dtype in (torch.float32, torch.bfloat16):
        stock.transformer = type(stock.transformer).from_single_file(
            str(file), config=str(tmp_path), subfolder="transformer", torch_dtype=dtype
        )
        refused(stock, name, nfe)


@pytest.mark.parametrize("name", NAMES)
def test_a_base_that_a_lora_was_fused_into_is_none(tmp_path, name):
    made = to_lora(trained(name), tmp_path, nfe=2)
    stock = FAMILIES[name].stock()
    stock.transformer.to(torch.bfloat16)
    stock.load_lora_weights(tmp_path, weight_name=made.file.name)
    with pytest.raises(TwinflowError, match=r"adapter on its time MLP.*fuse_lora.*unload_lora_weights"):
        AnyStepPipeline(stock, call=FAMILIES[name].call)
    stock.fuse_lora()
    stock.unload_lora_weights()
    refused(stock, name, 2)


def test_a_lora_with_its_adapter_is_marked_too(tmp_path):
    made = to_lora(adapted("qwen"), tmp_path, nfe=4)
    stock = FAMILIES["qwen"].stock()
    stock.load_lora_weights(tmp_path, weight_name=made.file.name)
    stock.fuse_lora()
    stock.unload_lora_weights()
    refused(stock, "qwen", 4)


def test_an_export_whose_scheduler_was_replaced_before_it_was_saved_anew(tmp_path):
    to_diffusers(trained("ltx"), tmp_path / "export", nfe=2)
    stock = diffusers.LTXPipeline.from_pretrained(tmp_path / "export")
    stock.scheduler = FAMILIES["ltx"].original.scheduler
    stock.save_pretrained(tmp_path / "anew")
    with pytest.raises(TwinflowError, match="export for 2 steps: .*can't be trained"):
        AnyStepPipeline.from_pretrained(tmp_path / "anew", call=FAMILIES["ltx"].call)


@pytest.mark.parametrize("name", NAMES)
def test_a_stock_model_and_a_branch_that_was_never_trained_are_no_export(name):
    plain = AnyStepPipeline(FAMILIES[name].stock(), call=FAMILIES[name].call)  # which is not refused
    path = plain.adapter.wiring.time_path.mlp
    assert marked_steps(FAMILIES[name].stock().transformer.to(torch.bfloat16), path) is None
    assert marked_steps(baked_stock(plain, nfe=2)[0].transformer, path) is None


def test_the_embedded_model_is_none_and_directions_are_no_multiples_of_one_another():
    assert AnyStepPipeline.from_pretrained("shapeworld-tiny", target_time=False).exported is None
    directions = torch.stack([direction(steps, 1024) for steps in range(1, 17)])
    torch.testing.assert_close(directions @ directions.T, torch.eye(16).double(), rtol=0, atol=0.15)


def test_the_files_themselves_are_refused(tmp_path):
    pipe = trained("wan")
    to_single_file(pipe, tmp_path / "wan.safetensors", nfe=2)
    files = [tmp_path / "wan.safetensors"]
    files += [to_lora(pipe, tmp_path / form, nfe=2, format=form).file for form in ("diffusers", "comfyui")]
    for file in files:
        for target_time in (True, False):
            with pytest.raises(TwinflowError, match=r"export for 2 steps.*To draw with it use diffusers$"):
                AnyStepPipeline.from_pretrained(file, target_time=target_time)
        with pytest.raises(TwinflowError, match="export for 2 steps"):
            to_lora(pipe, tmp_path / "other", nfe=2, base=file)
    (tmp_path / "else.safetensors").write_bytes(b"else")
    with pytest.raises(TwinflowError, match=r"else\.safetensors is a file, and a model is a folder"):
        AnyStepPipeline.from_pretrained(tmp_path / "else.safetensors")
