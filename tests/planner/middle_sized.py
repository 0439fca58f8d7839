"""Qwen-Image with seven blocks, which outweigh what they compute."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from families import FAMILIES


def middle_sized_stock(*, heads: int, dtype: torch.dtype = torch.float32) -> Any:
    stock = FAMILIES["qwen"].stock()
    torch.manual_seed(0)
    stock.transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=7,
        attention_head_dim=32,
        num_attention_heads=heads,
        joint_attention_dim=16,
        axes_dims_rope=(8, 12, 12),
    ).to(dtype)
    return stock
