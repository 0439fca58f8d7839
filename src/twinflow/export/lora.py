"""Export as a LoRA file: on the base model and with the few-step scheduler, it draws the few-step pictures.

The bake has rank K as it is. A trained adapter is put beside it, and for a run that trained all weights the
difference from a given base is cut to a rank, with what that loses reported.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from twinflow.assets import locate
from twinflow.errors import TwinflowError
from twinflow.export.bake import bake_target_time
from twinflow.export.card import write_lora_card
from twinflow.export.comfyui import COMFYUI, comfyui_differences, comfyui_keys
from twinflow.export.diffusers_folder import makes_clips, note
from twinflow.export.stock import adapter_factors, adapter_layers, check_exportable, schedule_of, stock_copy
from twinflow.hub import hub_or_cache
from twinflow.pipelines import lora
from twinflow.pipelines import target_time as tt
from twinflow.pipelines.any_step import AnyStepPipeline
from twinflow.pipelines.checkpoint import LORA_PREFIX, METADATA_KEY
from twinflow.pipelines.exported import Exported
from twinflow.pipelines.model_name import CONFIG_FILE, INDEX_FILE, check_name
from twinflow.tensor_files import save_tensors

FILES = {"diffusers": "pytorch_lora_weights.safetensors", "comfyui": "comfyui_lora.safetensors"}
DENSE = 1024  # up to this width singular values are computed exactly


@dataclass(frozen=True)
class Factors:
    """``up @ down`` is added to a weight."""

    down: Tensor  # (rank, inputs) fp64
    up: Tensor  # (outputs, rank) fp64

    def beside(self, other: Factors) -> Factors:
        """The sum of both."""
        return Factors(torch.cat([self.down, other.down]), torch.cat([self.up, other.up], dim=1))


@dataclass(kw_only=True)
class LoraExport:
    """What was written. ``lost``: share of the difference from ``base`` (by norm) that the file does not hold.
    ``left_out``: trained tensors that it can't hold, with their relative change: in diffusers' format biases, norms and
    convolutions."""

    file: Path
    exported: Exported
    ranks: dict[str, int]
    lost: float = 0.0
    left_out: dict[str, float] = field(default_factory=dict)


def to_lora(
    pipe: AnyStepPipeline,
    path: str | Path,
    *,
    nfe: int,
    format: Literal["diffusers", "comfyui"] = "diffusers",
    base: str | Path | nn.Module | None = None,
    rank: int = 64,
) -> LoraExport:
    """Write a LoRA into the folder ``path``, for ``nfe`` steps with the few-step scheduler, guidance off.

    It is for the base that ``pipe`` was loaded from where a LoRA was trained, else for the weights of ``pipe`` itself.
    ``base``: a diffusers folder, a hub id or a transformer instead, from which all weights were trained: the
    difference is added at ``rank``.

    "diffusers" writes for ``load_lora_weights``; "comfyui" the names of the original layout, below
    ``diffusion_model.``. :class:`TwinflowError` says what is not possible.
    """
    if format not in FILES:
        raise TwinflowError(f"format must be one of {', '.join(FILES)}, got {format!r}")
    if rank < 1:
        raise TwinflowError(f"rank must be at least 1, got {rank}")
    times = schedule_of(nfe)
    check_exportable(pipe, nfe=nfe)
    _check_format(pipe, format)
    folder = Path(path)
    _check_folder(folder, format, times)
    stock = stock_copy(pipe, times)
    factors = {
        name: Factors(*adapter_factors(layer)) for name, layer in adapter_layers(stock.transformer).items()
    }
    difference = _Difference(factors)
    if base is not None:
        if factors:
            raise TwinflowError(
                "base= is for runs that trained all weights; this one trained a LoRA on its base"
            )
        difference = _difference(stock.transformer, _transformer_of(base, stock), rank=rank)
        factors = difference.factors
    residual = 0.0
    if tt.has_target_time(stock.transformer):
        bake = bake_target_time(pipe, stock, nfe=nfe, times=times, exact_times=format == "comfyui")
        residual, folded = bake.residual, Factors(bake.down, bake.up)
        factors[bake.layer] = factors[bake.layer].beside(folded) if bake.layer in factors else folded
    if not factors:
        raise TwinflowError(
            "there is nothing to export as a LoRA: no branch, no adapter, no difference from a base"
        )
    exported = note(pipe, times, kind="lora", residual=residual)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", **exported.as_metadata()}
    if format == "diffusers":
        weights = _diffusers_keys(factors)
        metadata |= _diffusers_metadata(factors)
    else:
        weights = comfyui_keys(stock.transformer, factors)
        if difference.rest:
            plain, held = comfyui_differences(stock.transformer, difference.rest)
            weights |= plain
            difference = difference.without(held)
    save_tensors(weights, folder / FILES[format], metadata=metadata)
    exported.save(folder)
    named = pipe.base if base is None else None if isinstance(base, nn.Module) else str(base)
    write_lora_card(
        folder,
        exported,
        file=FILES[format],
        base=named,
        edits=pipe.edits,
        video=makes_clips(pipe),
        guidance_is_an_input=pipe.guidance_is_an_input,
    )
    ranks = {name: len(part.down) for name, part in factors.items()}
    return LoraExport(
        file=folder / FILES[format],
        exported=exported,
        ranks=ranks,
        lost=difference.lost,
        left_out=difference.left_out,
    )


def _check_format(pipe: AnyStepPipeline, format: str) -> None:
    """Refuse what can't be written before anything is computed."""
    kind = type(pipe.pipe.transformer).__name__
    if format == "diffusers" and not hasattr(pipe.pipe, "load_lora_weights"):
        raise TwinflowError(f"{type(pipe.pipe).__name__} loads no LoRA in diffusers")
    if format == "comfyui" and kind not in COMFYUI:
        raise TwinflowError(
            f"the names that ComfyUI has for the layers of {kind} are not established; those of "
            f"{', '.join(COMFYUI)} are"
        )


