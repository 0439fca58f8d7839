"""ShapeWorld on the disk is ShapeWorld."""

from pathlib import Path

import pytest

from twinflow.data.folder import FolderDataset
from twinflow.data.shapeworld import ShapeWorldDataset, write_folder


@pytest.mark.parametrize("level", ["tiny", "full"])
def test_a_folder_of_scenes_is_read_back(tmp_path: Path, level: str) -> None:
    scenes = ShapeWorldDataset(level, length=5, seed=3)
    folder = write_folder(tmp_path / "scenes", count=5, level=level, seed=3)
    read = FolderDataset(folder, size=scenes[0]["pixels"].shape[1])
    assert len(read) == 5
    for item, scene in zip(read, scenes, strict=False):
        assert item["caption"] == scene["caption"]
        assert (item["pixels"] - scene["pixels"]).abs().max() <= 0.5 / 127.5 + 1e-6  # of 8 bits
