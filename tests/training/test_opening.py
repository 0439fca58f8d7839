"""Of processes that share a network's weights one alone reads them, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.fsdp._fully_shard import _fsdp_common

from together import RESIDENT, run_together
from twinflow.pipelines.absent import without_weights
from twinflow.training.handing_out import make_empty
from twinflow.training.processes import Processes

from .opening_checks import CHECKS, RUNS
from .same import assert_same_tensors


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read in /proc")
def test_processes_open_a_network_together(tmp_path: Path) -> None:
    """Weights are those of an ordinary opening bit for bit, and a run is the same run (checked in the processes)."""
    checks = list(CHECKS)
    if not hasattr(_fsdp_common, "ShardPlacementResult"):
        checks.remove("half")  # weights of several dtypes, which older versions of torch can't shard
    run_together(
        "training.opening_checks",
        world=2,
        folder=tmp_path,
        arguments=checks,
        seconds=600,
        environment=RESIDENT,
    )
    found = [json.loads((tmp_path / f"memory_{rank}.json").read_text()) for rank in range(2)]
    size = found[0]["size"]
    assert all(of_one["alone"] > size for of_one in found), "what would be seen of a whole network"
    assert found[0]["together"] > size
    # Half of it stays; on the way come one parameter whole, and the libraries that opening needs.
    assert found[1]["together"] < 0.75 * size

    for variant in RUNS:
        runs = [tmp_path / f"{name}_{variant}" / "pipeline" for name in ("together", "alone")]
        names = sorted(file.relative_to(runs[0]) for file in runs[0].rglob("*.safetensors"))
        assert names
        for name in names:
            assert_same_tensors(runs[0] / name, runs[1] / name)


def test_modules_without_weights_keep_what_they_calculate() -> None:
    class Tabled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 4)
            self.register_buffer("table", torch.arange(3.0), persistent=False)

    with without_weights():
        empty = Tabled()
    assert all(p.is_meta and p.requires_grad for p in empty.parameters())
    assert torch.equal(empty.table, torch.arange(3.0))
    assert not next(Tabled().parameters()).is_meta


def test_tables_are_where_a_network_computes_and_not_where_its_slices_stay() -> None:
    """As with parallel.cpu_offload on GPUs: the first process broadcasts them from its GPU."""
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    make_empty(network, parameters=torch.device("cpu"), buffers=torch.device("meta"))
    assert {p.device.type for p in network.parameters()} == {"cpu"}
    assert {b.device.type for b in network.buffers()} == {"meta"}


def test_a_single_process_shares_with_itself() -> None:
    assert Processes().share(lambda: 3) == 3