def _check_folder(folder: Path, format: str, times: list[float]) -> None:
    """Refuse a folder whose other files the note and the card of this one would be wrong for."""
    for name, what in ((INDEX_FILE, "a whole pipeline"), (CONFIG_FILE, "a checkpoint to train on")):
        if (folder / name).exists():
            raise TwinflowError(f"{folder} holds {what}: export the LoRA to another folder")
    there = Exported.read(folder)
    others = [file for kind, file in FILES.items() if kind != format and (folder / file).exists()]
    if there is not None and there.times != times and others:
        raise TwinflowError(
            f"{folder} holds {others[0]} for {there.nfe} step{'s' if there.nfe > 1 else ''}: export this one to "
            "another folder"
        )


def _diffusers_keys(factors: Mapping[str, Factors]) -> dict[str, Tensor]:
    weights = {}
    for name, part in factors.items():
        weights[f"{LORA_PREFIX}{name}.lora_A.weight"] = part.down.float().cpu().contiguous()
        weights[f"{LORA_PREFIX}{name}.lora_B.weight"] = part.up.float().cpu().contiguous()
    return weights


def _diffusers_metadata(factors: Mapping[str, Factors]) -> dict[str, str]:
    """Each layer's rank, and an alpha that is the same, for a scale of 1. Without it older diffusers (0.36) takes one
    layer's rank for the alpha of all, and scales those of another rank."""
    ranks = {name: len(part.down) for name, part in factors.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != usual}
    config = {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": lora.name_pattern(list(ranks)),
    }
    said = {f"{LORA_PREFIX}{name}": value for name, value in config.items()}
    return {METADATA_KEY: json.dumps(said, indent=2, sort_keys=True)}


def _transformer_of(base: str | Path | nn.Module, stock: Any) -> nn.Module:
    if isinstance(base, nn.Module):
        return base
    folder = locate(base)
    if not Path(folder).is_dir():
        check_name(folder)
    try:
        with hub_or_cache(folder):
            return type(stock.transformer).from_pretrained(
                folder, subfolder="transformer", use_safetensors=True, dtype=torch.float32
            )
    except (OSError, ValueError) as error:
        raise TwinflowError(
            f"{base} has no {type(stock.transformer).__name__} to compare with: {error}"
        ) from error


@dataclass(frozen=True)
class _Difference:
    """``factors`` of every Linear that differs, and ``rest``, the change (fp64) of what is none. ``left_out``: the
    latter relative to the base; ``missed``: squares of what is not held, by name, of ``whole``."""

    factors: dict[str, Factors]
    rest: dict[str, Tensor] = field(default_factory=dict)
    left_out: dict[str, float] = field(default_factory=dict)
    missed: dict[str, float] = field(default_factory=dict)
    whole: float = 0.0

    @property
    def lost(self) -> float:
        return (sum(self.missed.values()) / self.whole) ** 0.5 if self.whole else 0.0

    def without(self, held: set[str]) -> _Difference:
        """Once the ``held`` of the rest are written in another way."""
        left_out = {name: value for name, value in self.left_out.items() if name not in held}
        missed = {name: value for name, value in self.missed.items() if name not in held}
        return replace(self, left_out=left_out, missed=missed)


@torch.no_grad()
def _difference(trained: Any, base: nn.Module, *, rank: int) -> _Difference:
    branch = tuple(tt.target_time_state_dict(trained)) if tt.has_target_time(trained) else ()
    ours = {name: value for name, value in trained.state_dict().items() if name not in branch}
    theirs = base.state_dict()
    different = sorted(set(ours) ^ set(theirs)) or [n for n in ours if ours[n].shape != theirs[n].shape]
    if different:
        raise TwinflowError(f"the base is another transformer: {', '.join(different[:4])} differ")
    linear = {f"{name}.weight" for name, module in trained.named_modules() if isinstance(module, nn.Linear)}
    made, whole = _Difference({}), 0.0
    for name, value in ours.items():
        change = value.double() - theirs[name].to(value.device).double()
        size = float(change.norm())
        if size == 0:
            continue
        whole += size**2
        if name in linear:
            part = _cut(change, rank)
            made.factors[name.removesuffix(".weight")] = part
            made.missed[name] = float((change - part.up @ part.down).norm()) ** 2
        else:
            made.rest[name] = change
            made.left_out[name] = size / max(float(theirs[name].double().norm()), 1e-30)
            made.missed[name] = size**2
    return replace(made, whole=whole)


def _cut(change: Tensor, rank: int) -> Factors:
    """The nearest matrix of ``rank`` to ``change`` (outputs, inputs); of large ones, nearly so."""
    rank = min(rank, *change.shape)
    if min(change.shape) <= DENSE or rank > min(change.shape) // 4:
        left, values, right = torch.linalg.svd(change, full_matrices=False)
    else:
        left, values, right = torch.svd_lowrank(change, q=rank + 16, niter=4)
        right = right.T
    root = values[:rank].sqrt()
    return Factors(root[:, None] * right[:rank], left[:, :rank] * root)
