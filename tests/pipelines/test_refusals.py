"""What can't be driven is refused, and the message says what was looked for."""

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from PIL import Image

from families import FAMILIES
from twinflow.errors import TwinflowError
from twinflow.pipelines import AnyStepPipeline, Condition

from .driven import PROMPTS, opened


def test_sizes_that_do_not_fit_the_model_are_refused():
    any_step = opened(FAMILIES["zimage"])
    with pytest.raises(TwinflowError, match=r"refuses the call .*'height': 33"):
        any_step.encode_images(torch.zeros(1, 3, 33, 32))
    with pytest.raises(ValueError, match="a size that its autoencoder and its patches divide"):
        opened(FAMILIES["flux"]).encode_images(torch.zeros(1, 3, 34, 32))
    with pytest.raises(TwinflowError, match="refuses the call"):
        AnyStepPipeline(FAMILIES["zimage"].stock(), call={"height": 33, "width": 32})
    # Some would draw a smaller picture, and warn; and the autoencoder cuts it, as the state, to as many latents.
    for name in ("flux", "qwen"):
        any_step = opened(FAMILIES[name])
        for height, width in ((34, 32), (32, 35)):
            with pytest.raises(ValueError, match=rf"of {height} x {width}.* and its patches divide"):
                any_step(PROMPTS[:1], size=(height, width))
            with pytest.raises(ValueError, match=rf"of {height} x {width}.* and its patches divide"):
                any_step.encode_images(torch.zeros(1, 3, height, width))


def test_a_text_to_image_pipeline_takes_no_source_picture():
    any_step = opened(FAMILIES["flux"])
    with pytest.raises(TwinflowError, match="does not edit"):
        any_step.encode_prompts(PROMPTS[:1], images=[Image.new("RGB", (32, 32))])


def test_an_edit_pipeline_needs_a_source_picture():
    family = FAMILIES["qwen_edit"]
    call = {name: value for name, value in family.call.items() if name != "image"}
    with pytest.raises(TwinflowError, match="source picture"):
        AnyStepPipeline(family.stock(), call=call)


def test_what_is_not_flow_matching_is_refused():
    pipe = FAMILIES["sd3"].stock()
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(TwinflowError, match=r"prediction_type = 'epsilon'.*flow_prediction"):
        AnyStepPipeline(pipe)
    with pytest.raises(TwinflowError, match=r"Linear has no transformer \(its networks: none\)"):
        AnyStepPipeline(torch.nn.Linear(1, 1))


def test_a_folder_of_a_unet_or_without_scheduler_is_refused(tmp_path):
    unet = UNet2DModel(block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
                       layers_per_block=1, norm_num_groups=1, sample_size=8)  # fmt: skip
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path / "unet")
    with pytest.raises(TwinflowError, match=r"DDIMPipeline has no transformer \(its networks: unet\)"):
        AnyStepPipeline.from_pretrained(tmp_path / "unet")
    FAMILIES["sana"].stock().save_pretrained(tmp_path / "bare")
    (tmp_path / "bare" / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(TwinflowError, match=r"bare is not a folder that diffusers can load.*scheduler"):
        AnyStepPipeline.from_pretrained(tmp_path / "bare")
    pipe = FAMILIES["flux"].stock()
    pipe.scheduler = None
    with pytest.raises(TwinflowError, match="FluxPipeline has no scheduler"):
        AnyStepPipeline(pipe)


def test_a_model_with_a_target_time_of_its_own_is_refused():
    pipe = FAMILIES["hunyuan_video"].stock()
    pipe.transformer.register_to_config(use_meanflow=True)
    with pytest.raises(TwinflowError, match="use_meanflow"):
        AnyStepPipeline(pipe, call=FAMILIES["hunyuan_video"].call)


def test_conditions_of_different_sizes_or_models_are_not_joined():
    flux = FAMILIES["flux"]
    small = opened(flux).encode_prompts(["a"])
    large = AnyStepPipeline(flux.stock(), call=flux.call | {"height": 64}).encode_prompts(["a"])
    with pytest.raises(ValueError, match=r"differ in img_ids"):
        Condition.concat([small, large])
    with pytest.raises(ValueError, match="different transformers"):
        Condition.concat([small, opened(FAMILIES["zimage"]).encode_prompts(["a"])])


def test_guidance_of_a_guidance_distilled_model_is_refused():
    any_step = opened(FAMILIES["flux"])
    with pytest.raises(ValueError, match="take its guidance as an input"):
        any_step(PROMPTS[:1], nfe=4, guidance=3.0, style="multi")
