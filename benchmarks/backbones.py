# ruff: noqa: E402 - the tests hold the tiny pipelines
"""Every family: is it driven, trained and exported exactly? Measured on tiny random pipelines, no download.

    python benchmarks/backbones.py

writes benchmarks/results/backbones.json and the tables of docs/backbones.md. Exports are drawn by diffusers in a
process that can't import twinflow; errors are the largest differences of pictures in [0, 1] from the field sampler's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import diffusers
import torch
import transformers
from backbones_tables import RESULTS, STEPS, write_docs
from safetensors.torch import load_file
from torch import Tensor

from export.all_families import PROMPT, RENOISE_SEED, SEED, draw, run_stock_program, trained
from export.test_single_file import PUBLISHED
from families import FAMILIES, NAMES
from twinflow.conditions import take_rows
from twinflow.errors import TwinflowError
from twinflow.evaluation.protocols import run_facts
from twinflow.export import to_diffusers, to_lora, to_single_file, to_slim
from twinflow.export.diffusers_folder import baked_stock
from twinflow.export.lora import COMFYUI
from twinflow.export.single_file import SOURCES_AT_ZERO, converter_of, original_state_dict
from twinflow.export.slim import slim_size
from twinflow.export.stock import few_step_scheduler, recommended_call
from twinflow.objectives import TwinFlow
from twinflow.objectives.presets import preset
from twinflow.pipelines import AnyStepPipeline, LoraSettings
from twinflow.sampling import seeded_noise

KINDS = {
    (False, False): "image",
    (True, False): "edit",
    (False, True): "video",
    (True, True): "video of an image",
}
TRAINING_STEPS = 20
LORA_RANK = 4
# Published configurations, which are diffusers' defaults, for the size of slim exports.
REAL: dict[str, tuple[str, Any]] = {
    "qwen": ("Qwen-Image", diffusers.QwenImageTransformer2DModel),
    "flux2_klein": ("FLUX.2", diffusers.Flux2Transformer2DModel),
    "zimage": ("Z-Image", diffusers.ZImageTransformer2DModel),
    "lumina2": ("Lumina-Image 2", diffusers.Lumina2Transformer2DModel),
    "wan": ("Wan 2.1 14B", diffusers.WanTransformer3DModel),
    "ltx": ("LTX-Video", diffusers.LTXVideoTransformer3DModel),
    "sana": ("SANA 1.6B", diffusers.SanaTransformer2DModel),
}
PUBLISHED_WIDTHS = {"flux": "flux", "lumina2": "lumina2", "hunyuan_video": "hunyuan_video"}


def largest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def field_error(name: str) -> float:
    """Three Euler steps along the field against the stock pipeline's own."""
    family = FAMILIES[name]
    pipe = AnyStepPipeline(family.stock(), call=family.call)
    ours = pipe(
        [PROMPT], nfe=3, seeds=[SEED], style="multi", time_dist=(1.0, 1.0, 1.0), gaps=(0.0, 0.0), output_type="pt",
        images=[family.call["image"]] if family.edits else None,
    ).images  # fmt: skip
    stock = family.stock()
    plain = few_step_scheduler([1.0, 2 / 3, 1 / 3])
    plain.register_to_config(stochastic_sampling=False)
    stock.scheduler = plain
    latents = seeded_noise(pipe.latent_shape, [SEED])
    if name == "flux2_klein":  # takes its latents before they are packed
        latents = latents.transpose(1, 2).reshape(-1, 16, 8, 8)
    made = stock(
        prompt=PROMPT, num_inference_steps=3, latents=latents, output_type="pt", **recommended_call(pipe)
    )
    return largest(made[0].float(), ours)


