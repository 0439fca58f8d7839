# ruff: noqa: E402 - nothing is imported before twinflow is barred
"""Run by a process of its own: draws with every export below a folder, by diffusers alone.

The folder has ``tasks.json``, a list of {"folder", "family", "nfe", "prompt", "lora"?}, and ``noise.safetensors``.
"""

import json
import sys
import warnings
from pathlib import Path

sys.modules["twinflow"] = None  # import twinflow raises ImportError from here on
warnings.filterwarnings("ignore")

import diffusers
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

diffusers.utils.logging.set_verbosity_error()
transformers.logging.set_verbosity_error()
import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as edit

edit.VAE_IMAGE_SIZE = edit.CONDITION_IMAGE_SIZE = 32 * 32  # the stock ones have a million pixels


def edit_processor(folder):
    """The stock processor without its video part, which needs torchvision."""
    from transformers import AutoTokenizer, Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    class Processor(Qwen2VLProcessor):
        def check_argument_for_proper_class(self, argument_name, argument):
            return None

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    return Processor(
        image_processor=Qwen2VLImageProcessorPil(),
        tokenizer=tokenizer,
        video_processor=None,
        chat_template=tokenizer.chat_template,
    )


def open_pipeline(folder):
    index = json.loads((folder / "model_index.json").read_text())
    parts = {}
    if "processor" in index:
        parts["processor"] = edit_processor(folder)
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main(root):
    noise = load_file(root / "noise.safetensors")
    pictures, facts = {}, {}
    for name, task in json.loads((root / "tasks.json").read_text()).items():
        folder = root / task["folder"]
        pipe = open_pipeline(folder)
        note = json.loads((root / task.get("note", task["folder"]) / "twinflow_export.json").read_text())
        if "lora" in task:
            pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(note["scheduler"])
            pipe.load_lora_weights(root / task["lora"])
        call = note["call"]
        if task["family"] in ("qwen_edit", "wan_i2v"):
            call["image"] = Image.new("RGB", (32, 32), (120, 60, 200))
        latents = noise[task["family"]]
        if task["family"] == "flux2_klein":  # takes its latents before they are packed
            latents = latents.transpose(1, 2).reshape(-1, 16, 8, 8)
        torch.manual_seed(7)  # re-noising draws from the global generator …
        generator = torch.Generator().manual_seed(7)  # … but SANA's from this one
        made = pipe(
            prompt=task["prompt"],
            num_inference_steps=note["nfe"],
            latents=latents.clone(),
            generator=generator,
            output_type="pt",
            **call,
        )
        pictures[name] = made[0].float().contiguous()
        facts[name] = {
            part: f"{type(p).__module__}.{type(p).__name__}" for part, p in pipe.components.items()
        }
    facts["ours"] = [
        name for name in sys.modules if name.startswith("twinflow") and sys.modules[name] is not None
    ]
    save_file(pictures, root / "pictures.safetensors")
    (root / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
