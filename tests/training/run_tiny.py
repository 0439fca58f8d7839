"""``python -m training.run_tiny OUTPUT STEPS [N]``: train; die by SIGKILL in the writing of the N-th file."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch

from twinflow.training import Trainer, checkpoint

from .tiny import Colors, TinyPipeline, tiny_recipe


def die_while_writing(count: int) -> None:
    """Let file number ``count`` of all checkpoints be half written, and then be killed."""
    write, written = checkpoint.save_tensors, 0

    def write_or_die(tensors: Any, path: Any) -> None:
        nonlocal written
        written += 1
        write(tensors, path)
        if written == count:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save_tensors = write_or_die


if __name__ == "__main__":
    torch.set_num_threads(1)
    output, steps, *files = sys.argv[1:]
    if files:
        die_while_writing(int(files[0]))
    recipe = tiny_recipe(output, train={"steps": int(steps)})
    print(Trainer(recipe, TinyPipeline(), Colors()).run().status)
