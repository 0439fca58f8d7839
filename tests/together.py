"""Programs of several processes, started by a test (gloo on localhost)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

TESTS = Path(__file__).parent
# What is allocated is what is resident: large blocks are taken from the system one by one.
RESIDENT = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def run_together(
    module: str,
    *,
    world: int,
    folder: Path,
    arguments: Sequence[str] = (),
    seconds: float,
    environment: dict[str, str] | None = None,
) -> None:
    """``python -m MODULE RANK WORLD FOLDER ARGUMENTS…`` for every rank; fails with what those said that failed."""
    logs = [folder / "_".join(["log", str(world), *arguments[:1], str(rank)]) for rank in range(world)]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(rank), str(world), str(folder), *arguments],
            cwd=TESTS,
            env=os.environ | (environment or {}),
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(seconds) for process in running]
    finally:
        for process in running:
            process.kill()
    assert codes == [0] * world, "\n".join(log.read_text()[-3000:] for log in logs)


def take_part(check: Callable[[Path, str], None]) -> None:
    """One of the processes of :func:`run_together`: ``check`` of the folder and of each argument, in step."""
    torch.set_num_threads(1)
    rank, world, folder, *wanted = sys.argv[1:]
    meeting = f"file://{folder}/meet_{world}_{wanted[0]}"
    dist.init_process_group("gloo", init_method=meeting, rank=int(rank), world_size=int(world))
    for argument in wanted:
        check(Path(folder), argument)
        dist.barrier()
    dist.destroy_process_group()
