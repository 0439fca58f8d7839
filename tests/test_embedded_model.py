"""The embedded model: stock, small, and as good as its card says."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from twinflow.assets import ROOT, locate
from twinflow.data.shapeworld import TASKS, all_captions
from twinflow.data.shapeworld.captions import vocabulary
from twinflow.evaluation.models import load_model
from twinflow.evaluation.samplers import sampler_for
from twinflow.evaluation.shapeworld import score_images
from twinflow.evaluation.shapeworld_benchmark import ShapeWorldBenchmark
from twinflow.pipelines import AnyStepPipeline

FOLDER = ROOT / "shapeworld-tiny"

STOCK = """
import sys
sys.modules["twinflow"] = None  # an import of twinflow raises
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
image = pipe("a photo of a red circle", num_inference_steps=2, guidance_scale=2.5).images[0]
print(type(pipe).__name__, image.size)
"""


@pytest.fixture(scope="module")
def base() -> AnyStepPipeline:
    return load_model("shapeworld-tiny")


def test_it_is_a_complete_stock_pipeline_of_ten_megabytes_without_pickle() -> None:
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 10_000_000
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".md", ".txt", ".jinja"}


def test_diffusers_alone_loads_and_runs_it() -> None:
    command = [sys.executable, "-c", STOCK, locate("shapeworld-tiny")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[0] == "StableDiffusion3Pipeline (32, 32)"


def test_it_knows_the_words_of_its_level_and_tells_all_captions_apart(base: AnyStepPipeline) -> None:
    assert base.words == vocabulary("tiny")
    prompts = [caption["prompt"] for task in TASKS for caption in all_captions("tiny", task)]
    cond = base.encode_prompts(prompts)
    for features in cond.tensors.values():
        distances = torch.pdist(features.flatten(1))
        # Far apart compared with the features themselves, not just by rounding.
        assert distances.min() > 0.05 * features.flatten(1).norm(dim=1).mean()


@pytest.mark.slow
def test_many_steps_draw_what_the_caption_says_and_one_step_does_not(base: AnyStepPipeline) -> None:
    """120 pictures: the standard error of the score is below 0.04, and the bounds leave two of them."""
    benchmark = ShapeWorldBenchmark("tiny", images_per_task=20)
    prompts, seeds = [p.prompt for p in benchmark.pictures], [p.seed for p in benchmark.pictures]
    scores = {}
    for nfe in (1, 40):
        sampler = sampler_for(base, nfe)
        drawn = base(prompts, nfe=nfe, seeds=seeds, guidance=sampler.guidance, **sampler.options)
        scores[nfe] = score_images(drawn.pixels, benchmark.captions).official.overall
    assert scores[40] > 0.6
    assert scores[1] < 0.1  # 0.017 of these seeds
