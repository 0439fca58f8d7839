"""The scripts of ``benchmarks/``: those that run for minutes on other machines must not fail there for a name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_all_can_be_imported():
    names = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
    assert "gpu_20b" in names
    done = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(names)}"],
        capture_output=True,
        text=True,
        cwd=BENCHMARKS,  # the first entry of the path of `-c`
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_the_20b_step_and_picture_by_a_small_network(tmp_path):
    small = ["--tiny", "--steps", 3, "--only", "adamw4bit_512", "latency_1024"]
    shown = run("gpu_20b.py", *small, "--json", tmp_path / "20b.json")
    assert "DOES NOT HOLD" not in shown
    cases = json.loads((tmp_path / "20b.json").read_text())["cases"]
    losses = cases["adamw4bit_512"]["losses"]
    assert losses[-1] < losses[0]
    assert cases["adamw4bit_512"]["reference"]["schedule"] == "reference"
    assert cases["latency_1024"]["slim_difference"] == 0


def test_the_verifier_finds_clean_scenes_right(tmp_path):
    few = ["--level", "tiny", "--images", 12, "--conditions", "clean"]
    false = ["--negatives", "clean", "--junk", "white noise"]
    run("shapeworld_verifier.py", *few, *false, "--json", tmp_path / "v.json")
    (made,) = json.loads((tmp_path / "v.json").read_text())["runs"]
    assert made["recall"][0]["overall"] == 1
    assert not any(row["said_correct"] for row in made["false_positives"])