def exact_bake(name: str) -> dict[str, float]:
    """The bake with every part of the pipeline in fp64: what is left where no rounding is amplified.

    States stay in fp32, as the noise is and as the stock scheduler takes them. In this process, by stock code.
    """
    pipe, errors = trained(name), {}
    pipe.pipe.to(torch.float64)
    for nfe in STEPS:
        stock, _ = baked_stock(pipe, nfe=nfe)
        latents = seeded_noise(pipe.latent_shape, [SEED]).double()
        if name == "flux2_klein":  # takes its latents before they are packed
            latents = latents.transpose(1, 2).reshape(-1, 16, 8, 8)
        torch.manual_seed(RENOISE_SEED)
        made = stock(
            prompt=PROMPT,
            num_inference_steps=nfe,
            latents=latents,
            generator=torch.Generator().manual_seed(RENOISE_SEED),
            output_type="pt",
            **recommended_call(pipe),
        )
        errors[str(nfe)] = largest(made[0], draw(pipe, name, nfe))
    return errors


def training(name: str, *, lora: bool) -> dict[str, Any]:
    """A short TwinFlow run from random data: which parameters moved, and whether the frozen ones stayed.

    What is trained is what a run of the trainer trains: all that has an effect on the output, or the adapter of
    ``add_lora`` and the branch.
    """
    family = FAMILIES[name]
    torch.manual_seed(0)  # new adapters are drawn from the global generator
    pipe = AnyStepPipeline(family.stock(), call=family.call)
    if lora:
        pipe.add_lora(LoraSettings(rank=LORA_RANK))
    else:
        pipe.pipe.transformer.requires_grad_(True)
    in_vain = pipe.freeze_unused()
    before = {n: p.detach().clone() for n, p in pipe.network.named_parameters()}
    chosen = {n: p for n, p in pipe.network.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam(chosen.values(), lr=1e-3)
    objective, generator = TwinFlow(**preset("twinflow", "paper_qwen")), torch.Generator().manual_seed(0)
    cond = take_rows(pipe.encode_prompts([PROMPT]), torch.zeros(4, dtype=torch.int64))
    uncond = pipe.encode_prompts(["a"])  # an empty prompt has no token at all in the tiny HunyuanVideo
    x, losses = seeded_noise(pipe.latent_shape, range(4)), []
    for _ in range(TRAINING_STEPS):
        step = objective.step(pipe.field, x, cond, uncond=uncond, generator=generator)
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        losses.append(float(step.loss.detach()))
    now = dict(pipe.network.named_parameters())
    return {
        "finite": all(torch.isfinite(torch.tensor(losses)).tolist()),
        "trained": len(chosen),
        "moved": sum(not torch.equal(now[n], before[n]) for n in chosen),
        "in_vain": in_vain,
        "frozen_moved": sum(not torch.equal(now[n], before[n]) for n in now if n not in chosen),
    }


def single_file(name: str, folder: Path) -> dict[str, Any]:
    """Whether diffusers' own conversion turns the file back bit for bit, at which sizes."""
    pipe = trained(name)
    try:
        to_single_file(pipe, folder / f"{name}.safetensors", nfe=1)
        weights = baked_stock(pipe, nfe=1, exact_times=True)[0].transformer
        back = converter_of(weights)(load_file(folder / f"{name}.safetensors"))
        back.pop(SOURCES_AT_ZERO, None)  # for ComfyUI; from_single_file passes over it
        same = back.keys() == weights.state_dict().keys()
        same = same and all(torch.equal(back[n], v) for n, v in weights.state_dict().items())
        return {"same": same, "at": "tiny"}
    except TwinflowError as error:
        if name not in PUBLISHED_WIDTHS:
            return {"refused": str(error)}
    with torch.device("meta"):
        transformer = PUBLISHED[PUBLISHED_WIDTHS[name]]()
    weights = {n: torch.rand(v.shape[0], *[2] * (v.dim() - 1)) for n, v in transformer.state_dict().items()}
    original_state_dict(transformer, weights)  # raises unless the conversion gives them back
    return {"same": True, "at": "published widths"}


def comfyui(name: str, folder: Path) -> dict[str, Any]:
    """The factors against what the bake changes in the original layout."""
    pipe = trained(name)
    if type(pipe.pipe.transformer).__name__ not in COMFYUI:
        return {"refused": "ComfyUI's names are not established"}
    try:
        factors = load_file(to_lora(pipe, folder, nfe=4, format="comfyui").file)
    except TwinflowError:
        return {"at": "published widths"}
    base = original_state_dict(FAMILIES[name].original.transformer)
    wanted = original_state_dict(baked_stock(pipe, nfe=4, exact_times=True)[0].transformer)
    worst = 0.0
    for key in {key.rpartition(".lora_")[0] for key in factors}:
        weight = key.removeprefix("diffusion_model.") + ".weight"
        change = factors[f"{key}.lora_B.weight"] @ factors[f"{key}.lora_A.weight"]
        worst = max(worst, largest(base[weight] + change, wanted[weight]))
    return {"error": worst, "at": "tiny"}


def slim(name: str, folder: Path) -> dict[str, Any]:
    pipe = trained(name)
    try:
        made = to_slim(pipe, folder)
    except TwinflowError as error:
        return {"refused": str(error)}
    result: dict[str, Any] = {"kept": made.kept / made.parameters}
    if name != "qwen_edit":  # whose processor can't be loaded here, without torchvision
        again = AnyStepPipeline.from_pretrained(folder, target_time=False, call=FAMILIES[name].call)
        result["error"] = largest(draw(again, name, 1), draw(pipe, name, 1))
    if name in REAL:
        title, build = REAL[name]
        with torch.device("meta"):
            parameters, kept = slim_size(build(), made.replaced)
        result["real"] = {"model": title, "parameters": parameters, "kept": kept}
    return result


def measure(folder: Path) -> dict[str, Any]:
    pipes = {name: trained(name) for name in NAMES}
    tasks: dict[str, Any] = {}
    for name, pipe in pipes.items():
        for nfe in STEPS:
            to_diffusers(pipe, folder / f"{name}_{nfe}", nfe=nfe)
            tasks[f"{name}_{nfe}"] = {"folder": f"{name}_{nfe}", "family": name}
        to_lora(pipe, folder / f"{name}_lora", nfe=2)
        base = AnyStepPipeline(FAMILIES[name].stock(), target_time=False, call=FAMILIES[name].call)
        to_diffusers(base, folder / f"{name}_base", nfe=2)  # the same weights without the branch
        tasks[f"{name}_lora"] = {
            "folder": f"{name}_base",
            "family": name,
            "lora": f"{name}_lora",
            "note": f"{name}_lora",
        }
    pictures, _ = run_stock_program(folder, tasks, pipes)
    rows = {}
    for name, pipe in pipes.items():
        rows[name] = {
            "pipeline": type(pipe.pipe).__name__,
            "kind": KINDS[FAMILIES[name].edits, FAMILIES[name].video],
            "field": field_error(name),
            "full": training(name, lora=False),
            "lora": training(name, lora=True),
            "bake": {str(nfe): largest(pictures[f"{name}_{nfe}"], draw(pipe, name, nfe)) for nfe in STEPS},
            "bake_fp64": exact_bake(name),
            "lora_file": largest(pictures[f"{name}_lora"], draw(pipe, name, 2)),
            "slim": slim(name, folder / f"{name}_slim"),
            "single_file": single_file(name, folder),
            "comfyui": comfyui(name, folder / f"{name}_comfyui"),
        }
        print(name, json.dumps(rows[name]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument(
        "--table-only", action="store_true", help="write the tables of what was measured before"
    )
    args = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    if args.table_only:
        rows = json.loads(args.json.read_text())["families"]
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(Path(folder))
        record = {**run_facts(), "training_steps": TRAINING_STEPS, "lora_rank": LORA_RANK, "families": rows}
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    write_docs(rows)


if __name__ == "__main__":
    main()
