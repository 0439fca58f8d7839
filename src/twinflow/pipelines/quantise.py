"""Quantised bases for a LoRA (QLoRA, arXiv 2305.14314): weights in 8 or 4 bits, computed with as if they were not.

The Linears of the repeated blocks are quantised, which hold nearly all weights. The time MLP, its target-time branch,
and what reads and writes the state stay as they are: errors there reach every token.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn

from twinflow.errors import TwinflowError
from twinflow.pipelines.reach import in_repeated_blocks

Kind = Literal["int8", "nf4"]
LIBRARIES = {"int8": "torchao", "nf4": "bitsandbytes"}
NF4_BLOCK = 64  # weights that share a scale


def check_library(kind: Kind) -> None:
    """:class:`TwinflowError` if the library that ``kind`` needs is not there: ask before weights are loaded."""
    if kind not in LIBRARIES:
        raise TwinflowError(f"quantize = {kind!r} is not known: use one of {', '.join(LIBRARIES)}")
    if find_spec(LIBRARIES[kind]) is None:
        raise TwinflowError(
            f"quantize = {kind!r} needs {LIBRARIES[kind]}: pip install 'twinflow[quantize]' "
            f"(or {LIBRARIES[kind]} alone), or leave quantize out"
        )


@torch.no_grad()
def quantise(transformer: Any, kind: Kind, *, device: torch.device | str = "cpu") -> list[str]:
    """Quantise ``transformer`` in place, moving each layer to ``device``; names of the layers. It is frozen then."""
    check_library(kind)
    blocks = in_repeated_blocks(transformer)
    named = dict(transformer.named_modules())
    layers = [name for name, module in named.items() if type(module) is nn.Linear and name in blocks]
    if (
        kind == "nf4"
    ):  # on the CPU, bitsandbytes 0.50 takes wrong scales where a row is no whole number of blocks
        layers = [name for name in layers if named[name].in_features % NF4_BLOCK == 0]
    transformer.requires_grad_(False)
    (_to_int8 if kind == "int8" else _to_nf4)(transformer, layers, device)
    return layers


def _to_int8(transformer: Any, layers: Sequence[str], device: torch.device | str) -> None:
    """One scale for each output channel, by torchao."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own internals
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        for name in layers:
            quantize_(transformer.get_submodule(name).to(device), Int8WeightOnlyConfig())


def _to_nf4(transformer: Any, layers: Sequence[str], device: torch.device | str) -> None:
    """Four bits at the quantiles of a normal distribution, by bitsandbytes."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name in layers:
        stock = transformer.get_submodule(name)
        layer = Linear4bit(
            stock.in_features,
            stock.out_features,
            bias=stock.bias is not None,
            compute_dtype=stock.weight.dtype,
            quant_type="nf4",
        )
        layer.weight = Params4bit(stock.weight.detach(), requires_grad=False, quant_type="nf4")
        layer.bias = stock.bias
        # On CPUs with AVX512-BF16 it would pack its weights at the first call without gradients, such as those that a
        # pipeline is opened by, for a kernel that no gradient goes through.
        layer.support_avx512bf16_for_cpu = False
        transformer.set_submodule(name, layer.to(device))  # moving is what quantises
