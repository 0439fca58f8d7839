"""LoRA files with ComfyUI's names: what they add to the original weights is what training and bake did."""

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from families import FAMILIES
from twinflow.export import to_lora
from twinflow.export.comfyui_call import not_in_comfyui
from twinflow.export.diffusers_folder import baked_stock
from twinflow.export.layouts import LAYOUTS
from twinflow.export.lora import Factors, comfyui_keys
from twinflow.export.single_file import layout_of, original_state_dict
from twinflow.pipelines import AnyStepPipeline

from .all_families import draw, trained
from .loras import CONVERTIBLE, adapted, note_of, stock_pictures
from .test_single_file import PUBLISHED


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_comfyuis_file_adds_to_the_original_weights_what_training_and_bake_did(tmp_path, name):
    pipe = adapted(name)
    weights = load_file(to_lora(pipe, tmp_path, nfe=4, format="comfyui").file)
    base = original_state_dict(FAMILIES[name].original.transformer)
    wanted = original_state_dict(baked_stock(pipe, nfe=4, exact_times=True)[0].transformer)
    names = {key.rpartition(".lora_")[0] for key in weights}
    for key in names:
        down, up = weights[f"{key}.lora_A.weight"].double(), weights[f"{key}.lora_B.weight"].double()
        original = key.removeprefix("diffusion_model.") + ".weight"
        change = wanted[original].double() - base[original].double()
        torch.testing.assert_close(up @ down, change, rtol=0, atol=1e-5 * float(wanted[original].abs().max()))
    changed = {n for n in base if not torch.equal(base[n], wanted[n])}
    assert {f"diffusion_model.{n.removesuffix('.weight')}" for n in changed} == names


@pytest.mark.parametrize("name", ["flux", "hunyuan_video", "lumina2"])
def test_factors_of_fused_weights_at_published_widths(name):
    """Applied to a vector, they give what the layers' own give, each in the rows that diffusers takes its own from."""
    with torch.device("meta"):
        transformer = PUBLISHED[name]()
    generator = torch.Generator().manual_seed(0)
    layers = {n: m for n, m in transformer.named_modules() if isinstance(m, torch.nn.Linear)}
    factors, columns = {}, {}
    for number, (layer, module) in enumerate(layers.items()):
        if number % 3:  # not all parts of a fused weight have factors
            down = torch.randn(2, module.in_features, generator=generator, dtype=torch.float64)
            factors[layer] = Factors(down, torch.randn(module.out_features, 2, generator=generator).double())
            vector = torch.ones(module.in_features, dtype=torch.float64)
            columns[f"{layer}.weight"] = (factors[layer].up @ (factors[layer].down @ vector))[:, None]
    own = {
        n: columns.get(n, torch.zeros([v.shape[0], *[1] * (v.dim() - 1)], dtype=torch.float64))
        for n, v in transformer.state_dict().items()
    }
    expected, made = original_state_dict(transformer, own), comfyui_keys(transformer, factors)
    for original, value in expected.items():
        key = f"diffusion_model.{layout_of(transformer).in_comfyui(original)[0]}".removesuffix(".weight")
        if f"{key}.lora_A.weight" in made:
            down, up = made[f"{key}.lora_A.weight"].double(), made[f"{key}.lora_B.weight"].double()
            torch.testing.assert_close((up @ down.sum(1))[:, None], value, rtol=1e-5, atol=1e-3)
        else:
            assert not value.any(), original


