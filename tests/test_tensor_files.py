"""What is written can be read by whoever the umask lets read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines.tiny import lively_pipeline
from twinflow.data.shapeworld import write_folder
from twinflow.launch import cache, launch
from twinflow.pipelines import AnyStepPipeline
from twinflow.recipes import make_recipe
from twinflow.tensor_files import save_tensors

pytestmark = pytest.mark.skipif(os.name == "nt", reason="permissions of another kind")


def permissions(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


@pytest.fixture
def umask():
    """Sets the umask, for the length of a test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_new_files_follow_the_umask(tmp_path, umask, mask, expected):
    umask(mask)
    tensors = {"a": torch.arange(3.0)}
    save_tensors(tensors, tmp_path / "a.safetensors", metadata={"b": "c"})
    assert permissions(tmp_path / "a.safetensors") == expected
    assert torch.equal(load_file(tmp_path / "a.safetensors")["a"], tensors["a"])


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path, umask):
    file = tmp_path / "a.safetensors"
    file.touch()
    file.chmod(0o640)
    save_tensors({"a": torch.zeros(2)}, file)
    assert permissions(file) == 0o640


def test_a_failure_leaves_no_empty_file_and_spoils_none(tmp_path):
    save_tensors({"a": torch.zeros(2)}, tmp_path / "there.safetensors")
    shared = torch.zeros(2)
    for name in ("new", "there"):
        with pytest.raises(RuntimeError, match="share memory"):
            save_tensors({"a": shared, "b": shared}, tmp_path / f"{name}.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["there.safetensors"]
    assert load_file(tmp_path / "there.safetensors").keys() == {"a"}


@pytest.mark.parametrize("train", ["full", "lora"])
def test_runs_caches_and_checkpoints(tmp_path, umask, train):
    AnyStepPipeline(lively_pipeline()).save_pretrained(tmp_path / "model")
    pictures = write_folder(tmp_path / "pictures", count=4)
    recipe = make_recipe(
        {
            "model": {"path": str(tmp_path / "model"), "train": train},
            "data": {"kind": "folder", "path": str(pictures), "size": 16, "cache": str(tmp_path / "cache")},
            "objective": {"name": "twinflow"},
            "train": {"steps": 1, "batch": 2},
            "log": {"tensorboard": False},
            "output": str(tmp_path / "run"),
        }
    )
    cache(recipe)
    launch(recipe)
    files = list(tmp_path.rglob("*.safetensors"))
    places = {file.relative_to(tmp_path).parts[:2] for file in files}
    assert {("cache", "opening.safetensors"), ("run", "checkpoints"), ("run", "pipeline")} <= places
    assert {permissions(file) for file in files} == {0o644}
