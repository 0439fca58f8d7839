"""Recipes launched as the command does it: from nothing to a one-step model, two steps a stage."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.testing._internal.distributed import fake_pg as _fake_pg  # noqa: F401 - registers its backend

from twinflow import launch as launch_module
from twinflow.config import load_recipe
from twinflow.data.shapeworld.captions import vocabulary
from twinflow.errors import TwinflowError
from twinflow.launch import build_trainer, launch
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.quantise import LIBRARIES
from twinflow.planner import Gpu, prediction
from twinflow.planner.hardware import GiB

RECIPES = Path(__file__).parent.parent / "recipes"
SHORT = ["train.steps=2", "train.batch=4", "optimizer.warmup_steps=0", "log.tensorboard=false"]


def run(name: str, output: Path, *changes: str, resume: str = "auto") -> Path:
    recipe = load_recipe(RECIPES / f"{name}.yaml", [*SHORT, f"output={output}", *changes])
    result = launch(recipe, resume=resume)
    assert result.status == "finished"
    assert result.pipeline is not None
    return result.pipeline


def test_the_stages_of_the_embedded_model_follow_one_another(tmp_path: Path) -> None:
    few = "data.length=24"
    text = run("shapeworld_text", tmp_path / "text", few)
    start = run("shapeworld_vae_start", tmp_path / "start", few, f"model.path={text}")
    vae = run("shapeworld_vae", tmp_path / "vae", few, f"model.path={start}")
    base = run("shapeworld_base", tmp_path / "base", few, f"model.path={vae}", "preview.every=0")
    one = run("shapeworld_twinflow", tmp_path / "one", few, f"model.path={base}", "preview.every=0")

    def weights(path: Path, part: str) -> dict[str, torch.Tensor]:
        pipe = AnyStepPipeline.from_pretrained(path, target_time=False).pipe
        return getattr(pipe, part).state_dict()

    def same(a: Path, b: Path, part: str) -> bool:
        first, second = weights(a, part), weights(b, part)
        return all(torch.equal(value, second[name]) for name, value in first.items())

    # Each stage trains its own part and leaves the others alone.
    assert same(text, vae, "text_encoder")
    assert not same(text, start, "vae")
    assert not same(start, vae, "vae")
    assert same(vae, base, "vae")
    assert not same(vae, base, "transformer")
    assert not same(base, one, "transformer")
    trained = AnyStepPipeline.from_pretrained(one)
    assert trained.knows_target_time
    assert trained("a photo of a red circle", nfe=1).images[0].size == (32, 32)


def test_the_full_world_has_a_wider_pipeline_of_its_own(tmp_path: Path) -> None:
    few = ("data.length=24", "train.batch=2")
    text = run("shapeworld_full_text", tmp_path / "text", *few)
    start = run("shapeworld_full_vae_start", tmp_path / "start", *few, f"model.path={text}")
    pipe = AnyStepPipeline.from_pretrained(start, target_time=False)
    assert pipe.latent_shape == (8, 4, 4)
    assert pipe.pipe.transformer.config.caption_projection_dim == 128
    words = pipe.pipe.tokenizer(list(vocabulary("full"))).input_ids
    assert {len(ids) for ids in words} == {3}, "each word is one token, between start and end"


def test_a_lora_is_a_small_folder_that_draws_and_can_be_trained_on(tmp_path: Path) -> None:
    few = ("data.length=24", "preview.every=0")
    lora = run("shapeworld_lora", tmp_path / "lora", *few, "train.gradient_checkpointing=true")
    names = {"pytorch_lora_weights.safetensors", "target_time.safetensors", "twinflow.json"}
    assert {file.name for file in lora.iterdir()} == names
    trained = AnyStepPipeline.from_pretrained(lora)
    assert trained.lora is not None
    assert trained.words is not None
    assert trained("a photo of a red circle", nfe=1).images[0].size == (32, 32)

    more = run("shapeworld_lora", tmp_path / "more", *few, f"model.path={lora}")
    assert AnyStepPipeline.from_pretrained(more).base == "shapeworld-tiny"
    full = run("shapeworld_twinflow", tmp_path / "full", *few, f"model.path={lora}")
    assert AnyStepPipeline.from_pretrained(full).lora is None


def test_frozen_parameters_keep_their_values(tmp_path: Path) -> None:
    """Those whose names fit a pattern of ``model.freeze``, in the run and in the saved pipeline, which is its average;
    all others are trained, but for the queries of the last block's text, which nothing asks for."""
    changes = ["data.length=24", "preview.every=0", "ema.decay=0.9", f"output={tmp_path}"]
    freeze = 'model.freeze=["*.norm1*.linear.*", "context_embedder.*"]'
    trainer = build_trainer(load_recipe(RECIPES / "shapeworld_twinflow.yaml", [*SHORT, *changes, freeze]))
    network = trainer.pipe.network
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    result = trainer.run()
    kept = {name for name, p in network.named_parameters() if torch.equal(p, before[name])}
    named = {n for n in before if (".norm1" in n and ".linear." in n) or "context_embedder." in n}
    assert len(named) == 11 * 2 * 2 + 2
    assert named <= kept
    assert all(".10.attn.add_q_proj." in n or ".10.attn.norm_added_q." in n for n in kept - named)
    assert result.pipeline is not None
    saved = AnyStepPipeline.from_pretrained(result.pipeline).network
    assert {name for name, p in saved.named_parameters() if torch.equal(p, before[name])} == kept


