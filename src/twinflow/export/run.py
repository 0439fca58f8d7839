"""An export by names and numbers, the way the command line asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from twinflow.assets import locate
from twinflow.errors import TwinflowError, check_place
from twinflow.export.comfyui_call import how_in_comfyui, not_in_comfyui
from twinflow.export.diffusers_folder import to_diffusers
from twinflow.export.lora import to_lora
from twinflow.export.single_file import to_single_file
from twinflow.export.slim import to_slim
from twinflow.export.stock import schedule_of
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.model_name import check_name
from twinflow.quantities import parameters

FORMATS = ("diffusers", "lora", "comfyui-lora", "single-file", "slim")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(kw_only=True)
class ExportRequest:
    """What :func:`export_model` is asked for. ``call``: arguments of the stock call that the model was trained with,
    besides the prompt; ``base`` and ``rank``: of a LoRA from a run that trained all weights, see
    :func:`twinflow.export.to_lora`.
    """

    model: str
    output: Path
    format: str = "diffusers"
    nfe: int = 1
    dtype: str = "fp32"
    base: str | None = None
    rank: int = 64
    call: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """:class:`TwinflowError` for what can't be meant, before anything is loaded."""
        if self.format not in FORMATS:
            raise TwinflowError(f"--format {self.format!r} is not known: one of {', '.join(FORMATS)}")
        if self.dtype not in DTYPES:
            raise TwinflowError(f"--dtype {self.dtype!r} is not known: one of {', '.join(DTYPES)}")
        schedule_of(self.nfe)
        if self.format == "slim" and self.nfe != 1:
            raise TwinflowError(f"--format slim is for one step only, got --nfe {self.nfe}")
        if self.format == "single-file" and self.output.suffix != ".safetensors":
            raise TwinflowError(
                f"--format single-file writes one file: {self.output} should end in .safetensors"
            )
        if self.format != "single-file" and self.output.suffix == ".safetensors":
            raise TwinflowError(
                f"{self.output} is the name of a file, and --format {self.format} writes a folder: name one, or use "
                "--format single-file"
            )
        if self.base is not None and "lora" not in self.format:
            raise TwinflowError(f"--base is for LoRA formats, got --format {self.format}")
        if self.base is not None and not Path(locate(self.base)).is_dir():
            check_name(self.base)
        check_place(
            self.output.parent if self.output.suffix == ".safetensors" else self.output, name="the output"
        )
        for name, what in (("twinflow.json", "a checkpoint"), ("recipe.yaml", "a run")):
            if (self.output / name).is_file() and self.output.resolve() != Path(self.model).resolve():
                raise TwinflowError(
                    f"{self.output} holds {what}, which an export would spoil: choose another folder"
                )
        if self.output.exists() and self.output.resolve() == Path(self.model).resolve():
            raise TwinflowError(
                f"the export would overwrite {self.model}, which training goes on from: choose another folder"
            )


def export_model(request: ExportRequest) -> list[str]:
    """Open a checkpoint and export it; returns lines that say what was written."""
    request.check()
    pipe = AnyStepPipeline.from_pretrained(
        request.model, target_time=False, call=request.call or None, dtype=DTYPES[request.dtype]
    )
    if pipe.exported is None and not pipe.knows_target_time:
        raise TwinflowError(
            f"{request.model} has no target time: it is a base model, which does not generate in "
            f"{request.nfe} step{'s' if request.nfe > 1 else ''}. Export the checkpoint of a TwinFlow run"
        )
    try:
        return _write(pipe, request)
    except (OSError, SafetensorError) as error:
        raise TwinflowError(f"{request.output} could not be written to its end: {error}") from error


def _write(pipe: AnyStepPipeline, request: ExportRequest) -> list[str]:
    nfe, output = request.nfe, request.output
    if request.format == "diffusers":
        exported = to_diffusers(pipe, output, nfe=nfe)
    elif request.format == "single-file":
        exported = to_single_file(pipe, output, nfe=nfe)
    elif request.format == "slim":
        slim = to_slim(pipe, output)
        return [
            f"{output}: {parameters(slim.kept, digits=3)} of {parameters(slim.parameters, digits=3)} parameters, "
            "for one step"
        ]
    else:
        form: Any = "comfyui" if request.format == "comfyui-lora" else "diffusers"
        made = to_lora(pipe, output, nfe=nfe, format=form, base=request.base, rank=request.rank)
        lines = [f"{made.file}: {len(made.ranks)} layers, rank up to {max(made.ranks.values())}"]
        if request.base is not None:
            lines.append(
                f"of the difference from {request.base}, {made.lost:.1%} is lost at rank {request.rank}"
            )
        if made.left_out:
            lines.append(
                f"this file can't hold {len(made.left_out)} trained tensors, biases and norms: they are left out"
            )
        return [*lines, *(_note_on_comfyui(pipe) if form == "comfyui" else [])]
    arguments = ", ".join(f"{name}={value!r}" for name, value in exported.call.items())
    lines = [
        f"{output}: for exactly {nfe} step{'s' if nfe > 1 else ''}, relative residual {exported.residual:.1e}",
        f"call it with {arguments}{', ' if arguments else ''}num_inference_steps={nfe}",
    ]
    if request.format == "single-file":
        load = "UNETLoader (Load Diffusion Model)"
        how = how_in_comfyui(exported, load=load, guidance_is_an_input=pipe.guidance_is_an_input)
        lines += _note_on_comfyui(pipe) or [how]
    return lines


def _note_on_comfyui(pipe: AnyStepPipeline) -> list[str]:
    reason = not_in_comfyui(pipe.pipe.transformer)
    return [f"note: {reason}"] if reason else []
