"""Every family is driven as its own pipeline drives it, without a line of code that knows the family."""

import copy
import json
from itertools import pairwise

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from PIL import Image

from families import FAMILIES, NAMES
from twinflow.conditions import concat_rows, take_rows
from twinflow.errors import TwinflowError
from twinflow.pipelines import AnyStepPipeline, Condition
from twinflow.pipelines import target_time as tt
from twinflow.pipelines.geometry import Size
from twinflow.pipelines.wiring import guidance_off
from twinflow.sampling import seeded_noise

from .tiny import train_branch

PROMPTS = ["a red circle", "two dogs and a rather long tail of words", "a"]
SOURCES = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
SIZE = 32 * 32  # pixels of the pictures that the edit pipeline works on; the stock ones have a million


@pytest.fixture(scope="module", autouse=True)
def small_sources():
    import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as edit

    kept = edit.VAE_IMAGE_SIZE, edit.CONDITION_IMAGE_SIZE
    edit.VAE_IMAGE_SIZE = edit.CONDITION_IMAGE_SIZE = SIZE
    yield
    edit.VAE_IMAGE_SIZE, edit.CONDITION_IMAGE_SIZE = kept


@pytest.fixture(params=NAMES)
def family(request):
    return FAMILIES[request.param]


def opened(family, **options):
    return AnyStepPipeline(family.stock(), call=family.call, **options)


def noise(any_step, rows=3):
    return seeded_noise(any_step.latent_shape, range(rows))


def stock_euler(family, *, latents, steps):
    """Final latents and pictures of the stock pipeline with the plain Euler scheduler and no guidance."""
    pipe = family.stock()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    off = guidance_off(pipe)[-1 if family.name == "zimage" else 0]
    call = {"prompt": PROMPTS[1], "num_inference_steps": steps} | off | family.call
    if family.name == "flux2_klein":  # takes its latents before they are packed
        latents = latents.transpose(1, 2).reshape(1, 16, 8, 8)
    final = pipe(latents=latents.clone(), output_type="latent", **call)[0]
    pictures = pipe(latents=latents.clone(), output_type="pt", **call)[0]
    times = [float(sigma) for sigma in pipe.scheduler.sigmas]
    return final, pictures, times


def test_a_few_euler_steps_are_the_stock_pipelines(family):
    any_step = opened(family, target_time=False)
    x = noise(any_step, 1)
    final, pictures, times = stock_euler(family, latents=x, steps=3)
    cond = any_step.encode_prompts(PROMPTS[1:2])
    with torch.no_grad():
        for now, then in pairwise(times):
            t = torch.full((1,), now)
            x = x - (now - then) * any_step.field(x, t, t, cond)
    # FLUX.2 calls "latent" what it gives to its decoder.
    ours = any_step.adapter.geometry().codec.to_autoencoder(x) if family.name == "flux2_klein" else x
    torch.testing.assert_close(ours, final.reshape(ours.shape), rtol=1e-4, atol=2e-5)

    # And they are decoded as the stock pipeline decodes them, clips with their frames first.
    ours = (any_step.decode(x) + 1) / 2
    pictures = pictures.movedim(1, 2) if family.video else pictures
    assert ours.std() > 0.01
    torch.testing.assert_close(ours, pictures, rtol=0, atol=1e-3)


