"""AnyStepPipeline draws what the stock pipeline draws, from seeds, and refuses before it works."""

import pytest
import torch

from twinflow.pipelines import AnyStepPipeline, to_pil
from twinflow.sampling import SamplerSettings, row_generators, seeded_noise

from .tiny import PROMPTS, copy_of, train_branch

EULER = {"style": "multi", "time_dist": (1.0, 1.0, 1.0), "gaps": (0.0, 0.001)}  # the stock scheduler's times
CAPTIONS = [*PROMPTS, "a photo of a blue ring", "a photo of a circle"]


@pytest.fixture
def trained(stock):
    return train_branch(AnyStepPipeline(stock))


@pytest.mark.parametrize("guidance", [None, 4.0])
def test_multi_step_sampling_is_the_stock_pipeline(trained, guidance):
    trained.pipe.vae.register_to_config(shift_factor=0.25, scaling_factor=1.7)
    try:
        steps, seeds = 3, [5, 8]
        nfe = steps if guidance is None else 2 * steps
        ours = trained(PROMPTS[:2], seeds=seeds, nfe=nfe, guidance=guidance, **EULER)
        stock = trained.pipe(
            PROMPTS[:2],
            latents=seeded_noise(trained.latent_shape, seeds),
            num_inference_steps=steps,
            guidance_scale=guidance or 0,
            output_type="pt",
        ).images
    finally:
        trained.pipe.vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    assert stock.std() > 0.02
    torch.testing.assert_close((ours.pixels + 1) / 2, stock, rtol=0, atol=1e-4)
    assert ours.nfe == nfe


def test_images_are_encoded_to_the_normalised_posterior_mean(any_step):
    vae = any_step.pipe.vae
    pixels = 2 * torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 1
    mean = vae.encode(pixels).latent_dist.mean
    try:
        vae.register_to_config(shift_factor=0.5, scaling_factor=3.0)
        encoded = any_step.encode_images(pixels)
        torch.testing.assert_close(encoded, 3 * (mean - 0.5))
        torch.testing.assert_close(any_step.decode(encoded), vae.decode(mean).sample.clamp(-1, 1))
    finally:
        vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    assert tuple(encoded.shape[1:]) == any_step.latent_shape


@pytest.mark.parametrize(
    "options",
    [{"nfe": 1}, {"nfe": 3}, {"nfe": 4, "guidance": 2.0}, {"nfe": 3, "style": "any", "stochastic": 0.5}],
)
def test_same_seed_same_picture_in_any_batch_and_order(trained, options):
    seeds = [3, 1, 4, 1, 5]
    together = trained(CAPTIONS, seeds=seeds, **options)
    assert together.pixels.shape == (5, 3, 16, 16)
    order = [4, 2, 0, 3, 1]
    for rows, batch_size in ((range(5), 2), (order, 256), (order, 3)):
        again = trained(
            [CAPTIONS[i] for i in rows], seeds=[seeds[i] for i in rows], batch_size=batch_size, **options
        )
        torch.testing.assert_close(again.pixels, together.pixels[list(rows)], rtol=0, atol=2e-5)
    repeated = trained(CAPTIONS[:1], seeds=[seeds[0]], **options)
    torch.testing.assert_close(repeated.pixels[0], together.pixels[0], rtol=0, atol=2e-5)
    other = trained(CAPTIONS[:1], seeds=[seeds[0] + 1], **options)
    assert (other.pixels[0] - together.pixels[0]).abs().max() > 1e-2


def test_generators_follow_their_rows_through_a_batch_split(trained):
    options = {"nfe": 3, "seeds": 0}
    whole = trained(CAPTIONS, generator=row_generators(range(5)), **options)
    split = trained(CAPTIONS, generator=row_generators(range(5)), batch_size=2, **options)
    torch.testing.assert_close(split.pixels, whole.pixels, rtol=0, atol=2e-5)
    assert not torch.allclose(trained(CAPTIONS, **options).pixels, whole.pixels, atol=1e-2)


def test_one_seed_is_the_first_of_consecutive_ones(trained):
    first = trained(PROMPTS, seeds=7).pixels
    assert torch.equal(trained(PROMPTS, seeds=[7, 8, 9]).pixels, first)
    assert torch.equal(trained(PROMPTS[0], seeds=7).pixels, trained([PROMPTS[0]], seeds=[7]).pixels)


