"""A small text-to-image pipeline from scratch: every part of it a stock class, every weight random.

It is Stable Diffusion 3 in miniature: two CLIP text encoders over a word-level vocabulary, an AutoencoderKL,
and an MMDiT. The parts are then trained one after another by recipes (text encoders, autoencoder, transformer).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of a new pipeline."""

    words: tuple[str, ...]  # the vocabulary; every word becomes one token
    max_words: int  # longest caption
    image_size: int = 32  # pixels
    autoencoder_channels: tuple[int, ...] = (
        16,
        32,
        48,
        64,
    )  # one level each; all but the first halve the size
    autoencoder_attention: bool = True  # in its middle: every place of the latents sees all the others
    latent_channels: int = 4
    text_width: int = 64  # of each of the two text encoders
    width: int = 96  # of the transformer
    layers: int = 11
    head_width: int = 32

    @property
    def latent_size(self) -> int:
        return self.image_size // 2 ** (len(self.autoencoder_channels) - 1)


def new_pipeline(arch: Architecture, *, seed: int = 0) -> Any:
    """A random ``StableDiffusion3Pipeline`` of these sizes."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = word_tokenizer(arch.words, max_length=arch.max_words + 2)
        levels = len(arch.autoencoder_channels)
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
            block_out_channels=list(arch.autoencoder_channels),
            layers_per_block=1,
            latent_channels=arch.latent_channels,
            norm_num_groups=8,
            sample_size=arch.image_size,
            scaling_factor=1.0,
            shift_factor=0.0,  # the stock pipeline can't do without a number
            mid_block_add_attention=arch.autoencoder_attention,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        transformer = SD3Transformer2DModel(
            sample_size=arch.latent_size,
            pos_embed_max_size=arch.latent_size,
            patch_size=1,
            in_channels=arch.latent_channels,
            out_channels=arch.latent_channels,
            num_layers=arch.layers,
            attention_head_dim=arch.head_width,
            num_attention_heads=arch.width // arch.head_width,
            caption_projection_dim=arch.width,
            joint_attention_dim=2 * arch.text_width,
            pooled_projection_dim=2 * arch.text_width,
            qk_norm="rms_norm",
        )
        start_as_zero(transformer)
        pipe: Any = StableDiffusion3Pipeline(
            transformer=transformer,
            vae=vae,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            text_encoder=_text_encoder(arch, tokenizer),
            text_encoder_2=_text_encoder(arch, tokenizer),
            **_silent_t5(2 * arch.text_width),
        )
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3):
        part.eval()
    return pipe


def word_tokenizer(words: Sequence[str], *, max_length: int) -> Any:
    """A stock CLIPTokenizer in which every word of ``words`` is one token; other words fall into letters.

    The merges are learnt by byte-pair encoding on the words themselves until none is left in pieces.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=100_000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator([" ".join(words)], trainer)
    learnt = json.loads(bpe.to_str())["model"]["merges"]
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in learnt]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += [a + b for a, b in merges if a + b not in tokens]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)  # type: ignore[arg-type]
    split = [word for word in words if len(tokenizer(word).input_ids) != 3]
    if split:
        raise RuntimeError(f"these words did not become single tokens: {split}")
    return tokenizer


def _text_encoder(arch: Architecture, tokenizer: Any) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=arch.text_width,
        intermediate_size=2 * arch.text_width,
        num_attention_heads=4,
        # SD3 reads the words' features below the last layer, so one of two layers has mixed them.
        num_hidden_layers=2,
        projection_dim=arch.text_width,
        max_position_embeddings=arch.max_words + 2,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    encoder = CLIPTextModelWithProjection(config)
    for name, parameter in encoder.named_parameters():
        # CLIP's own start (std 0.02) is for long training; here words must be far apart from the first step.
        if "embedding" in name:
            nn.init.normal_(parameter, std=0.5 if "token" in name else 0.25)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return encoder


def _silent_t5(width: int) -> dict[str, Any]:
    """The T5 slot, which a saved SD3 pipeline can't leave empty, filled with an encoder that says nothing.

    The weight of its final norm is zero, so its output is the zeros that SD3 uses in place of a missing T5.
    """
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "▁", *map(chr, range(33, 127))]
    scores = [(piece, 0.0 if i < 3 else -2.0 - 1e-3 * i) for i, piece in enumerate(pieces)]
    tokenizer = T5Tokenizer(vocab=scores, extra_ids=0, additional_special_tokens=[])
    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=8, num_layers=1, num_heads=1)
    encoder = T5EncoderModel(config)
    nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    return {"tokenizer_3": tokenizer, "text_encoder_3": encoder}


def start_as_zero(transformer: Any) -> None:
    """adaLN-zero (arXiv 2212.09748): every block starts as the identity and the output as zero."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and (
            (name.endswith("linear") and "norm" in name) or name == "proj_out"
        ):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
