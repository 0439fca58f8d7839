"""N steps equal k steps, any end of the process, and N - k steps after a resume: bit for bit."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from twinflow.config import make_recipe
from twinflow.errors import TwinflowError
from twinflow.objectives import Step, TwinFlow
from twinflow.training import RunResult, Trainer
from twinflow.training.checkpoint import read_checkpoint
from twinflow.training.metrics import read_metrics
from twinflow.training.processes import Processes
from twinflow.training.run_folder import RunFolder, check_processes

from .tiny import Colors, TinyPipeline, tiny_recipe

TESTS = Path(__file__).parents[1]
STEPS = 12


def train(output: Path, *, built: Any = None, resume: str | Path = "auto", **sections: Any) -> RunResult:
    recipe = tiny_recipe(output, **sections)
    return Trainer(recipe, TinyPipeline(), Colors(), objective=built, resume=resume).run()


def everything(result: RunResult) -> dict[str, Any]:
    """All that the last checkpoint and the pipeline hold, the clock apart."""
    assert result.checkpoint is not None
    snapshot = read_checkpoint(result.checkpoint)
    state = {key: value for key, value in snapshot.state.items() if key != "seconds"}
    flat = {f"{file}/{name}": t for file, group in snapshot.tensors.items() for name, t in group.items()}
    return {"state": state, **flat}


def assert_same(one: RunResult, other: RunResult) -> None:
    first, second = everything(one), everything(other)
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == second[key].dtype
            assert value.numpy().tobytes() == second[key].numpy().tobytes(), key
        else:
            assert value == second[key], key


class PowerCut(Exception):
    pass


class FailingTwinFlow(TwinFlow):
    """Fails in its 7th call: in the 7th step, which comes after the checkpoint of step 4."""

    calls = 0

    def step(self, *arguments: Any, **named: Any) -> Step:
        self.calls += 1
        if self.calls == 7:
            raise PowerCut
        return super().step(*arguments, **named)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return train(tmp_path_factory.mktemp("straight"))


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"optimizer": {"name": "radam", "schedule": "wsd", "warmup_steps": 3}, "data": {"cache": False}},
        {"optimizer": {"name": "muon"}, "train": {"accumulate": 2}, "ema": {"decay": 0.8}},
        {"objective": {"name": "twinflow", "teacher": "frozen", "guidance": 2.0}, "ema": {"decay": 0.0}},
    ],
    ids=["adamw", "radam", "muon", "frozen"],
)
def test_a_resumed_run_is_the_same_run(tmp_path: Path, sections: dict[str, Any]) -> None:
    whole = train(tmp_path / "whole", **sections)
    settings = tiny_recipe("unused", **sections).objective
    failing = FailingTwinFlow(**{key: value for key, value in settings.items() if key != "name"})
    with pytest.raises(PowerCut):
        train(tmp_path / "cut", built=failing, **sections)
    resumed = train(tmp_path / "cut", **sections)
    assert resumed.step == whole.step == STEPS
    assert_same(whole, resumed)
    final = TinyPipeline.weights(whole.pipeline), TinyPipeline.weights(resumed.pipeline)
    assert all(torch.equal(final[0][name], final[1][name]) for name in final[0])


class CutPipeline(TinyPipeline):
    def save_pretrained(self, path: Path) -> None:
        raise PowerCut


def test_the_pipeline_is_that_of_the_last_step(tmp_path: Path, straight: RunResult) -> None:
    """Also of a run that was made longer, and killed when it was done but for the pipeline."""
    former = train(tmp_path, train={"steps": 8})
    assert former.pipeline is not None
    with pytest.raises(PowerCut):
        Trainer(tiny_recipe(tmp_path), CutPipeline(), Colors()).run()
    last = train(tmp_path)
    for name, weight in TinyPipeline.weights(straight.pipeline).items():  # type: ignore[arg-type]
        assert torch.equal(TinyPipeline.weights(last.pipeline)[name], weight)  # type: ignore[arg-type]
    written = (tmp_path / "pipeline").stat().st_mtime_ns
    train(tmp_path)
    assert (tmp_path / "pipeline").stat().st_mtime_ns == written  # it is the last one, and is left alone


def test_metrics_have_each_step_once(tmp_path: Path) -> None:
    failing = FailingTwinFlow(guidance=0.3, teacher="ema")
    with pytest.raises(PowerCut):
        train(tmp_path, built=failing)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [2, 4, 6]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    train(tmp_path)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [2, 4, 6, 8, 10, 12]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6


def test_pictures_of_what_is_done_again_are_dropped_from_tensorboard(tmp_path: Path) -> None:
    """Also where the run stopped before its first checkpoint, and is done again from its start."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"log": {"every": 1, "tensorboard": True}, "checkpoint": {"every": 0}}
    failing = FailingTwinFlow(guidance=0.3, teacher="ema")
    with pytest.raises(PowerCut):
        train(tmp_path, built=failing, **settings)
    train(tmp_path, train={"steps": 5}, **settings)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("file", [1, 8], ids=["in the first checkpoint", "in the second"])