def test_a_pipeline_that_edits_one_picture_a_call_is_driven_row_by_row(monkeypatch):
    """The first Qwen-Image-Edit refuses two prompts with one source picture. Its parts are those of its successor."""
    import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit as edit

    calculate = edit.calculate_dimensions
    monkeypatch.setattr(edit, "calculate_dimensions", lambda area, ratio: calculate(SIZE, ratio))
    family = FAMILIES["qwen_edit"]
    stock = edit.QwenImageEditPipeline(**family.stock().components)
    stock.set_progress_bar_config(disable=True)
    any_step = AnyStepPipeline(stock, call=family.call, target_time=False)
    assert any_step.edits
    assert any_step.adapter.wiring.one_prompt_a_call
    cond = any_step.encode_prompts(PROMPTS[:2], images=SOURCES[:2])
    x, plain = noise(any_step, 2), FlowMatchEulerDiscreteScheduler(shift=1.0)
    final = []
    for row in range(2):
        stock.scheduler = plain
        call = family.call | {"prompt": PROMPTS[row], "image": SOURCES[row], "num_inference_steps": 3}
        final.append(stock(latents=x[row : row + 1], output_type="latent", true_cfg_scale=1.0, **call)[0])
    with torch.no_grad():
        for now, then in pairwise(plain.sigmas.tolist()):
            t = torch.full((2,), now)
            x = x - (now - then) * any_step.field(x, t, t, cond)
    torch.testing.assert_close(x, torch.cat(final), rtol=1e-4, atol=2e-5)


def test_a_new_network_that_still_returns_zero_is_driven_alike(family):
    pipe, expected = family.stock(), opened(family, target_time=False)
    with torch.no_grad():
        for name, parameter in pipe.transformer.named_parameters():
            if name.startswith(("proj_out", "all_final_layer", "norm_out")):
                parameter.zero_()
    any_step = AnyStepPipeline(pipe, call=family.call, target_time=False)
    x, t = noise(any_step), torch.full((3,), 0.5)
    cond = any_step.encode_prompts(PROMPTS)
    with torch.no_grad():
        assert not any_step.field(x, t, t, cond).any()
    assert any_step.adapter.wiring.sign == expected.adapter.wiring.sign


def test_the_branch_is_the_identity_at_birth_and_at_r_equal_t(family):
    stock, attached = opened(family, target_time=False), opened(family)
    x, cond = noise(stock), stock.encode_prompts(PROMPTS)
    t, r = torch.tensor([1.0, 0.37, 0.807]), torch.tensor([0.0, 0.2, 0.1])
    with torch.no_grad():
        expected = stock.field(x, t, t, cond)
        assert torch.equal(attached.field(x, t, r, cond), expected)
        train_branch(attached)
        assert torch.equal(attached.field(x, t, t, cond), expected)
        moved = (attached.field(x, t, r, cond) - expected).flatten(1).abs().amax(1)
        assert (moved > 1e-4).all()  # every row, and with it every family, sees its r
        backwards = attached.field(x, -t, -t, cond)
    assert backwards.isfinite().all()
    assert ((backwards - expected).flatten(1).abs().amax(1) > 1e-4).all()


def test_a_sign_embedding_starts_as_the_real_field_and_leaves_it(family):
    any_step = opened(family, fake_time="sign")
    x, cond = noise(any_step), any_step.encode_prompts(PROMPTS)
    t = torch.tensor([1.0, 0.37, 0.807])
    with torch.no_grad():
        real = any_step.field(x, t, t, cond)
        assert torch.equal(any_step.field(x, -t, -t, cond), real)
        train_branch(any_step)
        assert torch.equal(any_step.field(x, t, t, cond), real)
        assert not torch.allclose(any_step.field(x, -t, -t, cond), real)


def test_rows_of_conditions_are_as_good_as_separate_calls(family):
    any_step = train_branch(opened(family))
    x, t, r = noise(any_step), torch.tensor([1.0, 0.5, 0.25]), torch.tensor([0.0, 0.5, 0.1])
    together = any_step.encode_prompts(PROMPTS)
    assert len(together) == len(PROMPTS)
    with torch.no_grad():
        expected = torch.cat(
            [
                any_step.field(
                    x[i : i + 1], t[i : i + 1], r[i : i + 1], any_step.encode_prompts([PROMPTS[i]])
                )
                for i in range(3)
            ]
        )
        spread = expected.abs().max()
        close = {"rtol": 0, "atol": 1e-5 * float(spread)}
        torch.testing.assert_close(any_step.field(x, t, r, together), expected, **close)
        rows = torch.tensor([2, 0, 0])
        picked = any_step.field(x[rows], t[rows], r[rows], take_rows(together, rows))
        torch.testing.assert_close(picked, expected[rows], **close)
        joined = concat_rows([any_step.encode_prompts([prompt]) for prompt in PROMPTS])
        torch.testing.assert_close(any_step.field(x, t, r, joined), expected, **close)


