"""Data sections of recipes: what is allowed, and what is told before anything is read."""

from __future__ import annotations

from typing import Any

import pytest

from twinflow.config import make_recipe
from twinflow.errors import TwinflowError


def recipe(data: dict[str, Any], **sections: Any) -> Any:
    return make_recipe(
        {
            "model": "somewhere",
            "data": data,
            "objective": {"name": "twinflow"},
            "train": {"steps": 1, "batch": 1},
            "output": "runs/x",
            **sections,
        }
    )


def test_defaults() -> None:
    assert recipe({"kind": "shapeworld"}).data.cache is True
    assert recipe({"kind": "digits"}).data.encode_batch == 64
    folder = recipe({"kind": "folder", "path": "a"}).data
    assert (folder.cache, folder.encode_batch, folder.size, folder.buckets) == (False, 1, 512, False)
    assert recipe({"kind": "folder", "path": "a", "size": [480, 832]}).data.size == (480, 832)
    assert recipe({"kind": "folder", "path": "a", "cache": "some/folder"}).data.cache == "some/folder"
    assert recipe({"kind": "video", "path": "a", "frames": 5, "fps": 8}).data.fps == 8


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            {"kind": "folder", "path": "a", "cache": 3},
            "data.cache = 3 is not allowed: use true, false, or a folder",
        ),
        ({"kind": "shapeworld", "cache": ""}, "data.cache = '' is not allowed"),
        ({"kind": "folder", "path": "a", "size": 0}, "data.size = 0 is not allowed"),
        ({"kind": "folder", "path": "a", "size": [1, 2, 3]}, "data.size = .* or .height, width."),
        ({"kind": "folder", "path": "a", "size": [8, 8], "buckets": True}, "data.buckets needs one side"),
        ({"kind": "folder", "path": "a", "size": 32, "buckets": True}, "data.multiple = 64 must not exceed"),
        (
            {"kind": "dataset", "path": "a", "streaming": True, "cache": True},
            "streaming = true can't be with data.cache",
        ),
        ({"kind": "dataset", "path": "a", "streaming": True, "buckets": True}, "can't be with data.buckets"),
        ({"kind": "dataset", "path": "a", "columns": {"txt": "b"}}, "data.columns.txt is not a recipe key"),
        ({"kind": "parquet", "path": "a"}, "data.kind = 'parquet' is not known.*dataset"),
        ({"kind": "video", "path": "a"}, "data.frames is missing"),
        ({"kind": "prompts", "path": "a"}, "objective.image_free = true"),
        ({"kind": "folder", "path": "a", "pictures": False}, "objective.image_free = true"),
    ],
)
def test_what_is_not_allowed(data: dict[str, Any], words: str) -> None:
    with pytest.raises(TwinflowError, match=words):
        recipe(data)


def test_a_cache_is_for_transformers() -> None:
    with pytest.raises(
        TwinflowError, match=r"data.cache = 'c' holds latents, but model.part = 'autoencoder'"
    ):
        recipe({"kind": "shapeworld", "cache": "c"}, model={"path": "a", "part": "autoencoder"})
