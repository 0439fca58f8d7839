"""Recipes with data of every kind, from the disk to a finished run, with a cache and without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from families import FAMILIES
from pipelines.tiny import lively_pipeline
from twinflow.cli import cache as _registered  # noqa: F401 - puts its command on the app
from twinflow.cli.app import app
from twinflow.config import make_recipe
from twinflow.data.shapeworld import write_folder
from twinflow.errors import TwinflowError
from twinflow.launch import build_trainer, cache, export_checkpoint, launch
from twinflow.pipelines import AnyStepPipeline
from twinflow.training import checkpoint
from twinflow.training.metrics import read_metrics

SIZE = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    lively_pipeline().save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve scenes, half of them made wide or high, some with two captions."""
    folder = write_folder(tmp_path_factory.mktemp("pictures"), count=12)
    lines = []
    for i, file in enumerate(sorted(folder.glob("*.png"))):
        shape = [(32, 32), (40, 20), (20, 40)][i % 3]
        Image.open(file).resize(shape).save(file)
        caption = file.with_suffix(".txt").read_text().strip()
        lines.append({"file_name": file.name, "text": [caption, "a photo of a square"][: 1 + i % 2]})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def recipe(model: Path, output: Path, data: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return {
        "model": {"path": str(model)},
        "data": data,
        "objective": {"name": "twinflow", "guidance": 0.3},
        "caption_dropout": 0.2,
        "train": {"steps": 4, "batch": 3},
        "log": {"every": 1, "tensorboard": False},
        "output": str(output),
        **sections,
    }


def losses(output: Path) -> list[dict[str, float]]:
    timing = ("seconds", "rows_per_second")
    lines = read_metrics(output / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in timing} for line in lines]


