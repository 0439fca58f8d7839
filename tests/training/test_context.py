"""Processes that divide the tokens of rows (diffusers' context parallelism) train as one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from together import run_together
from twinflow.errors import TwinflowError
from twinflow.pipelines.context import check_divisible
from twinflow.training.parallel import check_context, not_divided
from twinflow.training.processes import Processes

from .context_checks import one_process
from .test_parallel import assert_equal
from .tiny import tiny_recipe

TWO = ["wan:replicate", "wan:shard", "frozen:replicate", "lora:replicate", "checkpointing:shard"]
TWO += ["flux:replicate"]
FOUR = ["wan:replicate", "wan:hybrid"]


def together(world: int, folder: Path, checks: list[str]) -> Path:
    run_together("training.context_checks", world=world, folder=folder, arguments=checks, seconds=600)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return together(2, tmp_path_factory.mktemp("context"), TWO)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[tuple[str, int], dict[str, Any]] = {}

    def of(variant: str, groups: int) -> dict[str, Any]:
        if (variant, groups) not in made:
            made[variant, groups] = one_process(tmp_path_factory.mktemp("one"), variant, groups)
        return made[variant, groups]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("check", TWO)
def test_two_processes_that_share_rows_are_one(check: str, folder: Path, oracle: Any) -> None:
    """Losses, norms, weights and average of one process with the same rows: gradients are those of whole rows."""
    variant, _ = check.split(":")
    found, expected = torch.load(folder / f"{check.replace(':', '_')}.pt"), oracle(variant, 1)
    clipped = max(expected["norms"]) if variant == "checkpointing" else 0.5
    assert_equal(found, expected, largest=max(clipped, 0.5))


@pytest.mark.slow
def test_shards_and_tokens_are_divided_together(folder: Path) -> None:
    whole, half = (torch.load(folder / f"wan_{layout}.pt")["held"] for layout in ("replicate", "shard"))
    assert half == pytest.approx(whole / 2, rel=0.01)  # of odd sizes the first process has more


@pytest.mark.slow
def test_pictures_are_drawn_by_all(folder: Path) -> None:
    drawn = {path.name for path in (folder / "frozen_replicate_run" / "previews").iterdir()}
    assert drawn == {"step_00000002_nfe_001.png", "step_00000004_nfe_001.png"}


@pytest.mark.slow
def test_two_groups_of_two(tmp_path: Path, oracle: Any) -> None:
    """Groups see other rows; gradients are averaged over them."""
    together(4, tmp_path, FOUR)
    for check in FOUR:
        assert_equal(torch.load(tmp_path / f"{check.replace(':', '_')}.pt"), oracle("wan", 2))


def test_places_of_processes_that_share_rows() -> None:
    places = [Processes(rank=rank, world_size=6, context=3) for rank in range(6)]
    assert [place.data_rank for place in places] == [0, 0, 0, 1, 1, 1]
    assert {place.data_count for place in places} == {2}


# What is refused


def test_numbers_that_do_not_divide() -> None:
    with pytest.raises(
        TwinflowError, match=r"parallel.context = 3 does not divide the 4 .* use one of 1, 2, 4"
    ):
        check_context(3, world=4, reason="")
    check_context(2, world=4, reason="")
    wan = diffusers.WanTransformer3DModel
    with pytest.raises(
        TwinflowError, match=r"context = 8 does not divide the 12 attention heads .* 1, 2, 3, 4"
    ):
        check_divisible(wan, {"num_attention_heads": 12}, count=8)
    check_divisible(wan, {"num_attention_heads": 40}, count=8)
    for other in (diffusers.SanaTransformer2DModel, diffusers.LTXVideoTransformer3DModel):
        with pytest.raises(TwinflowError, match=rf"can be divided of Wan.*, not of {other.__name__}: set it"):
            check_divisible(other, {"num_attention_heads": 8}, count=2)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"objective": {"name": "dmd2"}}, "trains or keeps other networks"),
        ({"objective": {"name": "mean_flow", "guidance": 0.0}}, "differentiates calls"),
        ({"train": {"compile": True}}, "train.compile: set that to false"),
        ({"model": {"part": "autoencoder", "path": "tiny"}}, "model.part = 'autoencoder' has no tokens"),
    ],
)
def test_what_can_not_be_divided(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, parallel={"context": 2}, **sections)
    reason = not_divided(recipe.model, recipe.build_objective(), compiled=bool(recipe.train.compile))
    with pytest.raises(
        TwinflowError, match=rf"parallel.context = 2: .*{message}.*or set parallel.context to 1"
    ):
        check_context(2, world=2, reason=reason)
