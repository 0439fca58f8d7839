"""Programs of several processes, started by a test (gloo on localhost)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

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
