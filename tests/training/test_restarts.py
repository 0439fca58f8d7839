"""The command under torchrun: a process that is killed, and one that fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from together import TESTS
from twinflow.training import Trainer
from twinflow.training.metrics import read_metrics

from .same import assert_same_tensors
from .test_parallel import assert_same
from .tiny import Colors, TinyPipeline, tiny_recipe


def torchrun(*arguments: str, restarts: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*command, "--max-restarts", str(restarts), *arguments],
        cwd=TESTS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def pid_of(rank: int, *, parent: int) -> int:
    """The process that ``torchrun`` has started for ``rank``."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            own = (entry / "stat").read_text().rpartition(")")[2].split()[1] == str(parent)
            if own and f"RANK={rank}" in (entry / "environ").read_text().split("\0"):
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError("there is no such process")


# All weights, in slices; and a LoRA without a picture, whole in each process.
KINDS = {
    "full": ("{path: shapeworld-tiny}", "{name: twinflow, teacher: ema}", "shard"),
    "lora": (
        "{path: shapeworld-tiny, train: lora, lora: {rank: 2}}",
        "{name: twinflow, image_free: true}",
        "replicate",
    ),
}
RECIPE = """
model: {model}
data: {{kind: shapeworld, length: 4}}
objective: {objective}
train: {{steps: 5, batch: 2, threads: 1}}
parallel: {{mode: {mode}}}
checkpoint: {{every: 2}}
log: {{every: 1, tensorboard: false}}
output: {output}
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_restarted(kind: str, tmp_path: Path) -> None:
    """kill -9 of one process; torchrun starts all again, and they go on: as if nothing had been."""
    model, objective, mode = KINDS[kind]
    for name in ("straight", "killed"):
        recipe = RECIPE.format(model=model, objective=objective, mode=mode, output=tmp_path / name)
        (tmp_path / f"{name}.yaml").write_text(recipe)
    with torchrun("-m", "twinflow", "train", str(tmp_path / "straight.yaml")) as run:
        said = run.communicate(timeout=300)[0]
    assert run.returncode == 0, said
    with torchrun("-m", "twinflow", "train", str(tmp_path / "killed.yaml"), restarts=1) as run:
        lines = []
        assert run.stdout is not None
        for line in run.stdout:
            lines.append(line)
            if line.startswith("step 3/5") and sum("step 3/5" in one for one in lines) == 1:
                os.kill(pid_of(1, parent=run.pid), signal.SIGKILL)
    said = "".join(lines)
    assert run.returncode == 0, said
    assert "resumed at step 2" in said
    assert_same(*(tmp_path / name / "checkpoints" / "step_00000005" for name in ("straight", "killed")))
    pipelines = [tmp_path / name / "pipeline" for name in ("straight", "killed")]
    files = sorted(file.relative_to(pipelines[0]) for file in pipelines[0].rglob("*.safetensors"))
    assert any({"full": "transformer", "lora": "lora"}[kind] in str(file) for file in files)
    for file in files:
        assert_same_tensors(pipelines[0] / file, pipelines[1] / file)
    steps = [line["step"] for line in read_metrics(tmp_path / "killed" / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4, 5]

    exported = tmp_path / "exported"
    program = [sys.executable, "-m", "twinflow", "export-checkpoint", str(tmp_path / "killed"), str(exported)]
    subprocess.run(program, check=True, capture_output=True)
    for file in files:
        assert_same_tensors(pipelines[0] / file, exported / file)


FAILING = """
import sys, torch.distributed as dist
from training.tiny import Colors, TinyPipeline, tiny_recipe
from twinflow.objectives import TwinFlow
from twinflow.training import Trainer
from twinflow.training.joining import joined

class Failing(TwinFlow):
    def step(self, *arguments, **named):
        if dist.get_rank() == 1 and self._at == 2:
            raise RuntimeError("the sky has fallen")
        return super().step(*arguments, **named)

with joined(cuda=False):
    recipe = tiny_recipe(sys.argv[1], parallel={"mode": "shard"})
    Trainer(recipe, TinyPipeline(), Colors(), objective=Failing(guidance=0.3, teacher="ema")).run()
"""


@pytest.mark.slow
def test_a_process_that_fails_ends_the_run(tmp_path: Path) -> None:
    program = tmp_path / "failing.py"
    program.write_text(f"import sys; sys.path.insert(0, {str(TESTS)!r})\n{FAILING}")
    with torchrun(str(program), str(tmp_path / "run")) as run:
        said = run.communicate(timeout=300)[0]
    assert run.returncode != 0
    assert "the sky has fallen" in said


KILLED = """
import os, signal, sys, threading, torch.distributed as dist, torch.distributed.checkpoint as dcp
from training.tiny import Colors, TinyPipeline, tiny_recipe
from twinflow.objectives import TwinFlow
from twinflow.training import Trainer
from twinflow.training.joining import joined

held = threading.Event()

class Killed(TwinFlow):
    made = 0

    def step(self, *arguments, **named):
        self.made += 1
        if dist.get_rank() == 1 and self.made == 5:  # the checkpoint of the step before is being written
            held.wait()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(*arguments, **named)

write = dcp.HuggingFaceStorageWriter.write_data

def write_or_wait(self, plan, planner):
    if dist.get_rank() == 1 and "step_00000004" in str(self.path):
        held.set()
        threading.Event().wait()
    return write(self, plan, planner)

def train(name, built=None):
    sections = {"parallel": {"mode": "shard"}, "checkpoint": {"every": 2, "keep": 9, "background": True}}
    recipe = tiny_recipe(f"{sys.argv[1]}/{name}", train={"steps": 6}, **sections)
    Trainer(recipe, TinyPipeline(), Colors(), objective=built).run()

with joined(cuda=False):
    train("straight")
    dcp.HuggingFaceStorageWriter.write_data = write_or_wait
    train("killed", Killed(guidance=0.3, teacher="ema", longest_jump=None))
"""


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    """kill -9 of one process, which nobody starts again, ends the run with that; the checkpoint before the one that was
    being written in the background is good, and gone on with."""
    program = tmp_path / "killed.py"
    program.write_text(f"import sys; sys.path.insert(0, {str(TESTS)!r})\n{KILLED}")
    with torchrun(str(program), str(tmp_path)) as run:
        said = run.communicate(timeout=300)[0]
    assert run.returncode not in (0, None), said
    assert "SIGKILL" in said
    folders = [tmp_path / name / "checkpoints" for name in ("straight", "killed")]
    assert (folders[1] / ".writing-step_00000004").is_dir()
    assert not (folders[1] / "step_00000004").exists()
    assert_same(*(folder / "step_00000002" for folder in folders))

    recipe = tiny_recipe(
        tmp_path / "killed",
        train={"steps": 6},
        parallel={"mode": "shard"},
        checkpoint={"every": 2, "keep": 9},
    )
    resumed = Trainer(recipe, TinyPipeline(), Colors()).run()
    assert resumed.step == 6
    steps = [line["step"] for line in read_metrics(tmp_path / "killed" / "metrics.jsonl")]
    assert steps == [2, 4, 6]
    assert not list(folders[1].glob(".*"))