def test_states_survive_the_autoencoders_normalisation_and_packing(family):
    any_step = opened(family, target_time=False)
    codec, x = any_step.adapter.geometry().codec, noise(any_step)
    torch.testing.assert_close(codec.to_state(codec.to_autoencoder(x)), x, rtol=0, atol=1e-5)
    pixels = any_step.decode(x)
    encoded = any_step.encode_images(pixels)
    assert encoded.shape == x.shape
    vae = any_step.pipe.vae
    raw = vae.encode(pixels if pixels.dim() == codec.scale.dim() + 1 else pixels[:, :, None])
    mean = raw.latent_dist.mean if hasattr(raw, "latent_dist") else raw.latent
    torch.testing.assert_close(codec.to_autoencoder(encoded).reshape(mean.shape), mean, rtol=1e-4, atol=1e-4)


def test_another_size_is_as_good_as_a_pipeline_opened_with_it(family):
    # The positions of SD3 are a crop of a fixed table.
    size = Size(16, 24) if family.name == "sd3" else Size(64, 32, 9 if family.video else None)
    small = train_branch(opened(family, fold_padding=False))
    large = AnyStepPipeline(
        family.stock(), call=family.call | size.arguments(), fold_padding=False, target_time=False
    )
    large.pipe.transformer = small.pipe.transformer
    large.network.transformer = small.pipe.transformer
    ours = small(PROMPTS, nfe=2, seed=3, size=size, images=SOURCES if family.edits else None)
    theirs = large(PROMPTS, nfe=2, seed=3, images=SOURCES if family.edits else None)
    torch.testing.assert_close(ours.latents, theirs.latents, rtol=1e-4, atol=1e-5)
    assert ours.pixels.shape[-2:] == (size.height, size.width)
    assert ours.pixels.shape == theirs.pixels.shape
    encoded = small.encode_images(ours.pixels)
    assert encoded.shape == ours.latents.shape


def test_conditions_go_to_files_and_back(family):
    any_step = opened(family, target_time=False)
    cond = any_step.encode_prompts(PROMPTS)
    tensors, rest = cond.to_tensors()
    back = Condition.from_tensors(tensors, json.loads(json.dumps(rest)))
    x, t = noise(any_step), torch.full((3,), 0.5)
    with torch.no_grad():
        assert torch.equal(any_step.field(x, t, t, back), any_step.field(x, t, t, cond))


def test_an_any_step_checkpoint_is_lossless_and_loads_as_stock(family, tmp_path):
    if family.name == "qwen_edit":
        pytest.skip("the processor of this family can't be saved without torchvision (transformers)")
    any_step = train_branch(opened(family))
    any_step.save_pretrained(tmp_path)
    again = AnyStepPipeline.from_pretrained(tmp_path, call=family.call)
    x, cond = noise(any_step), any_step.encode_prompts(PROMPTS)
    t, r = torch.tensor([1.0, 0.5, 0.25]), torch.zeros(3)
    again.pipe.transformer = copy.deepcopy(again.pipe.transformer)  # aligned memory, as the original has
    with torch.no_grad():
        ours, theirs = any_step.field(x, t, r, cond), again.field(x, t, r, cond)
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    stock = DiffusionPipeline.from_pretrained(tmp_path)
    assert not tt.has_target_time(stock.transformer)
    assert type(stock) is type(any_step.pipe)


