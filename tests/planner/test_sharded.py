"""Plans of sharded runs beside what real processes take: the trainer's own step, in two processes over gloo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from together import RESIDENT, run_together

TWO = ("shard", "kept", "bf16_in_backward")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sharded")
    run_together(
        "planner.sharded_steps", world=2, folder=place, arguments=TWO, seconds=400, environment=RESIDENT
    )
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
