"""The model card of an export: how it is called, what it was made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from twinflow.assets import locate
from twinflow.export.comfyui_call import decimal, how_in_comfyui
from twinflow.export.stock import is_picture
from twinflow.pipelines.checkpoint import Manifest
from twinflow.pipelines.exported import STEPS_KEY, UNSHIFTED, Exported

# Names of tasks on the hub, by what is asked for (a source picture or none) and drawn (a clip or a picture).
TASKS = {
    (False, False): "text-to-image",
    (True, False): "image-to-image",
    (False, True): "text-to-video",
    (True, True): "image-to-video",
}


def plain_call(call: dict[str, Any]) -> dict[str, Any]:
    """``call`` without pictures, as JSON can hold it."""
    return {name: value for name, value in call.items() if not is_picture(value)}


def write_card(folder: str | Path, exported: Exported, *, edits: bool, video: bool) -> None:
    """``README.md`` for an export that stock diffusers runs."""
    opening = f"pipe = DiffusionPipeline.from_pretrained({str(folder)!r}{_dtype(exported)})"
    code = _code(
        exported, [opening], imports="from diffusers import DiffusionPipeline", edits=edits, video=video
    )
    _write(folder, exported, f"{code}\n\n{_this(folder)}", HOW_FOLDER, edits=edits, video=video)


def write_lora_card(
    folder: str | Path,
    exported: Exported,
    *,
    file: str,
    base: str | None,
    edits: bool,
    video: bool,
    guidance_is_an_input: bool = False,
) -> None:
    """``README.md`` for a LoRA, which needs the few-step scheduler beside it, on ``base``: a hub id, an embedded model
    or a folder; None if that has no name. ``guidance_is_an_input``: of the network, which ComfyUI's own node sets.
    """
    if file.startswith("comfyui"):
        load = "LoraLoaderModelOnly, strength 1"
        code = how_in_comfyui(exported, load=load, guidance_is_an_input=guidance_is_an_input)
    else:
        stock, how = _stock_base(base)
        settings = {name: exported.scheduler[name] for name in STEPPING if name in exported.scheduler}
        arguments = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        opening = [
            f"pipe = DiffusionPipeline.from_pretrained({stock!r}{_dtype(exported)})",
            f"pipe.scheduler = FlowMatchEulerDiscreteScheduler({arguments})",
            f"pipe.load_lora_weights({str(folder)!r}, weight_name={file!r})",
        ]
        imports = "from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler"
        code = _code(exported, opening, imports=imports, edits=edits, video=video)
        code = "\n\n".join(part for part in (how, code, _this(folder)) if part)
    _write(folder, replace(exported, base=base), code, HOW_LORA, edits=edits, video=video)


def _dtype(exported: Exported) -> str:
    """The argument by which diffusers loads weights as they were exported; it would load them in fp32."""
    return "" if exported.dtype == "float32" else f", dtype=torch.{exported.dtype}"


def _this(folder: str | Path) -> str:
    return f"`{folder}` is this folder, as it was written; a name on the hub takes its place where it is published."


def _stock_base(base: str | None) -> tuple[str, str]:
    """What stock diffusers loads ``base`` by, and what has to be said, or done, before."""
    if base is None:
        return "BASE MODEL", "`BASE MODEL` is the pipeline that it was trained on, which had no name."
    if locate(base) != base:
        return base, (
            f"Its base comes with twinflow. Once, `twinflow copy-model {base} {base}` writes it as a stock folder to "
            "where the call below looks for it."
        )
    if not Path(base).is_dir():
        return base, ""
    if Manifest.read(Path(base)).adapter is not None:
        return MERGED, (
            f"Its base is a LoRA itself, which is merged first: `AnyStepPipeline.from_pretrained({base!r})"
            f".merged().save_pretrained({MERGED!r})`, with twinflow."
        )
    return base, f"`{base}` is the base; a name on the hub takes its place where it is published."


MERGED = "merged-base"


STEPPING = (*UNSHIFTED, STEPS_KEY, "stochastic_sampling", "shift_terminal")
HOW_FOLDER = "which folded the target time into the stock weights"
HOW_LORA = "which wrote the target time as low-rank factors beside those that were trained"


def _code(exported: Exported, opening: list[str], *, imports: str, edits: bool, video: bool) -> str:
    arguments = [f"{name}={value!r}" for name, value in exported.call.items()]
    arguments.append(f"num_inference_steps={exported.nfe}")
    lines = [imports, "", *opening]
    if exported.dtype != "float32":
        lines.insert(0, "import torch")
    if edits:
        arguments.insert(0, "image=source")
        lines = ["from PIL import Image", *lines, 'source = Image.open("source.png").convert("RGB")']
    result, taken = ("frames", ".frames[0]") if video else ("image", ".images[0]")
    lines.append(f'{result} = pipe(prompt="a prompt", {", ".join(arguments)}){taken}')
    return "```python\n" + "\n".join(lines) + "\n```"


def _write(folder: str | Path, exported: Exported, code: str, how: str, *, edits: bool, video: bool) -> None:
    steps = "1 step" if exported.nfe == 1 else f"{exported.nfe} steps"
    (Path(folder) / "README.md").write_text(
        f"""---
library_name: diffusers
pipeline_tag: {TASKS[edits, video]}
tags: [twinflow, few-step, {exported.nfe}-step{", lora" if exported.kind == "lora" else ""}]
license: other
license_name: see-the-base-model
---

# {exported.pipeline}, {steps}

{code}

These arguments are part of the model: it was made for exactly {steps}, and guidance is in its weights. Other
numbers of steps, another scheduler or guidance on top give worse pictures. {RE_NOISING if exported.nfe > 1 else ""}

## Where it comes from

- base model: `{exported.base or "unknown"}`
- made by: twinflow {exported.twinflow}, {how} for the times
  {", ".join(map(decimal, exported.times))} (relative residual {exported.residual:.1e})
- stock classes and weights of diffusers; no code of twinflow is needed to run it
- it is no base for further training: train the checkpoint that it was exported from

## Licence

To be filled in by who publishes it. The licence of the base model applies to what was made from it.
"""
    )


RE_NOISING = """The
scheduler draws fresh noise between the steps. Most pipelines take it from PyTorch's global generator, not from
`generator=`: call `torch.manual_seed(seed)` right before the call to get the same picture again."""