def test_time_reaches_the_sinusoid_in_fp32_whatever_the_weights(family):
    any_step = opened(family)
    network = any_step.pipe.transformer.to(torch.bfloat16)
    path = any_step.adapter.wiring.time_path
    seen = []
    module = network.get_submodule(path.sinusoid or path.mlp)
    # What the stock class gets, after the swapped one put the exact time in.
    stock_forward = module._stock_class.forward

    def spy(self, number, *args, **kwargs):
        seen.append(number.detach().clone())
        return stock_forward(self, number, *args, **kwargs)

    module._stock_class.forward = spy
    try:
        t = torch.tensor([0.807, 0.797, 0.123])
        with torch.no_grad():
            any_step.field(noise(any_step), t, t, any_step.encode_prompts(PROMPTS))
    finally:
        module._stock_class.forward = stock_forward
    expected = path.offset + path.slope * t
    matching = [number for number in seen if number.numel() >= 3]
    torch.testing.assert_close(matching[0].flatten()[:3].float(), expected, rtol=1e-6, atol=1e-6)


def test_an_edit_pipeline_sees_the_source_picture_of_each_row():
    any_step = opened(FAMILIES["qwen_edit"])
    x, t = noise(any_step, 2), torch.tensor([0.5, 0.5])
    red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    with torch.no_grad():
        both = any_step.field(x, t, t, any_step.encode_prompts(PROMPTS[:2], images=[red, blue]))
        same = any_step.field(x, t, t, any_step.encode_prompts(PROMPTS[:2], images=[red, red]))
    torch.testing.assert_close(both[0], same[0], rtol=0, atol=1e-5)
    assert not torch.allclose(both[1], same[1], atol=1e-4)


def test_the_clean_tokens_of_a_source_picture_get_no_target_time():
    any_step = train_branch(opened(FAMILIES["qwen_edit"]))
    network = any_step.pipe.transformer
    assert any_step.adapter.wiring.time_path.rows == "clean_after"
    seen = []
    mlp = network.get_submodule(any_step.adapter.wiring.time_path.mlp)
    handle = mlp.register_forward_hook(lambda module, args, output: seen.append(output))
    x, cond, t = noise(any_step, 2), any_step.encode_prompts(PROMPTS[:2]), torch.tensor([0.9, 0.4])
    with torch.no_grad():
        for r in (t, torch.zeros(2)):
            any_step.field(x, t, r, cond)
    handle.remove()
    at_t, at_0 = seen
    assert not torch.allclose(at_t[:2], at_0[:2])
    assert torch.equal(at_t[2:], at_0[2:])


# What can't be driven is refused, and the message says what was looked for.


def test_sizes_that_do_not_fit_the_model_are_refused():
    any_step = opened(FAMILIES["zimage"])
    with pytest.raises(TwinflowError, match=r"refuses the call .*'height': 33"):
        any_step.encode_images(torch.zeros(1, 3, 33, 32))
    with pytest.raises(ValueError, match="a size that its autoencoder and its patches divide"):
        opened(FAMILIES["flux"]).encode_images(torch.zeros(1, 3, 34, 32))
    with pytest.raises(TwinflowError, match="refuses the call"):
        AnyStepPipeline(FAMILIES["zimage"].stock(), call={"height": 33, "width": 32})


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


def test_an_edit_is_drawn_from_its_source_and_not_without():
    any_step = opened(FAMILIES["qwen_edit"])
    red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    with pytest.raises(ValueError, match="edits pictures"):
        any_step(PROMPTS[:1])
    drawn = any_step(["a"] * 2, images=[red, blue], seeds=[4, 4]).pixels
    assert not torch.equal(drawn[0], drawn[1])
    guided = any_step("a", images=red, nfe=4, guidance=3.0, style="multi")
    assert guided.pixels.isfinite().all()


