"""A new pipeline: one token a word, and a transformer that starts as zero."""

import pytest
import torch

from twinflow.data.shapeworld import TASKS, all_captions
from twinflow.data.shapeworld.captions import vocabulary
from twinflow.pipelines.new import new_pipeline, word_tokenizer

from .tiny import tiny_architecture


@pytest.fixture(scope="module")
def new():
    return new_pipeline(tiny_architecture(), seed=0)


def test_every_word_is_one_token_and_comes_back(new):
    words = vocabulary("full")
    ids = {word: new.tokenizer(word).input_ids[1:-1] for word in words}
    assert all(len(token) == 1 for token in ids.values())
    assert len({token[0] for token in ids.values()}) == len(words)
    for task in TASKS:
        for caption in all_captions("full", task)[:50]:
            tokens = new.tokenizer(caption["prompt"]).input_ids
            assert len(tokens) == len(caption["prompt"].split()) + 2
            assert new.tokenizer.decode(tokens, skip_special_tokens=True).strip() == caption["prompt"]


def test_tokenizer_survives_the_disk(new, tmp_path):
    from transformers import CLIPTokenizer

    new.tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    texts = [*vocabulary("full"), "a photo of three red rings", "", "zebras, unheard of!"]
    padded = {"padding": "max_length", "truncation": True}
    assert again(texts, **padded).input_ids == new.tokenizer(texts, **padded).input_ids
    assert again.model_max_length == new.tokenizer.model_max_length
    assert (again.pad_token_id, again.eos_token_id) == (
        new.tokenizer.pad_token_id,
        new.tokenizer.eos_token_id,
    )


def test_words_outside_the_vocabulary_fall_into_letters():
    tokenizer = word_tokenizer(["red", "circle"], max_length=16)
    assert len(tokenizer("red").input_ids) == 3
    assert tokenizer.unk_token_id not in tokenizer("zed").input_ids[1:-1]
    assert len(tokenizer("zed").input_ids) > 3


def test_transformer_starts_as_zero_and_blocks_as_the_identity(new):
    transformer = new.transformer
    seen = []
    for block in transformer.transformer_blocks:
        block.register_forward_hook(
            lambda module, args, kwargs, output: seen.append((kwargs["hidden_states"], output[1])),
            with_kwargs=True,
        )
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(2, 4, 8, 8, generator=generator)
    embeds, _, pooled, _ = new.encode_prompt(
        ["a photo of a ring", "two circles"], None, None, do_classifier_free_guidance=False
    )
    out = transformer(
        hidden_states=x_t,
        timestep=torch.tensor([1000.0, 20.0]),
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
    ).sample
    assert out.shape == x_t.shape
    assert not out.any()
    for before, after in seen:
        assert torch.equal(before, after)
    (out - torch.ones_like(out)).square().mean().backward()
    assert transformer.proj_out.weight.grad.any()  # zero is a start, not a trap


def test_a_seed_is_a_pipeline_and_the_global_generator_is_left_alone(new):
    state = torch.get_rng_state()
    same, other = new_pipeline(tiny_architecture(), seed=0), new_pipeline(tiny_architecture(), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        weights = getattr(new, part).state_dict()
        for name, value in getattr(same, part).state_dict().items():
            assert torch.equal(value, weights[name]), (part, name)
    assert not torch.equal(other.vae.encoder.conv_in.weight, new.vae.encoder.conv_in.weight)
    assert not torch.equal(
        new.text_encoder.state_dict()["text_projection.weight"],
        new.text_encoder_2.state_dict()["text_projection.weight"],
    )
    assert not any(getattr(new, part).training for part in ("transformer", "vae", "text_encoder"))
