"""Plans of sharded runs beside what real processes take: the trainer's own step, in two processes over gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TWO = ("shard", "kept", "bf16_in_backward")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sharded")
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is allocated is what is resident
    logs = [place / f"log_{rank}" for rank in range(2)]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "planner.sharded_steps", str(rank), "2", str(place), *TWO],
            cwd=TESTS,
            env=environment,
            stdout=logs[rank].open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    try:
        codes = [process.wait(400) for process in running]
    finally:
        for process in running:
            process.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    return place


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read in /proc")
@pytest.mark.parametrize("case", TWO)
def test_a_plan_of_shards_is_what_a_process_takes(case: str, folder: Path) -> None:
    """Slices, whole blocks on their way, activations and gradients together."""
    found = json.loads((folder / f"{case}.json").read_text())
    assert found["shards"] == 2
    kept = sum(found["planned"][name] for name in ("weights", "optimiser states"))
    assert kept == pytest.approx(found["kept"], rel=0.01)
    assert found["allocated"] == pytest.approx(found["kept"] + found["peak"], rel=0.1)