def test_cached_and_uncached_training_are_the_same_run(tmp_path: Path, model: Path, pictures: Path) -> None:
    """Buckets, several captions, dropped captions and guidance, bit for bit."""
    data = {"kind": "folder", "path": str(pictures), "size": SIZE, "buckets": True, "multiple": 8}
    launch(make_recipe(recipe(model, tmp_path / "online", data)))

    file, folder = tmp_path / "recipe.yaml", tmp_path / "cache"
    file.write_text(json.dumps(recipe(model, tmp_path / "cached", data)))
    result = CliRunner().invoke(app, ["cache", str(file), f"data.cache={folder}"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "12 rows in " in result.output
    cached = {**data, "cache": str(folder)}
    launch(make_recipe(recipe(model, tmp_path / "cached", cached)))
    launch(make_recipe(recipe(model, tmp_path / "memory", {**data, "cache": True})))
    expected = losses(tmp_path / "online")
    assert len(expected) == 4
    assert losses(tmp_path / "cached") == expected
    assert losses(tmp_path / "memory") == expected

    def refused(words: str, raw: dict[str, Any]) -> None:
        with pytest.raises(TwinflowError, match=words):
            launch(make_recipe(raw))

    other = recipe(model, tmp_path / "other", {**cached, "size": 24})
    refused("(?s)made of something else.*data.size: 16 in the cache, 24 now", other)
    prompt = recipe(model, tmp_path / "other", cached, unconditional_prompt="a photo of a square")
    refused("unconditional_prompt: '' in the cache", prompt)
    named = (pictures / "000000.png").read_bytes()
    (pictures / "000000.png").write_bytes((pictures / "000003.png").read_bytes())
    refused("data.contents.000000.png", recipe(model, tmp_path / "other", cached))
    (pictures / "000000.png").write_bytes(named)
    shutil.copytree(model, tmp_path / "other")
    (weights,) = (tmp_path / "other" / "text_encoder").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    refused(
        "model.files.text_encoder/model.safetensors", recipe(tmp_path / "other", tmp_path / "run", cached)
    )
    refused("there is no cache", recipe(model, tmp_path / "other", {**data, "cache": "nowhere"}))


ENCODERS = ("vae", "text_encoder", "text_encoder_2")


def test_a_cached_run_reads_no_weight_of_the_encoders(
    tmp_path: Path, model: Path, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their files are spoilt once the cache is there; what is saved has the files as they are."""
    copied = tmp_path / "model"
    shutil.copytree(model, copied)
    data = {"kind": "folder", "path": str(pictures), "size": SIZE, "cache": str(tmp_path / "cache")}
    raw = recipe(copied, tmp_path / "run", data, preview={"every": 0})
    cache(make_recipe(raw))
    spoilt = [
        copied / name / file.name for name in ENCODERS for file in (copied / name).glob("*.safetensors")
    ]
    assert len(spoilt) == 3
    index = json.loads((tmp_path / "cache" / "index.json").read_text())
    for file in spoilt:
        file.write_bytes(b"\xff" * file.stat().st_size)
        stat, known = file.stat(), index["files"][f"model {file.resolve()}"]
        known[:3] = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns  # as if they had been so all the time
    (tmp_path / "cache" / "index.json").write_text(json.dumps(index))
    trainer = build_trainer(make_recipe(raw))
    assert "can't be left out" not in caplog.text
    assert trainer.prediction.line.startswith("plan: ")  # for which the autoencoder is asked, and a prompt
    result = trainer.run()
    assert result.pipeline is not None
    for file in spoilt:
        assert (result.pipeline / file.relative_to(copied)).read_bytes() == file.read_bytes()
    for name in ENCODERS:  # with the files put right it is a pipeline as any other
        shutil.copytree(model / name, result.pipeline / name, dirs_exist_ok=True)
    drawn = AnyStepPipeline.from_pretrained(result.pipeline)("a photo of a red circle", nfe=1)
    assert drawn.pixels.isfinite().all()


@pytest.mark.parametrize("train", ["lora", "full"])
def test_a_cache_for_a_lora_is_that_of_its_base(
    tmp_path: Path, model: Path, pictures: Path, train: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Training goes on from an adapter, or with it merged: the same run with the cache that was written for the base,
    with one that was written for the adapter, and without."""
    data = {"kind": "folder", "path": str(pictures), "size": SIZE}
    first = {"path": str(model), "train": "lora", "lora": {"rank": 2}}
    raw = recipe(model, tmp_path / "first", {**data, "cache": str(tmp_path / "base")}) | {"model": first}
    cache(make_recipe(raw))
    adapter = launch(make_recipe(raw)).pipeline
    assert not (adapter / "model_index.json").exists()
    then = {**first, "path": str(adapter)} if train == "lora" else {"path": str(adapter)}
    raw = recipe(model, tmp_path, {**data, "cache": str(tmp_path / "adapter")}) | {"model": then}
    cache(make_recipe(raw))
    for name in ("base", "adapter", None):
        used = {**data, "cache": str(tmp_path / name)} if name else data
        launch(make_recipe(recipe(model, tmp_path / f"run_{name}", used) | {"model": then}))
    expected = losses(tmp_path / "run_None")
    assert len(expected) == 4
    assert losses(tmp_path / "run_base") == losses(tmp_path / "run_adapter") == expected
    assert "can't be left out" not in caplog.text


def test_a_checkpoint_is_exported_without_the_data(
    tmp_path: Path, model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And without the states of its optimiser, which are most of it."""
    shutil.copytree(pictures, tmp_path / "pictures")
    data = {"kind": "folder", "path": str(tmp_path / "pictures"), "size": SIZE}
    trained = launch(
        make_recipe(recipe(model, tmp_path / "run", data, train={"steps": 2, "batch": 3}))
    ).pipeline
    shutil.rmtree(tmp_path / "pictures")
    read: list[str] = []
    monkeypatch.setattr(checkpoint, "load_file", lambda file: (read.append(file.stem), load_file(file))[1])
    exported = export_checkpoint(tmp_path / "run", tmp_path / "exported")
    assert set(read) == {"weights", "average"}
    one, other = (AnyStepPipeline.from_pretrained(folder) for folder in (trained, exported))
    weights = other.network.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in one.network.state_dict().items())


def test_prompts_alone(tmp_path: Path, model: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a photo of a red circle\na photo of two squares\n")
    data = {"kind": "prompts", "path": str(tmp_path / "prompts.txt")}
    image_free = {"name": "twinflow", "image_free": True, "teacher": "frozen", "guidance": 1.0}
    raw = recipe(model, tmp_path / "run", data, objective=image_free, caption_dropout=0.0)
    assert launch(make_recipe(raw)).status == "finished"
    with pytest.raises(TwinflowError, match="data.kind = 'prompts'.*objective.image_free = true"):
        make_recipe(recipe(model, tmp_path / "run", data))


def test_an_editing_model_is_trained_by_a_recipe(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Source pictures of two shapes, encoded each time and cached; the recipe names a file to open the model with."""
    family = FAMILIES["flux2_klein"]
    family.stock().save_pretrained(tmp_path / "model")
    pictures, lines = tmp_path / "pictures", []
    pictures.mkdir()
    for i in range(6):
        for name in (f"{i}.png", f"from_{i}.png"):
            colour = (40 * i, 90, 200 if name.startswith("from") else 20)
            Image.new("RGB", (96, 64) if i % 2 else (64, 96), colour).save(pictures / name)
        lines.append({"file_name": f"{i}.png", "source": f"from_{i}.png", "text": "less blue"})
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    call = family.call | {"height": 64, "width": 64, "image": str(pictures / "from_0.png")}
    model = {"path": str(tmp_path / "model"), "call": call, "train": "lora", "lora": {"rank": 2}}
    data = {"kind": "folder", "path": str(pictures), "size": 80, "buckets": True, "multiple": 32}

    def raw(output: str, **more: Any) -> dict[str, Any]:
        raw = recipe(tmp_path / "model", tmp_path / output, data | more) | {"model": model}
        return raw | {"train": {"steps": 2, "batch": 2}}

    launch(make_recipe(raw("online")))
    cache(make_recipe(raw("cached", cache=str(tmp_path / "cache"))))
    launch(make_recipe(raw("cached", cache=str(tmp_path / "cache"))))
    assert "can't be left out" not in caplog.text
    assert len(losses(tmp_path / "online")) == 2
    assert losses(tmp_path / "cached") == losses(tmp_path / "online")
    model["call"] = call | {"image": "nowhere.png"}
    with pytest.raises(TwinflowError, match=r"model.call.image = 'nowhere.png' is no picture"):
        launch(make_recipe(raw("other")))


def test_an_editing_model_is_trained_without_targets(tmp_path: Path) -> None:
    """Image-free: sources of two shapes and instructions are all that there is, encoded each time and cached."""
    family = FAMILIES["flux2_klein"]
    family.stock().save_pretrained(tmp_path / "model")
    pictures, lines = tmp_path / "pictures", []
    pictures.mkdir()
    for i in range(4):
        Image.new("RGB", (96, 64) if i % 2 else (64, 96), (60 * i, 90, 20)).save(pictures / f"{i}.png")
        lines.append({"source": f"{i}.png", "text": "less red"})
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    call = family.call | {"height": 64, "width": 64, "image": str(pictures / "0.png")}
    data = {"kind": "folder", "path": str(pictures), "size": 80, "buckets": True, "multiple": 32}
    data |= {"pictures": False}
    raw = recipe(tmp_path / "model", tmp_path / "online", data)
    raw |= {"model": {"path": str(tmp_path / "model"), "call": call}, "train": {"steps": 2, "batch": 2}}
    with pytest.raises(TwinflowError, match="prompts without pictures here: set objective.image_free = true"):
        make_recipe(raw)
    raw["objective"] = {"name": "twinflow", "image_free": True, "teacher": "frozen", "guidance": 1.0}
    with pytest.raises(TwinflowError, match=r'it has no "file_name", the picture after the edit'):
        launch(make_recipe(raw | {"data": data | {"pictures": True}}))
    launch(make_recipe(raw))
    raw |= {"output": str(tmp_path / "cached"), "data": data | {"cache": str(tmp_path / "cache")}}
    cache(make_recipe(raw))
    launch(make_recipe(raw))
    assert len(losses(tmp_path / "online")) == 2
    assert losses(tmp_path / "cached") == losses(tmp_path / "online")


def test_a_size_that_the_autoencoder_does_not_divide(tmp_path: Path, model: Path, pictures: Path) -> None:
    data = {"kind": "folder", "path": str(pictures), "size": 15}
    with pytest.raises(TwinflowError, match=r"divisible|divide"):
        launch(make_recipe(recipe(model, tmp_path / "run", data)))


@pytest.mark.parametrize("objective", [{"name": "twinflow", "guidance": 0.3},
                                       {"name": "mean_flow", "guidance_mix": 2.0}])  # fmt: skip
def test_a_network_that_takes_its_guidance_as_an_input_is_guided_once(
    tmp_path: Path, pictures: Path, objective: dict[str, Any]
) -> None:
    FAMILIES["flux"].stock().save_pretrained(tmp_path / "model")
    raw = recipe(tmp_path / "model", tmp_path / "run", {"kind": "folder", "path": str(pictures), "size": 32})
    raw["model"]["call"] = FAMILIES["flux"].call
    key, given = list(objective.items())[1]
    said = (
        rf"objective\.{key} = {given} .*FluxPipeline was distilled .*guided twice; set objective\.{key}=[01],"
    )
    with pytest.raises(TwinflowError, match=said):
        build_trainer(make_recipe(raw | {"objective": objective}))
    build_trainer(make_recipe(raw | {"objective": objective | {key: 1 if key == "guidance_mix" else 0}}))
