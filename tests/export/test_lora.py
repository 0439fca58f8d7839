"""A LoRA file on the stock base, with the few-step scheduler, draws the few-step sampler's pictures."""

import json

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from peft import LoraConfig, inject_adapter_in_model
from safetensors import safe_open
from safetensors.torch import load_file

from families import FAMILIES, NAMES
from twinflow.errors import TwinflowError
from twinflow.export import to_lora
from twinflow.export.diffusers_folder import baked_stock
from twinflow.export.lora import Factors, comfyui_keys
from twinflow.export.single_file import layout_of, original_parts, original_state_dict
from twinflow.export.stock import adapter_layers
from twinflow.pipelines import AnyStepPipeline, LoraSettings
from twinflow.sampling import seeded_noise

from .all_families import PROMPT, RENOISE_SEED, SEED, draw, trained
from .test_single_file import PUBLISHED

CONVERTIBLE = ("sd3", "flux2_klein", "qwen", "zimage", "wan", "ltx")  # at tiny sizes


def stock_pictures(pipe, name: str, note: dict, shape: tuple[int, ...]) -> torch.Tensor:
    """What a stock pipeline draws by the note's scheduler and call, from noise of ``shape``."""
    family = FAMILIES[name]
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(note["scheduler"])
    call = note["call"] | ({"image": family.call["image"]} if family.edits else {})
    latents = seeded_noise(shape, [SEED])
    if name == "flux2_klein":
        latents = latents.transpose(1, 2).reshape(-1, 16, 8, 8)
    torch.manual_seed(RENOISE_SEED)
    generator = torch.Generator().manual_seed(RENOISE_SEED)
    made = pipe(
        prompt=PROMPT, num_inference_steps=note["nfe"], latents=latents, generator=generator, output_type="pt", **call
    )  # fmt: skip
    return made[0].float()


def note_of(folder) -> dict:
    return json.loads((folder / "twinflow_export.json").read_text())


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


def adapted(name: str, targets=("to_q", "to_v", "to_out.0", "linear_2", "attention.qkv")) -> AnyStepPipeline:
    """With a PEFT adapter whose weights are random, on attention and on the time MLP."""
    pipe = trained(name)
    transformer = pipe.pipe.transformer
    targets = [
        n for n, m in transformer.named_modules()
        if isinstance(m, torch.nn.Linear) and n.endswith(targets) and "target_embedder" not in n
    ]  # fmt: skip
    transformer.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=targets))
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for n, parameter in transformer.named_parameters():
            if "lora_" in n:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return pipe


@pytest.mark.parametrize("name", ["sd3", "qwen", "wan"])
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
        key = f"diffusion_model.{layout_of(transformer).in_comfyui(original) or original}".removesuffix(
            ".weight"
        )
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


def full_run(name: str, rank: int, *, biases: bool = False):
    """A pipeline all of whose Linear weights moved by a matrix of ``rank``."""
    pipe = trained(name)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for n, module in pipe.pipe.transformer.named_modules():
            if isinstance(module, torch.nn.Linear) and "target_embedder" not in n:
                out, into = module.weight.shape
                left, right = (
                    torch.randn(*shape, generator=generator) for shape in ((out, rank), (rank, into))
                )
                module.weight.add_(0.02 * left @ right / rank**0.5)
                if biases and module.bias is not None:
                    module.bias.add_(0.1)
    return pipe


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


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_comfyuis_file_holds_all_that_was_trained(tmp_path, name):
    """Biases, norms, tables and convolutions too, as ComfyUI adds them: to the weight that has the name."""
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
    for original, value in base.items():
        named = layout.in_comfyui(original)
        if named is None:
            continue
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
    unsure = {part.name for original, parts in original_parts(FAMILIES[name].original.transformer).items()
              if layout.in_comfyui(original) is None for part in parts}  # fmt: skip
    assert set(made.left_out) == unsure
    assert (made.lost < 1e-5) == (not unsure)


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
    with pytest.raises(TwinflowError, match="nowhere has no SanaTransformer2DModel"):
        to_lora(pipe, tmp_path, nfe=1, base=tmp_path / "nowhere")
    with pytest.raises(TwinflowError, match="trained a LoRA on its base"):
        to_lora(adapted("sana"), tmp_path, nfe=1, base=FAMILIES["sana"].original.transformer)
    plain = AnyStepPipeline(FAMILIES["sana"].stock(), target_time=False, call=FAMILIES["sana"].call)
    with pytest.raises(TwinflowError, match="nothing to export"):
        to_lora(plain, tmp_path, nfe=1)
    assert not list(tmp_path.iterdir())
