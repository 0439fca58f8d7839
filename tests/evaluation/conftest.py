"""A CLIP of random weights, in the real layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A complete CLIP with random weights, as the hub has them: config, weights, tokenizer, preprocessing."""
    import json

    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    vocabulary = {token: i for i, token in enumerate(TOKENS)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=20)
    tokenizer.save_pretrained(folder)
    text = {"vocab_size": 54, "bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 20}
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=text | sizes | {"hidden_act": "gelu"},
        vision_config=sizes | {"hidden_act": "gelu", "image_size": 24, "patch_size": 8},
        projection_dim=12,
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    for parameter in model.parameters():  # nothing at zero or one, so that nothing can be mixed up
        nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    size = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    CLIPImageProcessorPil(**size).save_pretrained(folder)
    return folder
