"""Pictures that a run draws on its way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from twinflow.errors import TwinflowError
from twinflow.sampling import sample, seeded_noise
from twinflow.training.preview import picture_grid, save_grid

from .tiny import TinyPipeline
from .trained import train, weights


def test_previews_are_the_same_pictures_and_change_nothing(tmp_path: Path) -> None:
    _, plain = train(tmp_path / "plain")
    result, seen = train(tmp_path / "seen", preview={"every": 5, "count": 5, "nfe": [1, 4]})
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(seen), strict=True))
    names = sorted(path.name for path in (result.output / "previews").iterdir())
    assert names == [f"step_{step:08}_nfe_{nfe:03}.png" for step in (5, 10, 12) for nfe in (1, 4)]
    with Image.open(result.output / "previews" / names[0]) as picture:
        assert picture.size == (3 * 4 + 2 * 2, 2 * 4 + 2)  # five pictures in two rows of three


def test_previews_are_drawn_as_their_sampler_section_says(tmp_path: Path) -> None:
    """The authors' loop draws them by its own defaults, whatever its recipe asks for."""
    prompts = ["red", "green", "blue", "red"]
    preview = {"every": 4, "prompts": prompts, "nfe": [4], "seed": 5, "sampler": {"style": "multi"}}
    result, _ = train(tmp_path, train={"steps": 4}, preview=preview)
    assert result.pipeline is not None
    pipe = TinyPipeline()
    pipe.network.load_state_dict(TinyPipeline.weights(result.pipeline))
    noise, cond = seeded_noise(pipe.latent_shape, [5, 6, 7, 8]), pipe.encode_prompts(prompts)
    drawn = tmp_path / "previews/step_00000004_nfe_004.png"
    for style, same in (("multi", True), ("few", False)):
        latents = sample(pipe.field, noise, cond, nfe=4, style=style)  # type: ignore[arg-type]
        save_grid(picture_grid(pipe.decode(latents)), tmp_path / "ours.png")
        assert ((tmp_path / "ours.png").read_bytes() == drawn.read_bytes()) == same


def test_grids_of_equal_weights_are_equal_files_at_every_nfe(tmp_path: Path) -> None:
    """Also those of steps that draw noise on their way, wherever the process's own generator is by then."""
    seeds, grids, learnt = {"one": 0, "again": 0, "other": 1}, {}, {}
    for at, (name, seed) in enumerate(seeds.items()):
        torch.manual_seed(at)
        preview = {"every": 2, "seed": seed, "sampler": {"stochastic": 1.0}}
        result, trainer = train(tmp_path / name, train={"steps": 2}, preview=preview)
        learnt[name] = torch.cat([w.flatten() for w in weights(trainer)])
        files = sorted((result.output / "previews").iterdir())
        assert [file.name[-7:-4] for file in files] == ["001", "002", "004"]
        grids[name] = [file.read_bytes() for file in files]
    assert torch.equal(learnt["one"], learnt["again"])
    assert torch.equal(learnt["one"], learnt["other"])
    assert grids["one"] == grids["again"]
    assert all(a != b for a, b in zip(grids["one"], grids["other"], strict=True))


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
