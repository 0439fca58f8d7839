"""Layouts that a run can't have, refused before it starts."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from twinflow.config import make_recipe, recipe_dict
from twinflow.errors import TwinflowError
from twinflow.training import Trainer
from twinflow.training.parallel import layout_of
from twinflow.training.processes import Processes

from .tiny import Colors, TinyPipeline, tiny_recipe


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"parallel": {"mode": "hybrid", "shard_size": 3}}, "shard_size = 3 does not divide the 4 processes"),
        ({"parallel": {"mode": "hybrid", "shard_size": 8}}, "use one of 1, 2, 4"),
        ({"optimizer": {"name": "muon"}}, "'muon' orthogonalises whole matrices"),
        ({"objective": {"name": "dmd2"}}, "trains or keeps other networks"),
        ({"objective": {"name": "mean_flow", "guidance": 0.0}}, "does not call the network equally often"),
    ],
)
def test_what_can_not_be_sharded(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, **({"parallel": {"mode": "shard"}} | sections))
    place = Processes(rank=0, world_size=4)
    with pytest.raises(TwinflowError, match=message) as caught:
        layout_of(recipe, recipe.build_objective(), place, torch.device("cpu"))
    assert (
        "shard_size" in message or "parallel.mode to 'replicate'" in str(caught.value) or "use one" in message
    )


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"mode": "zero"}, "parallel.mode"),
        ({"shard_size": 2}, "is for parallel.mode = 'hybrid'"),
        (
            {"mode": "replicate", "cpu_offload": True},
            "cpu_offload is for parallel.mode = 'shard' or 'hybrid'",
        ),
        ({"mode": "hybrid", "shard_size": 0}, "shard_size"),
        ({"context": 0}, "parallel.context"),
    ],
)
def test_bad_recipes(parallel: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TwinflowError, match=message):
        tiny_recipe(tmp_path, parallel=parallel)


def test_background_is_for_sharded_runs(tmp_path: Path) -> None:
    """Refused where weights never are in shards, and said of a run whose weights turn out not to be."""
    with pytest.raises(
        TwinflowError, match="checkpoint.background = true is for sharded runs, got .*replicate"
    ):
        tiny_recipe(tmp_path, parallel={"mode": "replicate"}, checkpoint={"background": True})
    said = io.StringIO()
    for mode in ("auto", "shard"):
        recipe = tiny_recipe(
            tmp_path / mode, parallel={"mode": mode}, checkpoint={"background": True}, train={"steps": 1}
        )
        Trainer(recipe, TinyPipeline(), Colors(), console=Console(file=said, width=200)).run()
    assert said.getvalue().count("checkpoint.background: this run is not sharded, and waits") == 2


def test_one_process_is_never_sharded(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, parallel={"mode": "shard"})
    assert make_recipe(recipe_dict(recipe)) == recipe
    layout = layout_of(recipe, recipe.build_objective(), Processes(), torch.device("cpu"))
    assert not layout.sharded
