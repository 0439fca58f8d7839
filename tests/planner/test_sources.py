"""Configurations of a folder and of the hub: they are all that a plan needs, and all that it asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from families import FAMILIES
from twinflow.config import make_recipe
from twinflow.errors import TwinflowError
from twinflow.pipelines import AnyStepPipeline
from twinflow.planner import Backbone, gpu_named, plan_recipe
from twinflow.planner.prediction import backbone_of


def write_configurations(stock: Any, folder: Path) -> None:
    """The JSON files of ``stock``, without weights."""
    stock.save_config(folder)
    for name, part in stock.components.items():
        if hasattr(part, "save_config"):  # of diffusers
            part.save_config(folder / name)
        elif hasattr(getattr(part, "config", None), "save_pretrained"):  # of transformers
            part.config.save_pretrained(folder / name)


def recipe(path: str) -> Any:
    return make_recipe(
        {
            "model": {"path": path},
            "data": {"kind": "folder", "path": "pictures", "size": 64},
            "objective": {"name": "twinflow"},
            "train": {"steps": 1, "batch": 2},
            "output": "-",
        }
    )


def public(backbone: Backbone) -> dict[str, Any]:
    """The transformer's settings as JSON holds them, without the notes that diffusers keeps beside."""
    held: dict[str, Any] = json.loads(json.dumps(dict(backbone.config)))
    return {key: value for key, value in held.items() if not key.startswith("_")}


@pytest.mark.parametrize("name", ["lumina2", "wan_i2v"])  # of the latter CLIP's tokens are counted too
def test_a_folder_of_configurations_is_what_the_pipeline_is(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    stock = family.stock()
    write_configurations(stock, tmp_path)
    stored, loaded = Backbone.stored(str(tmp_path)), backbone_of(AnyStepPipeline(stock, call=family.call))
    assert (stored.kind, public(stored)) == (loaded.kind, public(loaded))
    assert stored.compression == loaded.compression
    assert stored.image_tokens == loaded.image_tokens == (5 if name == "wan_i2v" else 257)


def test_of_the_hub_nothing_but_configurations_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is that of a folder; a weight, or a whole snapshot, is never asked for."""
    write_configurations(FAMILIES["lumina2"].stock(), tmp_path)
    asked: list[tuple[str, str]] = []

    def download(repo_id: str, filename: str, **options: Any) -> str:
        asked.append((repo_id, filename))
        return str(tmp_path / filename)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError(f"asked the hub for more: {arguments} {options}")

    monkeypatch.setattr("twinflow.hub.ask", lambda: None)  # it is there
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr("huggingface_hub.file_download.http_get", refuse)
    gpu = gpu_named("rtx4090-24")
    _, of_hub = plan_recipe(recipe("someone/lumina"), gpu=gpu)
    assert {repo for repo, _ in asked} == {"someone/lumina"}
    assert {name for _, name in asked} == {"model_index.json", "transformer/config.json", "vae/config.json"}
    _, of_folder = plan_recipe(recipe(str(tmp_path)), gpu=gpu)
    assert of_hub.peak == of_folder.peak
    assert of_hub.model == "someone/lumina"


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    write_configurations(FAMILIES["lumina2"].stock(), tmp_path)
    (tmp_path / "vae" / "config.json").unlink()
    with pytest.raises(TwinflowError, match=r"vae/config\.json can't be read"):
        Backbone.stored(str(tmp_path))