def test_comfyuis_names_of_hunyuan_video():
    """Those of its network: it renames the authors' as it loads a model, and passes over factors of other names."""
    double = [
        *(f"{stream}_{part}" for stream in ("img", "txt") for part in ("mod.lin", "mlp.0", "mlp.2")),
        *(f"{stream}_attn.{part}" for stream in ("img", "txt") for part in ("qkv", "proj")),
    ]
    embedders = ("time_in", "vector_in", "guidance_in", "txt_in.t_embedder", "txt_in.c_embedder")
    refiner = ("self_attn.qkv", "self_attn.proj", "mlp.0", "mlp.2", "adaLN_modulation.1")
    names = [
        *(f"double_blocks.{i}.{part}" for i in (0, 1) for part in double),
        *(f"single_blocks.{i}.{part}" for i in (0, 1) for part in ("linear1", "linear2", "modulation.lin")),
        *(f"{embedder}.{layer}" for embedder in embedders for layer in ("in_layer", "out_layer")),
        *(f"txt_in.individual_token_refiner.blocks.{i}.{part}" for i in (0, 1) for part in refiner),
        *("txt_in.input_embedder", "final_layer.linear", "final_layer.adaLN_modulation.1"),
    ]
    with torch.device("meta"):
        transformer = PUBLISHED["hunyuan_video"]()
    factors = {
        name: Factors(torch.zeros(1, module.in_features), torch.zeros(module.out_features, 1))
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert {key.rpartition(".lora_")[0] for key in comfyui_keys(transformer, factors)} == {
        f"diffusion_model.{name}" for name in names
    }


# diffusers reads ComfyUI's names too, of these families with fused layers and the time MLP among them (its LTX
# conversion leaves the time MLP's name, that of Z-Image the fused attention).
@pytest.mark.parametrize("name", ["qwen", "wan"])
def test_diffusers_reads_comfyuis_file(tmp_path, name):
    pipe = adapted(name)
    file = to_lora(pipe, tmp_path, nfe=2, format="comfyui").file
    stock = FAMILIES[name].stock()
    stock.load_lora_weights(tmp_path, weight_name=file.name)
    torch.testing.assert_close(
        stock_pictures(stock, name, note_of(tmp_path), pipe.latent_shape),
        draw(pipe, name, 2),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_comfyuis_file_holds_all_that_was_trained(tmp_path, name):
    """Biases, norms, tables and convolutions too, as ComfyUI adds them: to the weight that has the name, or had it."""
    pipe = trained(name)
    with torch.no_grad():
        for i, parameter in enumerate(
            p for n, p in pipe.pipe.transformer.named_parameters() if "target_embedder" not in n
        ):
            parameter.flatten()[i % 3] += 0.1 * (1 + i % 5)
    made = to_lora(pipe, tmp_path, nfe=4, format="comfyui", base=FAMILIES[name].original.transformer, rank=1)
    entries, layout = load_file(made.file), layout_of(pipe.pipe.transformer)
    base = original_state_dict(FAMILIES[name].original.transformer)
    wanted = original_state_dict(baked_stock(pipe, nfe=4, exact_times=True)[0].transformer)
    used, far = set(), []
    for original, named in [(o, n) for o in base for n in layout.in_comfyui(o)]:
        value = base[original]
        module, _, kind = f"diffusion_model.{named}".rpartition(".")
        module = module if kind in ("weight", "bias") else f"diffusion_model.{named}"
        plain = f"{module}.diff_b" if kind == "bias" else f"{module}.diff"
        if plain in entries:
            value = value + entries[plain]
            used.add(plain)
        if kind == "weight" and f"{module}.lora_B.weight" in entries:
            value = value + entries[f"{module}.lora_B.weight"] @ entries[f"{module}.lora_A.weight"]
            used |= {f"{module}.lora_A.weight", f"{module}.lora_B.weight"}
        if (value - wanted[original]).abs().max() > 1e-5 * (1 + wanted[original].abs().max()):
            far.append(original)
    assert used == set(entries)
    assert not far
    assert not made.left_out
    assert made.lost < 1e-5


def test_names_that_comfyui_has_changed_are_both_in_the_file():
    flux, hunyuan = LAYOUTS["FluxTransformer2DModel"], LAYOUTS["HunyuanVideoTransformer3DModel"]
    for layout, original, module in (
        (flux, "double_blocks.0.img_attn.norm.query_norm.scale", "double_blocks.0.img_attn.norm.query_norm"),
        (flux, "single_blocks.3.norm.key_norm.scale", "single_blocks.3.norm.key_norm"),
        (hunyuan, "double_blocks.1.txt_attn_k_norm.weight", "double_blocks.1.txt_attn.norm.key_norm"),
        (hunyuan, "single_blocks.0.q_norm.weight", "single_blocks.0.norm.query_norm"),
    ):
        assert layout.in_comfyui(original) == (f"{module}.weight", f"{module}.scale")


def test_sizes_that_comfyuis_stable_diffusion_3_has():
    with torch.device("meta"):
        published = diffusers.SD3Transformer2DModel(
            num_layers=24, attention_head_dim=64, num_attention_heads=24, in_channels=16, patch_size=2
        )
    assert not not_in_comfyui(published)
    embedded = AnyStepPipeline.from_pretrained("shapeworld-tiny").pipe.transformer
    assert "4 channels of latents for 16" in not_in_comfyui(embedded)
    assert not not_in_comfyui(FAMILIES["qwen"].original.transformer)
