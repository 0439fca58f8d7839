"""The page of scaling: what it says of the 20 B step is what was measured."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("gpu_20b_table")


def test_the_page_shows_the_measured_steps(script: Any) -> None:
    results = json.loads(script.RESULTS.read_text())
    page = " ".join(script.DOCS.read_text().split())
    assert " ".join(script.table(script.cases()).split()) in page
    assert all(results["claims"].values())
    assert all(json.loads(script.OFFLOADED.read_text())["claims"].values())
    case, picture = results["cases"]["adamw4bit_512"], results["cases"]["latency_1024"]
    assert f"takes {case['step_seconds']:.2f} s where" in page
    assert f"takes {case['reference']['step_seconds']:.2f}: **{case['speed_up']:.2f} times" in page
    assert (
        f"in one call: {picture['seconds']:.3f} s**, and the autoencoder's decoder {picture['decoder_seconds']:.3f} s"
        in page
    )
    assert picture["slim_difference"] == 0
