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

ENCODED_TOGETHER = """
import sys, torch, torch.distributed as dist
from data.test_cache import Mixed, WordEncoder, flat
from training.tiny import Colors, TinyPipeline
from twinflow.data.loader import cached_in_memory
from twinflow.training.processes import Processes

torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
team = Processes.current()


def of(data, encoder, **more):
    done = []
    examples = cached_in_memory(
        data, encoder, unconditional="", together=4, progress=lambda *at: done.append(at), **more
    )
    rows = [row for row in range(len(data)) if getattr(data, "bucket_of", [0] * len(data))[row] == 0]
    batch = examples.batch(rows, None, epochs=[1] * len(rows))
    assert done[-1] == (len(data), len(data))
    return flat([batch.x, batch.cond, batch.uncond, examples.captions(rows)])


alone, together = TinyPipeline(), TinyPipeline()
assert of(Colors(11), alone) == of(Colors(11), together, team=team)
assert (alone.encoded, together.encoded) == (11, 1 + (7, 4)[rank])  # one by all; groups of 4, 4 and 3, in turns
for data in (Mixed(edit=False), Mixed(edit=True), Mixed(edit=True, pictures=False)):
    assert of(data, WordEncoder()) == of(data, WordEncoder(), team=team)


class Broken(Colors):
    def __getitem__(self, index):
        if index == 6:  # in the second group, which the second process reads
            raise OSError("row 6 can't be read")
        return super().__getitem__(index)


try:
    of(Broken(11), TinyPipeline(), team=team)
except (OSError, RuntimeError) as error:
    said = "OSError: row 6 can't be read"
    assert (type(error).__name__ + ": " + str(error)) == (f"RuntimeError: in process 1: {said}", said)[rank]
else:
    raise AssertionError("it was read")
dist.destroy_process_group()
"""


def in_two_processes(program: str, folder: Path) -> None:
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(rank), str(folder)], cwd=TESTS, stdout=subprocess.DEVNULL
        )
        for rank in range(2)
    ]
    assert [process.wait(120) for process in both] == [0, 0]


@pytest.mark.slow
def test_what_is_kept_in_memory_is_encoded_by_all(tmp_path: Path) -> None:
    """A part by each, and all have the rows of one process alone, bit for bit; a row that can't be read stops all."""
    in_two_processes(ENCODED_TOGETHER, tmp_path)


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    in_two_processes(PROGRAM, tmp_path)
    files = [(tmp_path / f"weights-{rank}.safetensors").read_bytes() for rank in range(2)]
    assert files[0] == files[1]
    saved = read_checkpoint(tmp_path / "run" / "checkpoints" / "step_00000006")
    assert saved.state["order"]["rows"] == 2 * 6 * 3
    first, second = (saved.tensors[f"random_{rank}"]["objective"] for rank in range(2))
    assert not torch.equal(first, second), "each process draws noise of its own"
