"""A transformer in its authors' layout is what diffusers' own conversion turns back, bit for bit."""

import json

import diffusers
import pytest
import torch
from safetensors import safe_open

from families import FAMILIES
from twinflow.errors import TwinflowError
from twinflow.export import to_single_file
from twinflow.export.diffusers_folder import baked_stock
from twinflow.export.single_file import converter_of, original_parts, original_state_dict
from twinflow.pipelines import AnyStepPipeline

from .all_families import trained

# diffusers' conversions of the others have the published widths in them: see below.
ANY_SIZE = ("sd3", "flux2_klein", "qwen", "qwen_edit", "zimage", "wan", "ltx")
PUBLISHED = {
    "flux": lambda: diffusers.FluxTransformer2DModel(num_layers=2, num_single_layers=2, guidance_embeds=True),
    "hunyuan_video": lambda: diffusers.HunyuanVideoTransformer3DModel(num_layers=2, num_single_layers=2),
    "lumina2": lambda: diffusers.Lumina2Transformer2DModel(num_layers=2),
    "sd3.5-medium": lambda: diffusers.SD3Transformer2DModel(
        num_layers=3, qk_norm="rms_norm", dual_attention_layers=(0, 1)
    ),
    "flux2": lambda: diffusers.Flux2Transformer2DModel(num_layers=2, num_single_layers=2),
    "wan-i2v": lambda: diffusers.WanTransformer3DModel(num_layers=2, image_dim=1280, added_kv_proj_dim=5120),
    "zimage": lambda: diffusers.ZImageTransformer2DModel(n_layers=2),
    "ltx": lambda: diffusers.LTXVideoTransformer3DModel(num_layers=2),
}


@pytest.mark.parametrize("name", ANY_SIZE)
def test_from_single_file_gives_the_exported_transformer_back(tmp_path, name):
    pipe = trained(name)
    file = tmp_path / "model" / "transformer.safetensors"
    to_single_file(pipe, file, nfe=2)
    expected = baked_stock(pipe, nfe=2, exact_times=True)[0].transformer
    expected.save_config(tmp_path / "transformer")
    again = type(expected).from_single_file(str(file), config=str(tmp_path), subfolder="transformer")
    assert again.state_dict().keys() == expected.state_dict().keys()
    for key, value in expected.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    with safe_open(file, "pt") as stored:
        assert json.loads(stored.metadata()["twinflow_export"])["nfe"] == 2


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_widths(name):
    """Of the real rows, with few columns: conversions rearrange rows alone."""
    with torch.device("meta"):
        transformer = PUBLISHED[name]()
    generator = torch.Generator().manual_seed(0)
    weights = {
        key: torch.rand([value.shape[0], *[2] * (value.dim() - 1)], generator=generator)
        for key, value in transformer.state_dict().items()
    }
    original = original_state_dict(transformer, weights)
    assert set(original) != set(weights)
    back = converter_of(transformer)(dict(original))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)


def test_fused_weights_are_found_with_their_order_and_their_swaps():
    parts = original_parts(FAMILIES["sd3"].original.transformer)
    fused = parts["joint_blocks.0.x_block.attn.qkv.weight"]
    assert [part.name.split(".")[-2] for part in fused] == ["to_q", "to_k", "to_v"]
    assert [int(part.rows[0]) for part in fused] == [0, 32, 64]
    (norm,) = parts["final_layer.adaLN_modulation.1.weight"]  # shift and scale the other way round
    assert norm.rows.tolist() == [*range(32, 64), *range(32)]


@pytest.mark.parametrize("kind", [diffusers.LTXPipeline, diffusers.LTXConditionPipeline])
def test_where_ltx_places_its_frames_is_in_the_metadata(tmp_path, kind):
    """ComfyUI reads it there: from LTX-Video 0.9.5 on, the first latent frame stands for a single one."""
    stock = kind(**FAMILIES["ltx"].stock().components)
    pipe = AnyStepPipeline(stock, call=FAMILIES["ltx"].call, target_time=False)
    to_single_file(pipe, tmp_path / "ltx.safetensors", nfe=1)
    with safe_open(tmp_path / "ltx.safetensors", "pt") as stored:
        config = json.loads(stored.metadata().get("config", "{}"))
    assert config.get("transformer", {}).get("causal_temporal_positioning", False) == (
        kind is diffusers.LTXConditionPipeline
    )


@pytest.mark.parametrize("at_zero", [True, False])
def test_where_qwen_shows_its_sources_is_a_name_in_the_file(tmp_path, at_zero):
    """ComfyUI has no other sign of it; without, it shows an edit model of 2511 its sources at the wrong time."""
    pipe = trained("qwen_edit")
    assert pipe.pipe.transformer.config.zero_cond_t
    pipe.pipe.transformer.register_to_config(zero_cond_t=at_zero)
    to_single_file(pipe, tmp_path / "edit.safetensors", nfe=1)
    with safe_open(tmp_path / "edit.safetensors", "pt") as stored:
        assert ("__index_timestep_zero__" in stored.keys()) == at_zero  # noqa: SIM118 - a handle is no dict


def test_what_cannot_be_written_is_refused(tmp_path):
    file = tmp_path / "none.safetensors"
    with pytest.raises(TwinflowError, match=r"SANA's original file also holds y_embedder.y_embedding"):
        to_single_file(trained("sana"), file, nfe=1)
    with pytest.raises(TwinflowError, match=r"made for the published ones: .*3072"):
        to_single_file(trained("flux"), file, nfe=1)
    with pytest.raises(TwinflowError, match="at least 1, got 0"):
        to_single_file(trained("wan"), file, nfe=0)
    with torch.device("meta"):
        other = diffusers.CogView4Transformer2DModel(num_layers=1)
    with pytest.raises(TwinflowError, match="the original layout of CogView4Transformer2DModel is not known"):
        original_parts(other)
    assert not file.exists()
