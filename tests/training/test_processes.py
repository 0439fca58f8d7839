"""Two processes train as one: they see different rows and keep the same weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from twinflow.training.checkpoint import read_checkpoint

TESTS = Path(__file__).parents[1]

PROGRAM = """
import sys, torch, torch.distributed as dist
from safetensors.torch import save_file
from training.tiny import Colors, TinyPipeline, tiny_recipe
from twinflow.training import Trainer

torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
for steps in (4, 6):  # the second goes on from the first one's checkpoint
    trainer = Trainer(tiny_recipe(folder + "/run", train={"steps": steps}), TinyPipeline(), Colors())
    assert trainer.run().step == steps
    dist.barrier()
save_file(dict(trainer.pipe.network.state_dict()), f"{folder}/weights-{rank}.safetensors")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM]
    both = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=TESTS, stdout=subprocess.DEVNULL)
        for rank in range(2)
    ]
    assert [process.wait(120) for process in both] == [0, 0]
    files = [(tmp_path / f"weights-{rank}.safetensors").read_bytes() for rank in range(2)]
    assert files[0] == files[1]
    saved = read_checkpoint(tmp_path / "run" / "checkpoints" / "step_00000006")
    assert saved.state["order"]["rows"] == 2 * 6 * 3
    first, second = (saved.tensors[f"random_{rank}"]["objective"] for rank in range(2))
    assert not torch.equal(first, second), "each process draws noise of its own"
