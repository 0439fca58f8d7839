"""Pipelines whose weights or adapters have moved, and what stock pipelines draw with their LoRA files."""

import json

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from families import FAMILIES
from twinflow.pipelines import AnyStepPipeline, LoraSettings
from twinflow.sampling import seeded_noise

from .all_families import PROMPT, RENOISE_SEED, SEED, trained

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


def adapted(name: str) -> AnyStepPipeline:
    """With an adapter whose weights are random, on the layers that training puts one on."""
    pipe = trained(name)
    transformer = pipe.pipe.transformer
    pipe.add_lora(LoraSettings(rank=4, alpha=6.0))
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for n, parameter in transformer.named_parameters():
            if "lora_" in n:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return pipe


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
