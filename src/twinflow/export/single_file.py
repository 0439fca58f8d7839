"""A transformer in one safetensors file, in the layout that its authors published.

diffusers has the conversion from the original layout to its own. It is inverted exactly by running it on numbered
rows: every row of every original weight gets a number of its own, and where the numbers turn up says which row of which
diffusers weight is which row of the original. What was written is then converted once more, and must be the weights
that it came from, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinflow.errors import TwinflowError
from twinflow.export.diffusers_folder import baked_stock
from twinflow.export.layouts import LAYOUTS, Layout
from twinflow.pipelines.any_step import AnyStepPipeline
from twinflow.pipelines.exported import Exported
from twinflow.tensor_files import save_tensors

# What ComfyUI reads in a file's metadata, where the authors write it, since no weight shows it: LTX-Video from 0.9.5
# on, which has this pipeline, places its first frame otherwise than versions before.
SETTINGS = {"LTXConditionPipeline": {"causal_temporal_positioning": True}}

# A weight whose name alone says something to ComfyUI: Qwen-Image-Edit-2511 shows its sources at time 0, versions before
# at that of the picture drawn, and their weights have the same names and shapes.
SOURCES_AT_ZERO = "__index_timestep_zero__"

Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]  # of diffusers: original to its own, in place


@dataclass(frozen=True)
class Part:
    """A diffusers weight ``name`` inside an original one: its row i is row ``rows[i]`` there."""

    name: str
    rows: Tensor  # (n,) int64


def to_single_file(pipe: AnyStepPipeline, path: str | Path, *, nfe: int) -> Exported:
    """Write the transformer that :func:`to_diffusers` would, as one file in the original layout.

    :class:`TwinflowError` where diffusers has no conversion for it, or none that gives this transformer.
    """
    layout_of(pipe.pipe.transformer)  # refuses before anything is computed
    stock, exported = baked_stock(pipe, nfe=nfe, exact_times=True)
    weights = original_state_dict(stock.transformer)
    if stock.transformer.config.get("zero_cond_t"):
        weights[SOURCES_AT_ZERO] = torch.empty(0)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", **exported.as_metadata()}
    if type(stock).__name__ in SETTINGS:
        metadata["config"] = json.dumps({"transformer": SETTINGS[type(stock).__name__]})
    save_tensors(weights, path, metadata=metadata)
    return exported


def original_state_dict(transformer: Any, weights: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The weights of a stock transformer under their original names, checked by diffusers' own conversion.

    ``weights``: instead of its state dict; of the same names and numbers of rows.
    """
    weights = transformer.state_dict() if weights is None else weights
    convert = converter_of(transformer)
    made: dict[str, Tensor] = {}
    for original, parts in original_parts(transformer).items():
        first = weights[parts[0].name]
        if len(parts) == 1 and torch.equal(parts[0].rows, torch.arange(len(parts[0].rows))):
            made[original] = first.contiguous()
            continue
        whole = first.new_empty((sum(len(part.rows) for part in parts), *first.shape[1:]))
        for part in parts:
            whole[part.rows] = weights[part.name]
        made[original] = whole
    back = convert(dict(made))
    if back.keys() != weights.keys() or not all(torch.equal(back[n], weights[n]) for n in weights):
        raise TwinflowError(f"{type(transformer).__name__} does not come back from its original layout")
    return made


def original_parts(transformer: Any) -> dict[str, list[Part]]:
    """What each original weight is made of, found by running diffusers' conversion on numbered rows.

    Works on the meta device too: only shapes are used.
    """
    layout, convert = layout_of(transformer), converter_of(transformer)
    shapes = {name: tuple(value.shape) for name, value in transformer.state_dict().items()}
    groups: dict[str, list[str]] = {}
    for name in shapes:
        groups.setdefault(layout.original(name), []).append(name)
    numbered, starts, start = {}, {}, 0
    for original, names in groups.items():
        rows = sum(_rows(shapes[name]) for name in names)
        numbered[original] = torch.arange(start, start + rows).reshape(-1, *[1] * (len(shapes[names[0]]) - 1))
        starts[original] = start
        start += rows
    kind = type(transformer).__name__
    try:
        converted = convert(dict(numbered))
    except Exception as error:  # a conversion made for published sizes raises whatever other sizes lead it to
        raise TwinflowError(
            f"diffusers' conversion of {kind} does not take this transformer's sizes, it is made for the published "
            f"ones: {type(error).__name__}: {error}"
        ) from error
    seen = torch.cat([rows.flatten() for rows in converted.values()]).sort().values
    wrong = sorted(set(converted) ^ set(shapes)) or [
        name for name in shapes if converted[name].numel() != _rows(shapes[name])
    ]
    if wrong or not torch.equal(seen, torch.arange(start)):
        raise TwinflowError(
            f"diffusers' conversion of {kind} does not give this transformer's weights ({', '.join(wrong[:4])}): it "
            "is made for other, published sizes"
        )
    return {
        original: [Part(name, converted[name].flatten() - starts[original]) for name in names]
        for original, names in groups.items()
    }


def converter_of(transformer: Any) -> Convert:
    """diffusers' conversion of the original layout to its own."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    kind = type(transformer).__name__
    if kind not in SINGLE_FILE_LOADABLE_CLASSES:
        raise TwinflowError(f"diffusers has no conversion from an original layout for {kind}")
    function = SINGLE_FILE_LOADABLE_CLASSES[kind]["checkpoint_mapping_fn"]  # type: ignore[index]
    return lambda checkpoint: function(  # type: ignore[operator]
        checkpoint=checkpoint, config=dict(transformer.config)
    )


def layout_of(transformer: Any) -> Layout:
    kind = type(transformer).__name__
    layout = LAYOUTS.get(kind)
    if layout is None:
        known = ", ".join(name for name, known in LAYOUTS.items() if not known.why_not)
        raise TwinflowError(f"the original layout of {kind} is not known; those of {known} are")
    if layout.why_not:
        raise TwinflowError(layout.why_not)
    return layout


def _rows(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 1