def test_clips_are_lists_of_frames():
    any_step = opened(FAMILIES["wan"])
    drawn = any_step(PROMPTS[:2], nfe=2)
    assert [len(clip) for clip in drawn.images] == [5, 5]
    assert drawn.images[0][0].size == (32, 32)
    assert any_step(PROMPTS[:2], nfe=2, output_type="pt").images.shape == (2, 5, 3, 32, 32)


def test_a_deep_copy_has_a_branch_of_its_own(family):
    any_step = train_branch(opened(family))
    twin = copy.deepcopy(any_step.network)
    x, cond = noise(any_step), any_step.encode_prompts(PROMPTS)
    t, r = torch.tensor([1.0, 0.5, 0.25]), torch.zeros(3)
    with torch.no_grad():
        before = twin(x, t, r, cond)
        torch.testing.assert_close(before, any_step.field(x, t, r, cond), rtol=1e-5, atol=1e-6)
        for value in tt.target_time_state_dict(any_step.pipe.transformer).values():
            value.add_(1.0)
        assert torch.equal(twin(x, t, r, cond), before)
        assert not torch.allclose(any_step.field(x, t, r, cond), before)


def test_recomputing_activations_changes_no_gradient(family):
    any_step = train_branch(opened(family))
    x, cond = noise(any_step), any_step.encode_prompts(PROMPTS)
    t, r = torch.tensor([1.0, 0.5, -0.25]), torch.tensor([0.0, 0.5, -0.25])

    def gradients() -> dict[str, torch.Tensor]:
        any_step.network.zero_grad()
        any_step.field(x, t, r, cond).square().mean().backward()
        named = any_step.network.named_parameters()
        return {name: p.grad.clone() for name, p in named if p.grad is not None}

    plain = gradients()
    assert any("target_embedder" in name for name in plain)
    any_step.pipe.transformer.enable_gradient_checkpointing()
    any_step.pipe.transformer.train()  # diffusers recomputes in training mode only; there is no dropout
    largest = max(float(gradient.abs().max()) for gradient in plain.values())
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-6 * largest)


def test_a_prompt_without_a_token_gives_a_velocity_or_is_refused(family):
    """The tiny tokenizers make none of an empty prompt, where published ones end it with a token of their own."""
    any_step = opened(family)
    t, r = torch.tensor([0.7]), torch.tensor([0.2])
    if family.name != "hunyuan_video":
        assert any_step.field(noise(any_step, 1), t, r, any_step.encode_prompts([""])).isfinite().all()
        return
    latents = family.stock()("", num_inference_steps=1, output_type="latent", **family.call)[0]
    assert latents.isnan().all()  # of the stock pipeline: it takes the mean of no tokens
    for prompts in ([""], ["a", ""]):
        with pytest.raises(TwinflowError, match=r"the prompt '' has no token.*prompt_template"):
            any_step.encode_prompts(prompts)
    call = family.call | {"prompt_template": {"template": "{} end", "crop_start": 0}}
    ended = AnyStepPipeline(family.stock(), call=call)
    assert ended.field(noise(ended, 1), t, r, ended.encode_prompts([""])).isfinite().all()


# The transformer of Lumina 2 decides by the values of its mask whether to use it, which no graph can hold.
@pytest.mark.parametrize("name", ["flux", "qwen", "zimage", "wan"])
def test_compiles_to_one_graph_for_all_times(name):
    any_step = train_branch(opened(FAMILIES[name]))
    x, cond = noise(any_step), any_step.encode_prompts(PROMPTS)
    t, r = torch.tensor([1.0, 0.5, 0.25]), torch.tensor([0.0, 0.5, 0.1])
    torch._dynamo.reset()
    compiled = torch.compile(any_step.network, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(x, t, r, cond), any_step.field(x, t, r, cond))
        with torch.compiler.set_stance("fail_on_recompile"):
            assert torch.equal(compiled(x, -t, -t, cond), any_step.field(x, -t, -t, cond))
    torch._dynamo.reset()