def test_settings_are_those_of_the_sampler(trained):
    settings = SamplerSettings(style="few", stochastic=1.0, gaps=(0.0, 0.5), guidance=3.0)
    given = trained(PROMPTS, nfe=4, settings=settings).pixels
    spelled = trained(PROMPTS, nfe=4, guidance=3.0, stochastic=1.0, gaps=(0.0, 0.5)).pixels
    assert torch.equal(given, spelled)
    unguided = trained(PROMPTS, nfe=4, settings=settings, guidance=1.0).pixels
    assert not torch.allclose(unguided, given, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": [1, 2]}, "3 pictures need as many seeds, got 2"),
        ({"seeds": []}, "got 0"),
        ({"nfe": 0}, "nfe must be .* at least 1, got 0"),
        ({"nfe": 1.5}, "got 1.5"),
        ({"nfe": 3, "guidance": 2.0}, "even with guidance 2.0.*got 3"),
        ({"guidance": float("nan")}, "guidance must be a finite number"),
        ({"style": "leisurely"}, "style must be one of few, any, multi, got 'leisurely'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 1 and 0"),
        ({"num_images_per_prompt": 0}, "at least 1, got 0 and"),
        ({"seed": -1}, "whole numbers from 0 to .*got -1"),
        ({"seeds": [0, -7, 1]}, "got -7"),
        ({"output_type": "jpeg"}, "got 'jpeg'"),
        ({"nfe": 2, "gaps": (0.5, 0.5)}, "gaps must leave room"),
    ],
)
def test_errors_come_before_anything_runs(any_step, options, message):
    def runs(*args):
        raise AssertionError("a network ran")

    parts = (any_step.network, any_step.pipe.text_encoder, any_step.pipe.vae)
    handles = [part.register_forward_pre_hook(runs) for part in parts]
    try:
        with pytest.raises(ValueError, match=message):
            any_step(PROMPTS, **options)
        with pytest.raises(TypeError, match="unknown sampler setting gap"):
            any_step(PROMPTS, gap=1)
        with pytest.raises(ValueError, match="at least one prompt"):
            any_step([])
    finally:
        for handle in handles:
            handle.remove()


def test_a_half_precision_network_draws_from_the_same_seeds(tiny_pipeline):
    full = train_branch(AnyStepPipeline(copy_of(tiny_pipeline)))
    half = train_branch(AnyStepPipeline(copy_of(tiny_pipeline)))
    parts = (half.pipe.transformer, half.pipe.text_encoder, half.pipe.text_encoder_2)
    try:
        for part in parts:
            part.to(torch.bfloat16)
        latents = half(PROMPTS, nfe=2).latents
    finally:
        for part in parts[1:]:
            part.to(torch.float32)
    expected = full(PROMPTS, nfe=2).latents
    assert (latents - expected).norm() < 0.05 * expected.norm()


def test_pictures_are_rounded_to_the_nearest_of_256_levels():
    levels = torch.arange(256)
    pixels = (levels.float() / 127.5 - 1).reshape(1, 1, 16, 16).expand(-1, 3, -1, -1)
    for shift in (0.0, 0.49 / 127.5, -0.49 / 127.5):
        (image,) = to_pil(pixels + shift)
        assert image.mode == "RGB"
        assert list(image.getdata(0)) == levels.tolist()
    assert to_pil(pixels[:, :1])[0].mode == "L"


def test_pictures_that_are_not_finite_are_told(caplog):
    pixels = torch.zeros(3, 3, 2, 2, dtype=torch.bfloat16)
    to_pil(pixels)
    assert not caplog.records
    pixels[1, 0, 0] = torch.tensor([float("nan"), float("inf")])
    pixels[2] = float("-inf")
    one = to_pil(pixels)[1]
    assert [one.getpixel((x, 0))[0] for x in (0, 1)] == [128, 255]
    assert "2 of 3 pictures have pixels that are not finite" in caplog.text
    assert "bfloat16" in caplog.text


def test_pictures_come_in_the_form_that_is_asked_for(trained):
    drawn = trained(PROMPTS[:2], nfe=2, seed=3)
    assert drawn.images[0].size == (16, 16)
    tensors = trained(PROMPTS[:2], nfe=2, seed=3, output_type="pt")
    assert torch.equal(tensors.images, (drawn.pixels + 1) / 2)
    arrays = trained(PROMPTS[:2], nfe=2, seed=3, output_type="np").images
    assert arrays.shape == (2, 16, 16, 3)
    latents = trained(PROMPTS[:2], nfe=2, seed=3, output_type="latent")
    assert torch.equal(latents.images, drawn.latents)
    with pytest.raises(ValueError, match="decodes nothing"):
        _ = latents.pixels


def test_several_pictures_of_a_prompt_have_consecutive_seeds(trained):
    several = trained(PROMPTS[:2], num_images_per_prompt=2, seed=5)
    single = trained([PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]], seeds=[5, 6, 7, 8])
    assert torch.equal(several.pixels, single.pixels)


def test_a_callback_sees_every_step(trained):
    seen = []
    result = trained(
        PROMPTS[:1], nfe=3, callback=lambda number, step: seen.append((number, step.nfe, step.x_hat))
    )
    assert [entry[:2] for entry in seen] == [(0, 1), (1, 2), (2, 3)]
    assert torch.equal(seen[-1][2], result.latents)


def test_a_compiled_pipeline_draws_the_same_pictures(trained):
    expected = trained(PROMPTS, nfe=2, seed=4)
    graphs = []

    def counting(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    trained.compile(fullgraph=True, backend=counting)
    drawn = trained(PROMPTS, nfe=2, seed=4)
    torch._dynamo.reset()
    assert torch.equal(drawn.pixels, expected.pixels)
    assert len(graphs) == 1  # of both steps
