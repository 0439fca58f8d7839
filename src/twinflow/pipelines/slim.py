"""Networks for one step only: layers that see nothing but the time are replaced by what they give at t = 1, r = 0.

A modulation sees one row a sample, which holds the time alone, and yet it is a third of the weights of Qwen-Image. At
one time its output is a constant. Such a network is stock code with :class:`Constant` in place of these layers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from twinflow.errors import TwinflowError

WEIGHTS_FILE, CONFIG_FILE, PARTS = "transformer.safetensors", "transformer.json", "pipeline"


class Constant(nn.Module):
    """Stands for a Linear whose output does not depend on its input: ``value`` (R, outputs).

    Each of the R rows is that of as many rows of the input, in order: with tokens of a source picture at time 0,
    rows come as those at t after one another, and then those at 0.
    """

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, outputs = x.shape[:-1], self.value.shape[-1]
        return self.value.repeat_interleave(rows.numel() // len(self.value), 0).reshape(*rows, outputs)


def replace_by_constants(transformer: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Put constants in place of the Linears ``values`` names, in place."""
    for name, value in values.items():
        transformer.set_submodule(name, Constant(value))


def load_slim_stock(folder: Path, *, dtype: torch.dtype) -> Any:
    """The pipeline of a folder that :func:`twinflow.export.to_slim` wrote; its transformer is not a stock one."""
    import diffusers
    from accelerate import init_empty_weights

    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        weights = load_file(folder / WEIGHTS_FILE)
        with init_empty_weights():
            transformer = getattr(diffusers, config["_class_name"]).from_config(config)
        constants = {
            name.removesuffix(".value"): value for name, value in weights.items() if name.endswith(".value")
        }
        replace_by_constants(transformer, constants)
        transformer.load_state_dict(weights, assign=True)
        transformer.eval()
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            folder / PARTS, transformer=None, dtype=dtype, use_safetensors=True
        )
        pipe.register_modules(transformer=transformer.to(dtype))
        return pipe
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise TwinflowError(f"{folder} is no complete slim export: {error}") from error
