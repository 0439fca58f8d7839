"""``twinflow export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from twinflow.cli.app import app
from twinflow.errors import TwinflowError


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="The checkpoint of a TwinFlow run.")],
    output: Annotated[Path, typer.Argument(help="Folder to write; a .safetensors file for single-file.")],
    format: Annotated[
        str,
        typer.Option(help="diffusers, lora, comfyui-lora, single-file or slim (one step, a third smaller)."),
    ] = "diffusers",
    nfe: Annotated[int, typer.Option(help="Steps that the export is for, exactly.")] = 1,
    dtype: Annotated[str, typer.Option(help="Of the weights: fp32 or bf16.")] = "fp32",
    base: Annotated[
        str | None,
        typer.Option(
            help="lora: the model from which all weights were trained; the difference is written too."
        ),
    ] = None,
    rank: Annotated[int, typer.Option(help="lora with --base: rank of the difference.")] = 64,
    call: Annotated[
        str,
        typer.Option(
            help="Arguments of the stock call that the model was trained with: '{\"height\": 512}'."
        ),
    ] = "{}",
    source: Annotated[
        Path | None, typer.Option(help="Editing models: any source picture, of the size trained at.")
    ] = None,
) -> None:
    """Write a model that runs without twinflow: in diffusers, in ComfyUI, as a folder, a LoRA or one file."""
    from twinflow.export.run import ExportRequest, export_model

    request = ExportRequest(
        model=model,
        output=output,
        format=format,
        nfe=nfe,
        dtype={"float32": "fp32", "bfloat16": "bf16"}.get(dtype, dtype),  # as sample and eval say
        base=base,
        rank=rank,
        call=_call(call, source),
    )
    for line in export_model(request):
        typer.echo(line)


def _call(text: str, source: Path | None) -> dict[str, Any]:
    try:
        call = json.loads(text)
        if not isinstance(call, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise TwinflowError(
            f'--call {text!r} is not a JSON object such as {{"height": 512}}: {error}'
        ) from error
    if source is not None:
        from twinflow.data.pictures import open_picture

        try:
            call["image"] = open_picture(source)
        except OSError as error:
            raise TwinflowError(f"--source {source} is no picture: {error}") from error
    return call
