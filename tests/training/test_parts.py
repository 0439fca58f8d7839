"""The parts that are trained before the transformer: they learn, and what they save is a stock pipeline."""

from dataclasses import replace

import pytest
import torch

from pipelines.tiny import tiny_architecture
from twinflow.data.shapeworld import TASKS, ShapeWorldDataset, all_captions
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.new import new_pipeline
from twinflow.training.parts import (
    AutoencoderPart,
    CaptionFacts,
    CaptionReading,
    Reconstruction,
    TextEncodersPart,
)
from twinflow.training.weights import spare_parts


@pytest.fixture
def pipe():
    return new_pipeline(replace(tiny_architecture(), image_size=32, layers=1))


def test_parts_that_are_trained_stay_on_the_device_and_the_others_may_leave_it(pipe, pixels):
    """As they do where the data is encoded once and a GPU trains: its text encoders and autoencoder once left, too."""
    texts = TextEncodersPart(pipe, sizes=[3, 3])
    assert set(spare_parts(texts, keep=("transformer",))) == {"text_encoder_3", "vae"} & set(pipe.components)
    pictures = AutoencoderPart(pipe, calibration=pixels.split(10))
    assert "vae" not in spare_parts(pictures, keep=("transformer",))
    assert {"text_encoder", "text_encoder_2"} <= set(spare_parts(pictures, keep=("transformer",)))


def test_new_heads_are_where_the_encoders_are(pipe):
    pipe.text_encoder.to("meta")
    pipe.text_encoder_2.to("meta")
    part = TextEncodersPart(pipe, sizes=[3, 3])
    assert {parameter.device.type for parameter in part.network.parameters()} == {"meta"}


@pytest.fixture(scope="module")
def pixels():
    dataset = ShapeWorldDataset("tiny", length=24)
    return torch.stack([item["pixels"] for item in dataset])


def losses(part, objective, batches, *, lr: float) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(part.network.parameters(), lr=lr)
    values = []
    for x, cond in batches:
        optimizer.zero_grad()
        step = objective.step(part.field, x, cond, generator=generator)
        step.loss.backward()
        optimizer.step()
        values.append(step.loss.item())
    return values


def test_autoencoder_learns_and_its_latents_are_normalised_when_saved(pipe, pixels, tmp_path):
    part = AutoencoderPart(pipe, calibration=pixels.split(10))
    x = part.encode_images(pixels)
    assert torch.equal(x, pixels)
    values = losses(part, Reconstruction(), [(x[i % 3 :: 3], None) for i in range(30)], lr=3e-3)
    assert sum(values[-3:]) < 0.6 * sum(values[:3])
    for name in ("first", "second"):  # a part is saved more than once in a run
        part.save_pretrained(tmp_path / name)
        latents = AnyStepPipeline.from_pretrained(tmp_path / name).encode_images(pixels)
        assert abs(latents.mean().item()) < 1e-3
        assert abs(latents.var(correction=0).item() - 1) < 1e-3
    assert part.encode_prompts(["a photo of a circle"]) is None


def test_reconstruction_is_its_formula(pipe, pixels):
    part, objective = AutoencoderPart(pipe, calibration=[]), Reconstruction(l1=0.3, noise=0.2, spread=0.5)
    x = pixels[:4]
    with torch.no_grad():
        pipe.vae.encoder.conv_out.weight.mul_(40)  # latents wide enough for the spread to count
        step = objective.step(part.field, x, None, generator=torch.Generator().manual_seed(3))
        z = pipe.vae.encode(x).latent_dist.mean
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
        y = pipe.vae.decode(z + 0.2 * noise).sample
    square, absolute, spread = (y - x).square().mean(), (y - x).abs().mean(), z.square().mean() - 1
    assert spread > 0
    torch.testing.assert_close(step.loss, square + 0.3 * absolute + 0.5 * spread)
    torch.testing.assert_close(step.rows.loss.mean(), step.loss)
    torch.testing.assert_close(step.losses, {"square": square, "absolute": absolute})


@pytest.mark.parametrize("key", ["l1", "noise", "spread"])
def test_reconstruction_refuses_negative_weights(key):
    with pytest.raises(ValueError, match=f"{key} must be at least 0, got -1"):
        Reconstruction(**{key: -1})


