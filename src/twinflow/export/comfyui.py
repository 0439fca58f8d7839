"""LoRA files as ComfyUI reads them.

It knows the weights of a model by the names of its own network, which are those of the authors' layout but for a few.
Of any weight, not only a matrix, a file can hold the difference itself: ``NAME.diff``, and ``NAME.diff_b`` of a bias.
What has a name that it does not know is passed over, with a line in its log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from twinflow.export.single_file import layout_of, original_parts

if TYPE_CHECKING:
    from twinflow.export.lora import Factors

# ComfyUI applies "diffusion_model.NAME" to the weight NAME of its own network, which is known for these.
COMFYUI = (
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
    "Flux2Transformer2DModel",
    "QwenImageTransformer2DModel",
    "ZImageTransformer2DModel",
    "Lumina2Transformer2DModel",
    "WanTransformer3DModel",
    "LTXVideoTransformer3DModel",
    "HunyuanVideoTransformer3DModel",
)


def comfyui_keys(transformer: Any, factors: Mapping[str, Factors]) -> dict[str, Tensor]:
    """Of the original layout, where a fused weight's parts have factors of their own in rows of its own, under the
    names of ComfyUI's network."""
    weights = {}
    layout = layout_of(transformer)
    bare = _without_adapters(transformer)
    for original, parts in original_parts(bare).items():
        touched = [(part, factors[part.name.removesuffix(".weight")]) for part in parts
                   if part.name.endswith(".weight") and part.name.removesuffix(".weight") in factors]  # fmt: skip
        if not touched:
            continue
        down = torch.cat([own.down for _, own in touched])
        up = torch.zeros(sum(len(part.rows) for part in parts), len(down), dtype=down.dtype)
        column = 0
        for part, own in touched:
            up[part.rows, column : column + len(own.down)] = own.up.cpu()
            column += len(own.down)
        (name,) = layout.in_comfyui(original)  # its versions differ in those of norms alone
        key = f"diffusion_model.{name.removesuffix('.weight')}"
        # Without an alpha the scale is 1. ComfyUI knows these names as well as lora_down and lora_up.
        weights[f"{key}.lora_A.weight"] = down.float().cpu().contiguous()
        weights[f"{key}.lora_B.weight"] = up.float().contiguous()
    return weights


def comfyui_differences(
    transformer: Any, changes: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], set[str]]:
    """``changes`` of biases, norms, tables and convolutions, by their stock names, as entries of a file; and the names
    of those that it holds.
    """
    weights: dict[str, Tensor] = {}
    held: set[str] = set()
    layout = layout_of(transformer)
    for original, parts in original_parts(_without_adapters(transformer)).items():
        touched = [part for part in parts if part.name in changes]
        if not touched:
            continue
        first = changes[touched[0].name]
        whole = torch.zeros(sum(len(part.rows) for part in parts), *first.shape[1:])
        for part in touched:
            whole[part.rows] = changes[part.name].float().cpu()
        for name in layout.in_comfyui(original):
            if name.endswith(".bias"):
                weights[f"diffusion_model.{name.removesuffix('.bias')}.diff_b"] = whole.clone()
            else:
                weights[f"diffusion_model.{name.removesuffix('.weight')}.diff"] = whole.clone()
        held.update(part.name for part in touched)
    return weights, held


def _without_adapters(transformer: Any) -> Any:
    """The stock transformer's shapes, on the meta device."""
    with torch.device("meta"):
        return type(transformer).from_config(dict(transformer.config))
