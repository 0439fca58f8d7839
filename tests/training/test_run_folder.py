"""What a run can not go on from, or be written to, is refused before anything is loaded."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from twinflow.config import make_recipe
from twinflow.errors import TwinflowError
from twinflow.training import Trainer
from twinflow.training.processes import Processes
from twinflow.training.run_folder import RunFolder, check_processes

from .tiny import Colors, TinyPipeline, tiny_recipe
from .trained import train


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"model": {"path": "another"}}, "model.path"),
        ({"train": {"batch": 5}}, "train.batch"),
        ({"objective": {"name": "flow_matching"}}, "objective.name"),
        ({"optimizer": {"name": "radam"}}, "optimizer.name"),
    ],
)
def test_a_folder_of_another_run(tmp_path: Path, sections: dict[str, Any], key: str) -> None:
    train(tmp_path, train={"steps": 2})
    with pytest.raises(TwinflowError, match=f"holds another run: its {key} is"):
        train(tmp_path, **sections)


@pytest.mark.parametrize(("kept", "said"), [(None, "0 bytes"), (100, "100 bytes")])
def test_half_of_a_checkpoint(tmp_path: Path, kept: int | None, said: str) -> None:
    """As an interrupted copy leaves it; removed, the run goes on from the one before."""
    result, _ = train(tmp_path, train={"steps": 8})
    assert result.checkpoint is not None
    file = result.checkpoint / "optimizer.safetensors"
    half = file.read_bytes()[:kept]
    file.unlink()
    if kept is not None:
        file.write_bytes(half)
    with pytest.raises(TwinflowError, match=f"half of a checkpoint: optimizer.* has {said} of .*go on from"):
        RunFolder(tiny_recipe(tmp_path)).resume_from("auto")
    shutil.rmtree(result.checkpoint)
    found = RunFolder(tiny_recipe(tmp_path)).resume_from("auto")
    assert found == result.checkpoint.with_name("step_00000004")


def test_another_number_of_processes(tmp_path: Path) -> None:
    """Refused where states or streams are cut for a number, before anything is loaded."""
    few_bits = {"optimizer": {"name": "adamw8bit"}}
    checkpoint = train(tmp_path, train={"steps": 2}, **few_bits)[0].checkpoint
    assert checkpoint is not None
    two = Processes(rank=1, world_size=2)
    check_processes(checkpoint, tiny_recipe(tmp_path), two, shards=2)
    check_processes(checkpoint, tiny_recipe(tmp_path, **few_bits), two, shards=1)
    with pytest.raises(TwinflowError, match=r"'adamw8bit' are cut for 1 .* would be 2.*--nproc-per-node 1"):
        check_processes(checkpoint, tiny_recipe(tmp_path, **few_bits), two, shards=2)
    file = checkpoint / "state.json"
    file.write_text(file.read_text().replace('"rows":', '"world_size": 4, "rows":'))
    with pytest.raises(
        TwinflowError, match=r"stopped in, 4, got 2.*--nproc-per-node 4.*data.streaming = false"
    ):
        check_processes(checkpoint, tiny_recipe(tmp_path), two, shards=1)


def test_a_checkpoint_of_another_network(tmp_path: Path) -> None:
    train(tmp_path, train={"steps": 4})
    with pytest.raises(
        TwinflowError, match=r"of another model or run: first.weight has the shape \(16, 54\)"
    ):
        Trainer(tiny_recipe(tmp_path), TinyPipeline(width=8), Colors()).run()


def test_a_run_that_saved_nothing_may_be_corrected(tmp_path: Path) -> None:
    """A mistake that shows late leaves its recipe in the folder, and no obstacle."""
    wrong = RunFolder(tiny_recipe(tmp_path, train={"batch": 5}))
    wrong.claim()
    assert RunFolder(tiny_recipe(tmp_path)).resume_from("auto") is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')  # it has begun
    with pytest.raises(TwinflowError, match="holds another run: its train.batch is 5"):
        RunFolder(tiny_recipe(tmp_path)).resume_from("auto")


def test_an_output_that_can_not_be_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before anything is loaded, for any ``resume``."""
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(TwinflowError, match="file is a file. Name another"):
            RunFolder(tiny_recipe(output)).resume_from("never")
    data = {"kind": "folder", "path": str(tmp_path)}
    recipe = tiny_recipe(tmp_path / "run").model_dump(mode="json") | {"data": data, "output": f"{tmp_path}/."}
    with pytest.raises(TwinflowError, match="is the folder of the data"):
        RunFolder(make_recipe(recipe)).resume_from()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(TwinflowError, match="can't be written to"):
        RunFolder(tiny_recipe(tmp_path / "run")).resume_from()
