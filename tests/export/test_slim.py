"""Without the layers that see the time alone, the one-step picture is the same."""

import re

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from families import FAMILIES
from pipelines.driven import SOURCES
from twinflow.errors import TwinflowError
from twinflow.export import to_slim
from twinflow.export.diffusers_folder import baked_stock
from twinflow.export.slim import constant_layers, slim_size
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.slim import PARTS, WEIGHTS_FILE, replace_by_constants

from .all_families import draw, trained

# What is left of the tiny transformers; measured, and the same on any machine.
KEPT = {
    "flux2_klein": 0.76,
    "sana": 0.92,
    "qwen": 0.69,
    "zimage": 0.97,
    "lumina2": 0.88,
    "wan": 0.95,
    "wan_i2v": 0.95,
    "ltx": 0.84,
}
POOLED = ("sd3", "flux", "hunyuan_video")


def opened(folder, name: str) -> AnyStepPipeline:
    return AnyStepPipeline.from_pretrained(folder, target_time=False, call=FAMILIES[name].call)


@pytest.mark.parametrize("name", KEPT)
def test_a_slim_folder_draws_the_one_step_picture(tmp_path, name):
    pipe = trained(name)
    before = pipe.pipe.transformer.state_dict()
    made = to_slim(pipe, tmp_path)
    assert made.kept / made.parameters < KEPT[name]
    slim = opened(tmp_path, name)
    assert sum(p.numel() for p in slim.pipe.transformer.parameters()) == made.kept
    # Counted by shapes alone. Regression: Lumina2's norm_out.linear_2 was taken for a block of linear_1.
    assert slim_size(FAMILIES[name].stock().transformer, made.replaced) == (made.parameters, made.kept)
    torch.testing.assert_close(draw(slim, name, 1), draw(pipe, name, 1), rtol=0, atol=1e-5)
    others = ["two dogs and a rather long tail of words", "a"]  # never seen while it was made; two rows
    images = SOURCES[:2] if FAMILIES[name].edits else None
    ours, theirs = (p(others, images=images, seeds=[3, 4], output_type="pt").images for p in (pipe, slim))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    assert pipe.pipe.transformer.state_dict().keys() == before.keys()


def test_rows_of_clean_tokens_have_a_constant_of_their_own(tmp_path):
    """Tokens of a source picture stay at time 0, for which each modulation has a second row."""
    pipe = trained("qwen_edit")
    to_slim(pipe, tmp_path)
    family = FAMILIES["qwen_edit"]
    slim = AnyStepPipeline(family.stock(), target_time=False, call=family.call)
    weights = load_file(tmp_path / WEIGHTS_FILE)
    constants = {n.removesuffix(".value"): v for n, v in weights.items() if n.endswith(".value")}
    assert {len(v) for n, v in constants.items() if "img_mod" in n} == {2}
    assert {len(v) for n, v in constants.items() if "txt_mod" in n} == {1}
    replace_by_constants(slim.pipe.transformer, constants)
    slim.pipe.transformer.load_state_dict(weights)
    ours, theirs = (
        p(["a", "make it green"], images=SOURCES[:2], seeds=[3, 4], output_type="pt").images
        for p in (pipe, slim)
    )
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", POOLED)
def test_modulation_by_the_prompt_is_refused(tmp_path, name):
    with pytest.raises(TwinflowError, match="modulation depends on the prompt.*pooled text embedding"):
        to_slim(trained(name), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_slim_folder_is_for_one_step_and_for_nothing_else(tmp_path):
    to_slim(trained("wan"), tmp_path / "slim")
    assert not (tmp_path / "slim" / PARTS / "transformer").exists()  # its weights are there once
    slim = opened(tmp_path / "slim", "wan")
    with pytest.raises(ValueError, match="exactly 1 evaluations"):
        slim(["a"], nfe=2)
    with pytest.raises(TwinflowError, match="copy its folder"):
        slim.save_pretrained(tmp_path / "again")
    with pytest.raises(TwinflowError, match="export for 1 step: .* can't be trained"):
        AnyStepPipeline.from_pretrained(tmp_path / "slim")
    with pytest.raises(OSError, match=r"model_index\.json"):  # stock diffusers would draw nonsense with it
        diffusers.DiffusionPipeline.from_pretrained(tmp_path / "slim")
    (tmp_path / "slim" / "transformer.safetensors").unlink()
    with pytest.raises(TwinflowError, match="no complete slim export"):
        opened(tmp_path / "slim", "wan")


def test_the_real_qwen_image_loses_a_third():
    """20.4 billion parameters become 13.6: counted on the published configuration, on the meta device."""
    names = [
        *(f"transformer_blocks.{i}.{stream}_mod.1" for i in range(2) for stream in ("img", "txt")),
        "norm_out.linear",
    ]
    with torch.device("meta"):
        transformer = diffusers.QwenImageTransformer2DModel()
    parameters, kept = slim_size(transformer, names)
    assert parameters == 20_430_401_088
    assert 13.59e9 < kept < 13.63e9
    # The same layers are found by watching the tiny one.
    pipe = trained("qwen")
    found = constant_layers(pipe, baked_stock(pipe, nfe=1)[0].transformer)
    assert {re.sub(r"\d+", "#", n) for n in found} == {re.sub(r"\d+", "#", n) for n in names}
