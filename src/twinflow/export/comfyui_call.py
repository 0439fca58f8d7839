"""How an export is run in ComfyUI: which of its nodes, and what they are given."""

from __future__ import annotations

from typing import Any

import numpy as np

from twinflow.pipelines.exported import Exported


def how_in_comfyui(exported: Exported, *, load: str, guidance_is_an_input: bool = False) -> str:
    """The nodes that draw with an export for ComfyUI, and what they are given; ``load``: what loads the file.

    Their times are read as decimals, and have to be those of the fold to the last bit of an fp32 number.
    """
    times = ", ".join(decimal(time) for time in (*exported.times, 0.0))
    given = exported.call.get("guidance_scale")
    guidance = f" FluxGuidance {given:g};" if guidance_is_an_input and given is not None else ""
    return (
        f"ComfyUI: {load};{guidance} ManualSigmas `{times}`; KSamplerSelect `lcm` (fresh noise at each step); "
        "CFGGuider, cfg 1; SamplerCustomAdvanced."
    )


def decimal(number: float) -> str:
    """The shortest decimal, without an exponent, that reads back as the same fp32 number."""
    return np.format_float_positional(np.float32(number), trim="-")


def not_in_comfyui(transformer: Any) -> str:
    """Why ComfyUI's network can't have these sizes; empty if nothing is known against it."""
    if type(transformer).__name__ != "SD3Transformer2DModel":
        return ""
    config = transformer.config
    heads = config.num_attention_heads
    sizes = {
        f"{config.in_channels} channels of latents for 16": config.in_channels != 16,
        f"patches of {config.patch_size} for 2": config.patch_size != 2,
        f"heads of {config.attention_head_dim} for 64": config.attention_head_dim != 64,
        f"{config.num_layers} blocks for as many as heads, {heads}": config.num_layers != heads,
    }
    wrong = [text for text, is_wrong in sizes.items() if is_wrong]
    return f"ComfyUI runs no Stable Diffusion 3 of these sizes: it has {', '.join(wrong)}" if wrong else ""
