"""Recipes for published models, as they are, on tiny models of their families: cached, trained, and opened again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from PIL import Image

from data.test_video import write_video
from families import FAMILIES
from twinflow.config import load_recipe, make_recipe, recipe_dict
from twinflow.launch import cache, call_of, launch
from twinflow.pipelines import AnyStepPipeline
from twinflow.training.metrics import read_metrics

RECIPES = Path(__file__).parents[1] / "recipes" / "models"
FAMILY = {
    "qwen_image_lora": "qwen",
    "qwen_image_full": "qwen",
    "qwen_image_full_one_gpu": "qwen",
    "qwen_image_edit_lora": "qwen_edit",
    "sana_1.6b": "sana",
    "sd3.5_medium": "sd3",
    "z_image_lora": "zimage",
    "flux.1_dev_lora": "flux",
    "wan2.1_1.3b": "wan",
    "wan2.1_14b_lora": "wan",
}
COLOURS = ("red", "green", "blue")


def write_data(folder: Path, recipe: Any, *, side: int) -> None:
    """What ``recipe`` is trained on, small: clips, edits, or pictures with captions."""
    folder.mkdir()
    lines = []
    for colour in COLOURS:
        if recipe.data.kind == "video":
            write_video(folder / f"{colour}.mp4", width=side, height=side, caption=colour)
            continue
        Image.new("RGB", (side, side), colour).save(folder / f"{colour}.png")
        lines.append({"file_name": f"{colour}.png", "text": colour})
        if "image" in recipe.model.call:
            lines[-1]["source"] = "before.png"
    if "image" in recipe.model.call:
        Image.new("RGB", (side, side), "grey").save(folder / "before.png")
    if lines:
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))


def test_there_is_a_row_for_every_recipe() -> None:
    assert set(FAMILY) == {path.stem for path in RECIPES.glob("*.yaml")}


@pytest.mark.parametrize("name", FAMILY)
def test_a_recipe_trains_a_tiny_model_of_its_family(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, published = FAMILIES[FAMILY[name]], load_recipe(RECIPES / f"{name}.yaml")
    edits = "image" in published.model.call
    for constant in ("VAE_IMAGE_SIZE", "CONDITION_IMAGE_SIZE") if edits else ():  # a million pixels
        monkeypatch.setattr(pipeline_qwenimage_edit_plus, constant, 32 * 32)
    side = 32
    family.stock().save_pretrained(tmp_path / "model")
    write_data(tmp_path / "data", published, side=side)
    raw = recipe_dict(published)
    # The tiny model's own sizes; what else the recipe asks of the call, such as a guidance, stays.
    raw["model"]["call"] |= family.call | {"height": side, "width": side}
    if edits:
        raw["model"]["call"]["image"] = str(tmp_path / "data" / "before.png")
    raw["model"]["path"], raw["output"] = str(tmp_path / "model"), str(tmp_path / "run")
    raw["data"] |= {"path": str(tmp_path / "data"), "cache": str(tmp_path / "cache"), "size": side}
    if family.video:
        raw["data"] |= {"frames": family.call["num_frames"], "fps": 8}
    raw["train"] |= {"steps": 2, "batch": 2, "accumulate": min(published.train.accumulate, 2)}
    raw["log"] = {"every": 1, "tensorboard": False}
    raw["unconditional_prompt"] = "grey"  # these tokenizers make no token at all of an empty one
    recipe = make_recipe(raw)

    cache(recipe)
    done = launch(recipe)
    assert done.status == "finished"
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 2
    pipe = AnyStepPipeline.from_pretrained(done.pipeline, call=call_of(recipe))
    assert pipe.knows_target_time
    assert (pipe.lora is not None) == (published.model.train == "lora")