@pytest.mark.parametrize("kind", LIBRARIES)
def test_a_lora_of_a_quantised_base_is_put_on_the_plain_one(tmp_path: Path, kind: str) -> None:
    """And the run that goes on from its first step is the run that never stopped."""
    pytest.importorskip(LIBRARIES[kind])
    changes = ("data.length=24", "preview.every=0", f"model.quantize={kind}", "checkpoint.every=1")
    straight = run("shapeworld_lora", tmp_path / "straight", *changes)
    first = tmp_path / "straight" / "checkpoints" / "step_00000001"
    resumed = run("shapeworld_lora", tmp_path / "resumed", *changes, resume=str(first))
    for file in straight.glob("*.safetensors"):
        tensors, again = load_file(file), load_file(resumed / file.name)
        assert tensors
        assert all(torch.equal(value, again[name]) for name, value in tensors.items())
    assert AnyStepPipeline.from_pretrained(straight).merged().lora is None


def test_the_stages_of_the_digits_follow_one_another(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    vae = run("digits_vae", tmp_path / "vae")
    base = run("digits_base", tmp_path / "base", f"model.path={vae}")
    one = run("digits_twinflow", tmp_path / "one", f"model.path={base}")
    drawn = AnyStepPipeline.from_pretrained(one)(["a handwritten seven"] * 2, nfe=2)
    assert drawn.pixels.shape == (2, 3, 8, 8)


def test_text_encoders_learn_from_shapeworld_alone(tmp_path: Path) -> None:
    recipe = load_recipe(
        RECIPES / "shapeworld_text.yaml", [*SHORT, "data={kind: digits}", f"output={tmp_path}"]
    )
    with pytest.raises(TwinflowError, match="shapeworld"):
        launch(recipe)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    recipe = load_recipe(
        RECIPES / "shapeworld_base.yaml",
        [*SHORT, "model.path=shapeworld-tiny", "train.device=cuda", f"output={tmp_path / 'run'}"],
    )
    with pytest.raises(TwinflowError, match=r"train.device = 'cuda', .* no CUDA device: use 'cpu' or 'auto'"):
        launch(recipe)
    assert not (tmp_path / "run").exists()


class Opened(Exception):
    """The model would be read now."""


@pytest.mark.parametrize(
    ("mib", "force"), [pytest.param(44, False, marks=pytest.mark.slow), (44, True), (3000, False)]
)
def test_weights_that_do_not_fit_are_not_read(
    mib: int, force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration shows it, with the remedies, before the GPU can run out of memory."""

    def opened(*arguments: object) -> None:
        raise Opened

    gpu = Gpu(name="tiny", memory=(GiB + mib * 2**20) * 100 // 97, bf16=1.0, fp32=1.0, bandwidth=1.0)
    monkeypatch.setattr(prediction, "gpu_at", lambda device: gpu)
    monkeypatch.setattr(launch_module, "device_of", lambda recipe: "cuda")
    monkeypatch.setattr(launch_module, "build_model", opened)
    changes = [
        "data.length=24",
        "train.batch=1",
        "train.gradient_checkpointing=true",
        f"train.force={str(force).lower()}",
        f"output={tmp_path / 'run'}",
    ]
    recipe = load_recipe(RECIPES / "shapeworld_base.yaml", [*SHORT, *changes, "model.path=shapeworld-tiny"])
    refused = not force and mib == 44  # 13 MiB of weights, as much each for states, the average and gradients
    with pytest.raises(TwinflowError if refused else Opened) as found:
        build_trainer(recipe)
    if refused:
        assert re.search(r"(?s)does not fit.*\n  \S+=\S+.*: .*\ntrain.force=true starts", str(found.value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["parallel={mode: hybrid, shard_size: 3}"],
            "parallel.shard_size = 3 does not divide the 4 processes",
        ),
        (["parallel.context=3"], "parallel.context = 3 does not divide the 4 processes"),
        (["parallel.mode=shard", "optimizer.name=muon"], "orthogonalises whole matrices"),
    ],
)
@pytest.mark.parametrize("train", ["full", "lora"])
def test_a_mesh_that_can_not_be(changes: list[str], message: str, train: str, tmp_path: Path) -> None:
    """Refused before model and data are opened, which are not there here."""
    recipe = load_recipe(
        RECIPES / "shapeworld_twinflow.yaml",
        [*SHORT, *changes, f"model={{path: nowhere, train: {train}}}", f"output={tmp_path / 'run'}"],
    )
    dist.init_process_group("fake", store=dist.HashStore(), rank=0, world_size=4)
    try:
        with pytest.raises(TwinflowError, match=message):
            build_trainer(recipe)
    finally:
        dist.destroy_process_group()
