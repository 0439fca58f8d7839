"""Export for one step only, without the layers that see nothing but the time.

Which layers these are is found by watching: at t = 1, r = 0, with prompts, states and conditions changed in every way,
their output stays what it is. Where a modulation also sees the prompt (Stable Diffusion 3, FLUX.1, HunyuanVideo: a
pooled text embedding is added to that of the time), it can't go, and the family is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twinflow.errors import TwinflowError
from twinflow.export.diffusers_folder import baked_stock
from twinflow.pipelines.any_step import AnyStepNetwork, AnyStepPipeline
from twinflow.pipelines.condition import Condition
from twinflow.pipelines.exported import Exported
from twinflow.pipelines.slim import CONFIG_FILE, PARTS, WEIGHTS_FILE, replace_by_constants
from twinflow.pipelines.time_path import linears
from twinflow.sampling import seeded_noise
from twinflow.tensor_files import let_read, save_tensors

PROMPT = "a prompt of a good many words, so that it has tokens enough"
CLOSE = 1e-5  # outputs that differ by less, relatively, are the same sum in another order


@dataclass(kw_only=True)
class SlimExport:
    exported: Exported
    parameters: int  # of the stock transformer
    kept: int  # of the slim one
    replaced: list[str]  # names of the layers that are constants now


def to_slim(pipe: AnyStepPipeline, path: str | Path) -> SlimExport:
    """Write ``pipe`` for exactly one step without its modulation layers: ``AnyStepPipeline.from_pretrained(path,
    target_time=False)`` opens it. ``pipe`` itself is not changed.

    :class:`TwinflowError` where the modulation depends on more than the time.
    """
    stock, exported = baked_stock(pipe, nfe=1)
    transformer, folder = stock.transformer, Path(path)
    values = constant_layers(pipe, transformer)
    parameters = sum(p.numel() for p in transformer.parameters())
    replace_by_constants(transformer, values)
    (folder / PARTS).mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in transformer.state_dict().items()}
    save_tensors(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = {"_class_name": type(transformer).__name__, **dict(transformer.config)}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, default=list) + "\n")
    stock.save_config(folder / PARTS)
    index_file = folder / PARTS / "model_index.json"
    index = json.loads(index_file.read_text()) | {"transformer": [None, None]}
    index_file.write_text(json.dumps(index, indent=2) + "\n")
    for name, part in stock.components.items():
        if name != "transformer" and hasattr(part, "save_pretrained"):
            part.save_pretrained(folder / PARTS / name)
    let_read(folder / PARTS, like="model_index.json")
    exported = replace(exported, kind="slim")
    exported.save(folder)
    return SlimExport(
        exported=exported,
        parameters=parameters,
        kept=sum(p.numel() for p in transformer.parameters()),
        replaced=list(values),
    )


@torch.no_grad()
def constant_layers(pipe: AnyStepPipeline, transformer: Any) -> dict[str, Tensor]:
    """Output (R, channels) of every Linear of the baked ``transformer`` that sees the time alone, at t = 1."""
    time_mlp = transformer.get_submodule(pipe.adapter.wiring.time_path.mlp)
    kept = {id(layer) for layer in linears(time_mlp)}  # small, and by it a pipeline is recognised
    layers = {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in kept
    }
    seen: dict[str, Tensor] = {}
    varying: set[str] = set()
    many_rows: set[str] = set()
    for rows, outputs in _probes(pipe, transformer, layers):
        for name, output in outputs.items():
            output = output.reshape(-1, output.shape[-1])
            if len(output) > 2 * rows:  # tokens, unless they are all alike
                if not _same(output, output[:1]):
                    many_rows.add(name)
                    continue
                output = output[:rows]
            output = output.unflatten(
                0, (-1, rows)
            )  # (R, rows, channels): the rows of a time after one another
            first = seen.setdefault(name, output[:, 0].clone())
            if len(output) != len(first) or not _same(output, first[:, None]):
                varying.add(name)
    modulations = varying - many_rows
    if modulations:
        name = max(modulations, key=lambda name: layers[name].weight.numel())
        raise TwinflowError(
            f"a slim export of {type(transformer).__name__} is not possible: its modulation depends on the prompt as "
            f"well as on the time ({name}, for one, which sees a pooled text embedding), so it is no constant"
        )
    constant = {name: value for name, value in seen.items() if name not in many_rows}
    if not constant:
        raise TwinflowError(
            f"{type(transformer).__name__} has no layer that sees the time alone: nothing to slim"
        )
    return {name: value[:1].clone() if _same(value, value[:1]) else value for name, value in constant.items()}


def _probes(
    pipe: AnyStepPipeline, transformer: Any, layers: dict[str, nn.Linear]
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Rows, and outputs of ``layers``, of calls at t = 1 that differ in all but the time."""
    network = AnyStepNetwork(transformer, pipe.adapter)
    plain = pipe.encode_prompts([PROMPT])
    others = [
        plain,
        _shaken(plain, seed=1),
        _shaken(plain, seed=2),
        plain.concat([plain, _shaken(plain, seed=3)]),
    ]
    for seed, cond in enumerate(others):
        rows = 2 if seed == len(others) - 1 else 1
        outputs: dict[str, Tensor] = {}
        handles = [module.register_forward_hook(_keep(outputs, name)) for name, module in layers.items()]
        try:
            x = seeded_noise(pipe.latent_shape, [10 * seed + row for row in range(rows)], device=pipe.device)
            t = torch.ones(rows, device=pipe.device)
            network(x, t, torch.zeros_like(t), cond)
        finally:
            for handle in handles:
                handle.remove()
        yield rows, outputs


def _keep(outputs: dict[str, Tensor], name: str) -> Any:
    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        outputs[name] = output.detach()

    return hook


def _shaken(cond: Condition, *, seed: int) -> Condition:
    """With noise in every embedding, so that nothing but the time is what it was."""
    generator = torch.Generator().manual_seed(seed)

    def shake(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            return value + noise.to(value) * value.float().std(correction=0).clamp_min(0.1).to(value)
        return value

    return replace(
        cond,
        tensors={name: value if "mask" in name or name == "guidance" else shake(value)
                 for name, value in cond.tensors.items()},
        lists={name: [shake(entry) for entry in entries] for name, entries in cond.lists.items()},
    )  # fmt: skip


def _same(one: Tensor, other: Tensor) -> bool:
    scale = other.float().abs().max().clamp_min(1e-30)
    return bool((one.float() - other.float()).abs().max() <= CLOSE * scale)


def slim_size(transformer: nn.Module, replaced: list[str]) -> tuple[int, int]:
    """Parameters of ``transformer``, and what would be left of them if the layers that ``replaced`` names, in any of
    its blocks, were constants. Only shapes are used: the transformer may be on the meta device.
    """
    alike = {_shape_of(name) for name in replaced}
    parameters = sum(p.numel() for p in transformer.parameters())
    kept = parameters
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and _shape_of(name) in alike:
            kept += module.out_features - sum(p.numel() for p in module.parameters())
    return parameters, kept


def _shape_of(name: str) -> str:
    """A layer's name without the numbers of its blocks; those of the layer itself, as in ``linear_2``, stay."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "#", name)
