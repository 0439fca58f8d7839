"""Pictures that a run draws on its way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from twinflow.errors import TwinflowError
from twinflow.training.preview import picture_grid

from .trained import train, weights


def test_previews_are_the_same_pictures_and_change_nothing(tmp_path: Path) -> None:
    _, plain = train(tmp_path / "plain")
    result, seen = train(tmp_path / "seen", preview={"every": 5, "count": 5, "nfe": [1, 4]})
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(seen), strict=True))
    names = sorted(path.name for path in (result.output / "previews").iterdir())
    assert names == [f"step_{step:08}_nfe_{nfe:03}.png" for step in (5, 10, 12) for nfe in (1, 4)]
    with Image.open(result.output / "previews" / names[0]) as picture:
        assert picture.size == (3 * 4 + 2 * 2, 2 * 4 + 2)  # five pictures in two rows of three


def test_a_sampler_that_can_not_be_is_told_before_the_first_step(tmp_path: Path) -> None:
    guided = {"every": 5, "nfe": [3], "sampler": {"guidance": 2.0, "style": "multi"}}
    with pytest.raises(TwinflowError, match=r"preview.nfe = 3"):
        train(tmp_path, preview=guided)
    with pytest.raises(TwinflowError, match=r"preview.sampler"):
        train(tmp_path, preview={"every": 5, "sampler": {"guidanc": 2.0}})
    assert not tmp_path.joinpath("recipe.yaml").exists()


def test_the_grid_of_grey_pictures() -> None:
    grid = picture_grid(torch.zeros(2, 1, 3, 3), gap=1)
    assert grid.shape == (3, 3, 7)
    assert grid[0, 0].tolist() == [0.5, 0.5, 0.5, 1, 0.5, 0.5, 0.5]


def test_a_clip_is_a_line_of_frames() -> None:
    clips = torch.linspace(-1, 1, 6).reshape(2, 1, 3, 1, 1).expand(2, 3, 3, 2, 2)
    grid = picture_grid(clips, gap=1)
    assert grid.shape == (3, 5, 8)
    shades = grid[0, ::3, ::3]
    torch.testing.assert_close(shades, torch.linspace(0, 1, 6).reshape(2, 3))
