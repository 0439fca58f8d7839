"""Exports of trained ShapeWorld models as pictures: drawn by diffusers alone, beside the trainer's own sampling.

    twinflow train recipes/shapeworld_twinflow.yaml && twinflow train recipes/shapeworld_lora.yaml
    python benchmarks/export_shapeworld.py \\
        --model runs/shapeworld_twinflow/pipeline --lora runs/shapeworld_lora/pipeline

Sixteen prompts of the evaluation, one seed each, the same noise for both. Every export is written as ``twinflow
export`` writes it, and drawn in a process that can't import twinflow. Writes
benchmarks/results/export_shapeworld.json (largest differences of pixels in [0, 1]) and the grid
docs/assets/export.png, two rows an export: the trainer's, and stock.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor

from twinflow.assets import locate
from twinflow.data.shapeworld import evaluation_suite
from twinflow.errors import TwinflowError
from twinflow.evaluation.protocols import run_facts
from twinflow.export.run import ExportRequest, export_model
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.generation import to_pil
from twinflow.sampling import seeded_noise

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PICTURE = ROOT / "benchmarks/results/export_shapeworld.json", ROOT / "docs/assets/export.png"
COUNT, RENOISE_SEED = 16, 7
SCALE, GAP, MARGIN = 2, 2, 150  # pixels of the grid

STOCK_PROGRAM = """
import json, sys
sys.modules["twinflow"] = None  # import twinflow raises ImportError from here on
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

root = sys.argv[1]
tasks, prompts = json.load(open(root + "/tasks.json"))
noise, pictures = load_file(root + "/noise.safetensors")["noise"], {}
for name, task in tasks.items():
    note = json.load(open(f"{root}/{name}/twinflow_export.json"))
    pipe = DiffusionPipeline.from_pretrained(task["base"] or f"{root}/{name}")
    pipe.set_progress_bar_config(disable=True)
    if task["base"]:
        pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(note["scheduler"])
        pipe.load_lora_weights(f"{root}/{name}")
    torch.manual_seed(task["renoise_seed"])  # the stock scheduler re-noises from the global generator
    drawn = pipe(prompts, num_inference_steps=note["nfe"], latents=noise, output_type="pt", **note["call"])
    pictures[name] = drawn.images.float().contiguous()
assert not [name for name, module in sys.modules.items() if name.startswith("twinflow") and module is not None]
save_file(pictures, root + "/pictures.safetensors")
"""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One export: of which checkpoint, in which format, for how many steps."""

    model: str
    format: str
    nfe: int

    @property
    def name(self) -> str:
        return f"{self.format}_{self.nfe}"


def draw(pipe: AnyStepPipeline, prompts: list[str], nfe: int) -> Tensor:
    """Pixels (B, 3, H, W) in [0, 1], as the trainer's previews draw them."""
    seeds, generator = list(range(len(prompts))), torch.Generator().manual_seed(RENOISE_SEED)
    return pipe(prompts, nfe=nfe, seeds=seeds, generator=generator, output_type="pt").images


def measure(tasks: list[Task], prompts: list[str], folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """The trainer's pictures and those of diffusers alone, by task."""
    pipes = {model: AnyStepPipeline.from_pretrained(model) for model in {task.model for task in tasks}}
    asked = {}
    for task in tasks:
        request = ExportRequest(model=task.model, output=folder / task.name, format=task.format, nfe=task.nfe)
        print(*export_model(request), sep="\n")
        base = str(Path(locate(str(pipes[task.model].base))).resolve()) if task.format == "lora" else None
        asked[task.name] = {"base": base, "renoise_seed": RENOISE_SEED}
    some = next(iter(pipes.values()))
    save_file({"noise": seeded_noise(some.latent_shape, range(len(prompts)))}, folder / "noise.safetensors")
    (folder / "tasks.json").write_text(json.dumps([asked, prompts]))
    subprocess.run([sys.executable, "-I", "-c", STOCK_PROGRAM, str(folder)], check=True)
    stock = load_file(folder / "pictures.safetensors")
    return {task.name: (draw(pipes[task.model], prompts, task.nfe), stock[task.name]) for task in tasks}


def compared(ours: Tensor, stock: Tensor) -> dict[str, float]:
    """How far two sets of pictures are apart, in [0, 1] and once they are rounded to 8 bits."""
    rounded = [(pixels.clamp(0, 1) * 255).round() for pixels in (ours, stock)]
    return {
        "largest_difference": float((ours - stock).abs().max()),
        "largest_difference_8_bit": float((rounded[0] - rounded[1]).abs().max()),
        "share_of_8_bit_values_that_differ": float((rounded[0] != rounded[1]).float().mean()),
    }


def slim_refusal(model: str, folder: Path) -> str | None:
    """What ``--format slim`` says of this model, if it refuses it."""
    try:
        export_model(ExportRequest(model=model, output=folder / "slim", format="slim"))
    except TwinflowError as error:
        return str(error)
    return None


def grid(rows: dict[str, Tensor]) -> Image.Image:
    """One labelled line of pictures for each of ``rows``."""
    first = next(iter(rows.values()))
    count, side = len(first), first.shape[-1] * SCALE + GAP
    sheet = Image.new("RGB", (MARGIN + count * side, len(rows) * side), "white")
    pen = ImageDraw.Draw(sheet)
    for line, (label, pixels) in enumerate(rows.items()):
        pen.text((4, line * side + side // 2 - 6), label, fill="black")
        for column, picture in enumerate(to_pil(2 * pixels - 1)):
            large = picture.resize((side - GAP, side - GAP), Image.Resampling.NEAREST)
            sheet.paste(large, (MARGIN + column * side, line * side))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="pipeline of a run that trained all weights")
    parser.add_argument("--lora", required=True, help="pipeline of a run that trained a LoRA")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    args = parser.parse_args()
    captions = evaluation_suite("tiny", (COUNT + 5) // 6, 0)[:COUNT]
    prompts = [caption["prompt"] for caption in captions]
    tasks = [Task(model=args.model, format="diffusers", nfe=nfe) for nfe in (1, 2, 4)]
    tasks += [Task(model=args.lora, format="lora", nfe=nfe) for nfe in (1, 2)]
    with tempfile.TemporaryDirectory() as folder:
        pictures = measure(tasks, prompts, Path(folder))
        refusal = slim_refusal(args.model, Path(folder))
    exports: dict[str, Any] = {name: compared(*pair) for name, pair in pictures.items()}
    unfolded = AnyStepPipeline.from_pretrained(args.model, fold_padding=False)
    for task in tasks[
        :3
    ]:  # the trainer folds equal tokens of padding into one: the same sums in another order
        plain = draw(unfolded, prompts, task.nfe)
        exports[task.name]["largest_difference_without_folding"] = float(
            (plain - pictures[task.name][1]).abs().max()
        )
    rows: dict[str, Tensor] = {}
    for task in tasks:
        kind = "LoRA run" if task.format == "lora" else "full run"
        ours, stock = pictures[task.name]
        rows[f"{kind}, {task.nfe} NFE: trainer"] = ours
        rows[f"{kind}, {task.nfe} NFE: stock"] = stock
    grid(rows).save(args.picture, optimize=True)
    record = {
        **run_facts(),
        "prompts": prompts,
        "seeds": list(range(COUNT)),
        "exports": exports,
        "slim": refusal,
    }
    args.json.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(exports, indent=1))


if __name__ == "__main__":
    main()