def test_kill_in_the_middle_of_a_write(tmp_path: Path, straight: RunResult, file: int) -> None:
    output = tmp_path / "run"
    command = [sys.executable, "-m", "training.run_tiny", str(output), str(STEPS), str(file)]
    killed = subprocess.run(command, cwd=TESTS, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list((output / "checkpoints").glob(".writing-*"))
    kept = [path.name for path in (output / "checkpoints").glob("step_*")]
    assert kept == ([] if file == 1 else ["step_00000004"])
    assert_same(straight, train(output))
    assert not list((output / "checkpoints").glob(".*"))


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    output = tmp_path / "run"
    command = [sys.executable, "-u", "-m", "training.run_tiny", str(output), "100000"]
    with subprocess.Popen(command, cwd=TESTS, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("step"):
            pass
        os.kill(process.pid, signal.SIGINT)
        said = process.stdout.read()
    assert process.returncode == 0
    assert f"to go on: python {TESTS / 'training/run_tiny.py'} {output} 100000" in said
    assert said.endswith("interrupted\n")
    latest = (output / "checkpoints" / "latest").read_text().strip()
    step = read_checkpoint(output / "checkpoints" / latest).state["step"]
    longer = {"train": {"steps": step + 3}}
    assert_same(train(tmp_path / "straight", **longer), train(output, **longer))


def test_a_full_disk_loses_nothing(tmp_path: Path, straight: RunResult) -> None:
    shorter = {"train": {"steps": 4}}
    before = everything(train(tmp_path, **shorter))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (10_000, hard)
    )  # the weights fit, the optimiser's state does not
    try:
        with pytest.raises(TwinflowError, match="step_00000008 could not be written") as caught:
            train(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    needed = sum(file.stat().st_size for file in straight.checkpoint.glob("*.safetensors"))
    words = str(caught.value).split("It needs ")[1].split()
    assert words[1] == "kB,"
    assert float(words[0]) * 1000 == pytest.approx(needed, rel=0.2)
    assert "the last checkpoint is" in str(caught.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()] == ["step_00000004"]
    latest = read_checkpoint(tmp_path / "checkpoints" / "step_00000004")
    assert torch.equal(latest.tensors["weights"]["last.weight"], before["weights/last.weight"])
    assert_same(straight, train(tmp_path))  # there is room again


def test_resume_never_refuses_a_folder_with_a_run(tmp_path: Path) -> None:
    train(tmp_path, train={"steps": 2})
    with pytest.raises(TwinflowError, match="holds a run already"):
        train(tmp_path, resume="never")


def test_resume_from_a_named_checkpoint(tmp_path: Path, straight: RunResult) -> None:
    assert straight.checkpoint is not None
    earlier = straight.checkpoint.with_name("step_00000008")
    assert_same(straight, train(tmp_path / "other", resume=earlier))
    with pytest.raises(TwinflowError, match="there is no checkpoint"):
        train(tmp_path / "other", resume=tmp_path / "nowhere")


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
    result = train(tmp_path, train={"steps": 8})
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
    checkpoint = train(tmp_path, train={"steps": 2}, **few_bits).checkpoint
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


def test_a_finished_run_can_be_made_longer(tmp_path: Path, straight: RunResult) -> None:
    train(tmp_path, train={"steps": 6})
    again = train(tmp_path, train={"steps": 6})
    assert (again.status, again.step) == ("finished", 6)
    assert_same(straight, train(tmp_path))


def test_only_the_last_checkpoints_are_kept(straight: RunResult) -> None:
    folders = sorted(path.name for path in (straight.output / "checkpoints").glob("step_*"))
    assert folders == ["step_00000008", "step_00000012"]
    assert (straight.output / "checkpoints" / "latest").read_text() == "step_00000012\n"
    files = {path.suffix for path in straight.output.rglob("*") if path.is_file()}
    assert files <= {".safetensors", ".json", ".jsonl", ".yaml", ""}


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
