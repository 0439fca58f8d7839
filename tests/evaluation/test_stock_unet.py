"""A stock pipeline that twinflow has no adapter for: a tiny random Stable Diffusion, with a UNet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from evaluation.geneval.tiny import tiny_tokenizer
from twinflow.errors import TwinflowError
from twinflow.evaluation.model_names import ModelName
from twinflow.evaluation.models import open_model
from twinflow.evaluation.samplers import Sampler
from twinflow.evaluation.stock_model import StockModel

from .evaluated import BENCHMARK, evaluate

SCHEDULERS = {
    "ddim": DDIMScheduler(),
    "pndm": PNDMScheduler(skip_prk_steps=True),  # Stable Diffusion 1.5's
    "heun": HeunDiscreteScheduler(),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    text = CLIPTextConfig(
        vocab_size=70,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 77
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=SCHEDULERS["pndm"],
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    home = tmp_path_factory.mktemp("unet")
    pipe.save_pretrained(home)
    return home


def test_it_is_evaluated_by_its_own_call(folder, tmp_path):
    (row,) = evaluate(tmp_path, f"sd=stock:{folder}", nfe=[3], guidance=1.0).rows
    assert (row.model, row.nfe, row.style, row.images) == ("sd", 3, "stock", 12)
    opened = open_model(ModelName.parse(f"stock:{folder}"))
    assert isinstance(opened, StockModel)
    assert opened.native_size == (32, 32)
    picture = BENCHMARK.pictures[2]
    image = opened.pipe(
        picture.prompt,
        num_inference_steps=2,  # of PNDM, which cost three
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(picture.seed),
    ).images[0]
    drawn = Image.open(tmp_path / "sd_nfe3" / picture.file)
    assert max(abs(a - b) for a, b in zip(image.tobytes(), drawn.tobytes(), strict=True)) <= 1


@pytest.mark.parametrize(
    ("scheduler", "guidance", "nfe", "steps"),
    [
        ("ddim", 1.0, 4, 4),
        ("ddim", 3.0, 4, 2),
        ("pndm", 1.0, 1, 1),
        ("pndm", 1.0, 6, 5),
        ("heun", 1.0, 7, 4),
        ("pndm", 1.0, 2, None),
        ("heun", 1.0, 6, None),
    ],
)
def test_evaluations_are_counted_whatever_the_scheduler_does(folder, scheduler, guidance, nfe, steps):
    opened = open_model(ModelName.parse(f"stock:{folder}"))
    assert isinstance(opened, StockModel)
    opened.pipe.scheduler = SCHEDULERS[scheduler]
    sampler = Sampler(nfe=nfe, guidance=guidance)
    if steps is None:
        with pytest.raises(TwinflowError, match=f"--nfe {nfe} is not possible"):
            opened.steps(sampler)
        return
    assert opened.steps(sampler) == steps
    seen: list[int] = []
    opened.network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    opened.check([], [sampler])
    seen.clear()
    opened.draw([BENCHMARK.pictures[0]], sampler)
    assert sum(seen) == nfe
