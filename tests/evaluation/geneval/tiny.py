"""A tiny random detector and a tiny random CLIP: every part of the real ones, no knowledge."""

from __future__ import annotations

import string

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Mask2FormerForUniversalSegmentation

from evaluation.geneval.mmdet_oracle import random_state
from twinflow.evaluation.geneval.convert import convert_model


def tiny_detector(seed: int = 0) -> Mask2FormerForUniversalSegmentation:
    """Random, but sure of itself: it sees objects everywhere."""
    state = random_state(seed)
    state["panoptic_head.cls_embed.weight"] = state["panoptic_head.cls_embed.weight"] * 12
    return convert_model(state)


def tiny_clip(activation: str = "quick_gelu", seed: int = 0) -> CLIPModel:
    torch.manual_seed(seed)
    text = dict(
        vocab_size=70,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        hidden_act=activation,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    vision = dict(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        hidden_act=activation,
    )
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    with torch.no_grad():  # larger than at birth, so that texts and pictures differ
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1)
    return model.eval()


def tiny_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer over single letters."""
    letters = string.ascii_lowercase + "-"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