@pytest.mark.parametrize(
    ("prompt", "facts"),
    [
        # shape and colour of the first object, of the second, number, relation; 0 where unsaid
        ("a photo of a square", [2, 0, 0, 0, 1, 0]),
        ("a photo of a circle and a triangle", [1, 0, 3, 0, 0, 0]),
        ("a photo of three squares", [2, 0, 0, 0, 3, 0]),
        ("a photo of a blue triangle", [3, 4, 0, 0, 1, 0]),
        ("a photo of a circle right of a square", [1, 0, 2, 0, 0, 2]),
        ("a photo of a triangle below a circle", [3, 0, 1, 0, 0, 4]),
        ("a photo of a red circle and a white square", [1, 1, 2, 5, 0, 0]),
    ],
)
def test_facts_by_hand(prompt, facts):
    captions = {c["prompt"]: c for task in TASKS for c in all_captions("tiny", task)}
    assert CaptionFacts("tiny", length=1).facts(captions[prompt]) == facts


@pytest.mark.parametrize("level", ["tiny", "full"])
def test_facts_tell_every_caption_apart_and_fit_their_sizes(level):
    dataset = CaptionFacts(level, length=1)
    facts = [tuple(dataset.facts(c)) for task in TASKS for c in all_captions(level, task)]
    assert len(set(facts)) == len(facts)
    assert (0,) * 6 not in facts  # those of the empty caption
    assert all(max(column) < size for column, size in zip(zip(*facts), dataset.sizes, strict=True))


def test_captions_and_facts_are_a_function_of_seed_and_index():
    dataset = CaptionFacts("tiny", length=150, seed=3)
    items = list(dataset)
    assert len(items) == 150
    longer = CaptionFacts("tiny", length=500, seed=3)
    assert all(longer[i]["caption"] == item["caption"] for i, item in enumerate(items))
    empty = [item["pixels"] for item in items if item["caption"] == ""]
    assert empty
    assert not torch.stack(empty).any()
    with pytest.raises(IndexError):
        dataset[150]


def test_text_encoders_learn_to_read_and_the_heads_are_not_saved(pipe, tmp_path):
    dataset = CaptionFacts("tiny", length=64)
    part = TextEncodersPart(pipe, sizes=dataset.sizes)
    facts = part.encode_images(torch.stack([item["pixels"] for item in dataset]))
    ids = part.encode_prompts([item["caption"] for item in dataset])
    assert ids.shape == (64, pipe.tokenizer.model_max_length)
    batches = [(facts[i % 2 :: 2], ids[i % 2 :: 2]) for i in range(60)]
    values = losses(part, CaptionReading(), batches, lr=5e-3)
    assert sum(values[-3:]) < 0.4 * sum(values[:3])

    part.save_pretrained(tmp_path)
    again = AnyStepPipeline.from_pretrained(tmp_path)
    for name in ("text_encoder", "text_encoder_2"):
        trained = getattr(pipe, name).state_dict()
        saved = getattr(again.pipe, name).state_dict()
        assert saved.keys() == trained.keys()
        assert all(torch.equal(saved[key], value) for key, value in trained.items())


def test_empty_caption_is_read_like_any_other(pipe):
    part = TextEncodersPart(pipe, sizes=CaptionFacts("tiny", length=1).sizes)
    ids = part.encode_prompts(["", "a photo of a circle"])
    facts = torch.tensor([[0.0] * 6, [1.0, 0, 0, 0, 1, 0]])
    step = CaptionReading().step(part.field, facts, ids)
    assert step.rows.loss.isfinite().all()
    alone = CaptionReading().step(part.field, facts[:1], ids[:1])
    torch.testing.assert_close(alone.loss, step.rows.loss[0])


def test_reader_sees_the_two_outputs_that_the_pipeline_uses(pipe):
    # With heads that copy, the logits are the pooled features and the end token's features below the last layer.
    part = TextEncodersPart(pipe, sizes=[16])
    for heads in part.network.heads:
        torch.nn.init.eye_(heads[0].weight)
        torch.nn.init.zeros_(heads[0].bias)
    prompts = ["a photo of two rings", ""]
    with torch.no_grad():
        read = [logits[0] for logits in part.network(part.encode_prompts(prompts))]
        embeds, _, pooled, _ = pipe.encode_prompt(prompts, None, None, do_classifier_free_guidance=False)
    torch.testing.assert_close(torch.cat([read[0], read[2]], dim=1), pooled)
    ends = torch.tensor([len(prompt.split()) + 1 for prompt in prompts])
    torch.testing.assert_close(torch.cat([read[1], read[3]], dim=1), embeds[torch.arange(2), ends])
