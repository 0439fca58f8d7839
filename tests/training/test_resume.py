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

from twinflow.errors import TwinflowError
from twinflow.objectives import Step, TwinFlow
from twinflow.training import RunResult, Trainer
from twinflow.training.checkpoint import read_checkpoint
from twinflow.training.metrics import read_metrics
from twinflow.training.run_folder import RunFolder

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
    failing = FailingTwinFlow(guidance=0.3, teacher="ema", longest_jump=None)
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
    failing = FailingTwinFlow(guidance=0.3, teacher="ema", longest_jump=None)
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


class StoppedAtOnce(TwinFlow):
    def step(self, *arguments: Any, **named: Any) -> Step:
        raise PowerCut


def stopped_at_once(output: Path, *, resume: Path) -> RunFolder:
    """The folder of a run that goes on from ``resume`` and makes no step."""
    with pytest.raises(PowerCut):
        train(output, built=StoppedAtOnce(guidance=0.3, teacher="ema"), resume=resume)
    return RunFolder(tiny_recipe(output))


def test_the_checkpoint_that_was_named_is_gone_on_with(tmp_path: Path, straight: RunResult) -> None:
    """By the next command too, if this one saves nothing; and what came after it is there until something is saved."""
    last = train(tmp_path).checkpoint
    assert last is not None
    earlier = last.with_name("step_00000008")
    folder = stopped_at_once(tmp_path, resume=earlier)
    assert folder.resume_from() == earlier
    assert folder.resume_from(last) == last
    shutil.rmtree(earlier)
    assert folder.resume_from(last) == last
    with pytest.raises(TwinflowError, match=r"goes on from .*step_00000008, which is not there any more"):
        folder.resume_from()


def test_a_checkpoint_of_another_folder_is_gone_on_with(tmp_path: Path, straight: RunResult) -> None:
    train(tmp_path / "first", train={"steps": 4})
    earlier = tmp_path / "first" / "checkpoints" / "step_00000004"
    folder = stopped_at_once(tmp_path / "second", resume=earlier)
    assert folder.resume_from() == earlier
    assert_same(straight, train(tmp_path / "second"))
    assert folder.resume_from() == folder.checkpoints.path / "step_00000012"


def test_a_run_of_another_recipe_is_not_written_over(tmp_path: Path, straight: RunResult) -> None:
    assert straight.checkpoint is not None
    train(tmp_path, optimizer={"lr": 1e-3})
    with pytest.raises(TwinflowError, match=f"{tmp_path} holds another run: its optimizer.lr is 0.001"):
        train(tmp_path, resume=straight.checkpoint.with_name("step_00000008"))


def test_the_pipeline_is_that_of_the_checkpoint_that_was_named(tmp_path: Path) -> None:
    """Also where no step is left to make."""
    first = train(tmp_path, train={"steps": 8})
    shorter = train(tmp_path, train={"steps": 4}, resume=tmp_path / "checkpoints" / "step_00000004")
    alone = train(tmp_path / "alone", train={"steps": 4})
    assert (first.step, shorter.step) == (8, 4)
    found = TinyPipeline.weights(shorter.pipeline)  # type: ignore[arg-type]
    for name, weight in TinyPipeline.weights(alone.pipeline).items():  # type: ignore[arg-type]
        assert torch.equal(found[name], weight)


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
