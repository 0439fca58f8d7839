"""Programs of several processes, started by a test (gloo on localhost)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from twinflow.training.joining import joined

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
    commands = [["-m", module, str(rank), str(world), str(folder), *arguments] for rank in range(world)]
    _run_all(commands, logs, seconds=seconds, environment=environment or {})


def run_on_machines(
    module: str, *, machines: int, each: int, folder: Path, arguments: Sequence[str], seconds: float
) -> None:
    """The same in ``machines`` times ``each`` processes, which as many agents of ``torchrun`` start: it tells each that
    there are ``each`` on its machine. They are all on this one, and meet by a file."""
    agent = ["-m", "torch.distributed.run", "--nnodes", str(machines), "--nproc-per-node", str(each)]
    agent += ["--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file", "--local-addr", "127.0.0.1"]
    agent += ["--rdzv-endpoint", str(folder / "machines"), "--rdzv-id", "machines", "-m", module, str(folder)]
    logs = [folder / f"log_machine_{machine}" for machine in range(machines)]
    _run_all([[*agent, *arguments]] * machines, logs, seconds=seconds, environment={})


def _run_all(
    commands: Sequence[Sequence[str]], logs: Sequence[Path], *, seconds: float, environment: dict[str, str]
) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=TESTS,
            env=os.environ | environment,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for command, log in zip(commands, logs, strict=True)
    ]
    try:
        codes = [process.wait(seconds) for process in running]
    finally:
        for process in running:
            process.terminate()  # an agent ends its own ones then
        for process in running:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
    assert codes == [0] * len(codes), "\n".join(log.read_text()[-3000:] for log in logs)


def take_part(check: Callable[[Path, str], None]) -> None:
    """One of the processes of :func:`run_together` or :func:`run_on_machines`: ``check`` of the folder and of each
    argument, in step."""
    torch.set_num_threads(1)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        folder, *wanted = sys.argv[1:]
        with joined(cuda=False):
            _in_step(check, Path(folder), wanted)
        return
    rank, world, folder, *wanted = sys.argv[1:]
    meeting = f"file://{folder}/meet_{world}_{wanted[0]}"
    dist.init_process_group("gloo", init_method=meeting, rank=int(rank), world_size=int(world))
    _in_step(check, Path(folder), wanted)
    dist.destroy_process_group()


def _in_step(check: Callable[[Path, str], None], folder: Path, wanted: Sequence[str]) -> None:
    for argument in wanted:
        check(folder, argument)
        dist.barrier()
