"""What can't be driven is refused, and the message says what was looked for."""

import inspect
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from PIL import Image

from families import FAMILIES
from twinflow.errors import TwinflowError
from twinflow.pipelines import AnyStepPipeline, Condition
from twinflow.pipelines.kind import check_kind

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


# Their real classes, without weights: what is looked at is the configuration and the signature.
NATIVE = {
    "HunyuanImageTransformer2DModel": "use_meanflow",
    "HunyuanVideo15Transformer3DModel": "use_meanflow",
    "Flux3Transformer2DModel": "flow_map",
}


@pytest.mark.parametrize("name", NATIVE)
def test_a_model_with_a_target_time_of_its_own_is_refused(name):
    key = NATIVE[name]
    for used in (True, False):
        with torch.device("meta"):
            small = {"num_layers": 1, "num_single_layers": 1} if "15" not in name else {"num_layers": 1}
            transformer = getattr(diffusers, name)(**small, **{key: used})
        pipe = SimpleNamespace(transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler())
        if not used:
            check_kind(pipe)
            continue
        with pytest.raises(TwinflowError, match=rf"{name} has a target time of its own \({key} = True in"):
            check_kind(pipe)


@pytest.mark.parametrize("kind", ["AnyFlowTransformer3DModel", "AnyFlowFARTransformer3DModel"])
def test_a_forward_that_needs_a_target_time_is_refused(kind):
    wan = FAMILIES["wan"].stock()
    own = {key: value for key, value in wan.transformer.config.items() if not key.startswith("_")}
    own = {
        key: own[key] for key in inspect.signature(getattr(diffusers, kind).__init__).parameters if key in own
    }
    parts = {name: getattr(wan, name) for name in ("vae", "text_encoder", "tokenizer")}
    pipe = diffusers.AnyFlowPipeline(
        **parts,
        transformer=getattr(diffusers, kind)(**own),
        scheduler=diffusers.FlowMapEulerDiscreteScheduler(),
    )
    with pytest.raises(TwinflowError, match=rf"{kind} has a target time .*its forward needs r_timestep"):
        AnyStepPipeline(pipe, call=FAMILIES["wan"].call)


def test_what_else_changes_from_step_to_step_is_refused():
    """A time by a name that nobody knows, say: recorded once, it would stand still."""
    pipe = FAMILIES["flux"].stock()

    class Moving(type(pipe.transformer)):
        def __call__(self, guidance, **arguments):
            return super().__call__(guidance=guidance * (1 + arguments["timestep"]), **arguments)

    pipe.transformer.__class__ = Moving
    with pytest.raises(
        TwinflowError,
        match=r"FluxPipeline gives its transformer another guidance in each step, .*\(timestep\)",
    ):
        AnyStepPipeline(pipe, call=FAMILIES["flux"].call)


def doctored(call, *, returned=lambda output: output, times=1):
    """FLUX whose network is given, or gives back, something else than its pipeline says."""
    pipe = FAMILIES["flux"].stock()

    class Doctored(type(pipe.transformer)):
        def __call__(self, **arguments):
            for _ in range(times):
                output = super().__call__(**call(arguments))
            return (returned(output[0]),)

    pipe.transformer.__class__ = Doctored
    return pipe


def squared_time():
    """FLUX whose network squares the time before its sinusoid."""
    pipe = FAMILIES["flux"].stock()
    embed = pipe.transformer.time_text_embed

    class Squared(type(embed)):
        def forward(self, timestep, *others):
            return super().forward(timestep**2, *others)

    embed.__class__ = Squared
    return pipe


NOT_FOUND = {
    "one call a step": (
        lambda: doctored(lambda given: given, times=2),
        "makes 6 network calls in 3 steps, expected one a step",
    ),
    "the state": (
        lambda: doctored(lambda given: given | {"hidden_states": given["hidden_states"] + 1}),
        r"none of its transformer's arguments \(hidden_states, .*\) equals the scheduler's sample of shape \(2, ",
    ),
    "the time": (
        lambda: doctored(lambda given: given | {"timestep": given["timestep"] ** 2}),
        r"none of its transformer's arguments \(hidden_states, .*timestep.*\) is an affine function of the time",
    ),
    "the sign": (
        lambda: doctored(lambda given: given, returned=lambda output: output + 1),
        "what its scheduler gets is not plus or minus what its transformer returns",
    ),
}


@pytest.mark.parametrize("sought", NOT_FOUND)
def test_what_was_looked_for_and_not_found_is_said(sought):
    build, said = NOT_FOUND[sought]
    with pytest.raises(TwinflowError, match=f"can't be driven as a flow-matching model: .*{said}"):
        AnyStepPipeline(build(), call=FAMILIES["flux"].call)


def test_a_time_mlp_that_sees_no_sinusoid_of_the_time_is_said():
    said = r"reaches time_text_embed\.timestep_embedder in Flux.* is no sinusoid of a number that is affine in the time"
    with pytest.raises(TwinflowError, match=said):
        AnyStepPipeline(squared_time(), call=FAMILIES["flux"].call)


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
