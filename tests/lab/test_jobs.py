"""Runs of a comparison at the same time, in processes of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from twinflow.errors import TwinflowError
from twinflow.lab import load_lab, run_lab
from twinflow.lab.outcome import Outcome

from .comparisons import METHODS, comparison

ONE = {"twinflow": METHODS["twinflow"]}
BRIEF = {"images_per_task": 1, "nfe": [1], "base_nfe": 1}


@pytest.fixture
def threads() -> Iterator[None]:
    """Of this process, as they were: a recipe's ``train.threads`` changes them."""
    former = torch.get_num_threads()
    yield
    torch.set_num_threads(former)


def one_thread(**changes: Any) -> dict[str, Any]:
    """The section ``run`` of a comparison, whose sums are in one order in any process."""
    return {
        "model": {"path": "shapeworld-tiny"},
        "data": {"kind": "shapeworld", "length": 12, "encode_batch": 12},
        "train": {"batch": 4, "threads": 1},
        "log": {"every": 1, "tensorboard": False},
        **changes,
    }


@pytest.mark.slow
@pytest.mark.usefixtures("threads")
def test_runs_side_by_side_are_those_of_one_after_another(tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    folders, boards = [], []
    for jobs in (1, 2):
        folder = tmp_path / str(jobs)
        folder.mkdir()
        file = comparison(folder, methods=ONE, evaluation=BRIEF, run=one_thread())
        with lines.open("w") as out:
            boards.append(run_lab(load_lab(file), jobs=jobs, console=Console(file=out, width=200)))
        folders.append(folder / "lab")
    for run in ("seed_0", "seed_1"):
        files = [folder / "twinflow" / run for folder in folders]
        alone, beside = (Outcome.load(file / "outcome.json") for file in files)
        assert (alone.jobs, beside.jobs) == (1, 2)
        assert (alone.choice, alone.steps, alone.frechet) == (beside.choice, beside.steps, beside.frechet)
        assert alone.rows[0].overall == beside.rows[0].overall
        weights = "run/pipeline/transformer/diffusion_pytorch_model.safetensors"
        assert (files[0] / weights).read_bytes() == (files[1] / weights).read_bytes()
        assert "step" in (files[1] / "log.txt").read_text()
    told = lines.read_text().splitlines()
    assert [line.split(" ")[0] for line in told] == ["1/2", "2/2"]
    assert {line.split(" ")[1] for line in told} == {"twinflow/seed_0:", "twinflow/seed_1:"}
    first, second = boards
    assert first is not None
    assert second is not None
    assert second.facts["runs at the same time"] == 2
    assert "runs at the same time" not in first.facts
    assert [s.overall for s in first.standings] == [s.overall for s in second.standings]


@pytest.mark.slow
def test_a_stopped_comparison_saves_what_trains_and_leaves_no_process(tmp_path: Path) -> None:
    """The pipe of what is printed ends with the last process that has it."""
    search = {"keys": {"optimizer.lr": [1e-4, 1e-3]}, "share": 1e-5}
    budget = {"unit": "images", "amount": 400_000}  # of the search: one step
    file = comparison(tmp_path, methods=ONE, search=search, evaluation=BRIEF, budget=budget, run=one_thread())
    home = tmp_path / "lab" / "twinflow"
    (home / "seed_0").mkdir(parents=True)
    os.mkfifo(home / "seed_0" / "log.txt")  # to read what this run prints as it does
    command = [sys.executable, "-m", "twinflow", "lab", str(file), "--jobs", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    # The log ends with the process, even if no run opens it.
    ours = os.open(home / "seed_0" / "log.txt", os.O_RDWR)
    threading.Thread(target=lambda: (process.wait(), os.close(ours)), daemon=True).start()
    with (home / "seed_0" / "log.txt").open() as log:
        next(line for line in log if re.search(r"step [1-9]\d*/100000 ", line))
        process.send_signal(signal.SIGINT)
        saved = [line for line in log if "is saved in" in line]
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert "2/4 twinflow/search_" in told
    assert "interrupted: 2 runs are done" in told
    assert f"lab {file} --jobs 2" in told
    assert len(saved) == 1
    assert any((home / "seed_0" / "run" / "checkpoints").iterdir())
    assert (home / "search.json").is_file()
    assert not (home / "seed_0" / "outcome.json").is_file()


@pytest.mark.slow
def test_a_run_that_fails_is_named(tmp_path: Path) -> None:
    data = {"kind": "shapeworld", "length": 12, "cache": str(tmp_path / "nowhere")}
    file = comparison(tmp_path, methods=ONE, evaluation=BRIEF, seeds=[0], run=one_thread(data=data))
    with pytest.raises(TwinflowError, match=r"twinflow/seed_0 failed \(exit status 1\): .*nowhere"):
        run_lab(load_lab(file), jobs=2)
    assert "nowhere" in (tmp_path / "lab" / "twinflow" / "seed_0" / "log.txt").read_text()


def test_what_cannot_share_a_machine_is_refused(tmp_path: Path) -> None:
    seconds = load_lab(comparison(tmp_path, budget={"unit": "seconds", "amount": 5}))
    with pytest.raises(TwinflowError, match=r"budget\.unit is seconds"):
        run_lab(seconds, jobs=2)
    with pytest.raises(TwinflowError, match="--jobs must be at least 1, got 0"):
        run_lab(seconds, jobs=0)
    assert not (tmp_path / "lab").exists()
