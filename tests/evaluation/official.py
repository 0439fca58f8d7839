"""The official inputs of the benchmarks, where this machine has them beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / ".." / "shared" / "eval_data"
GENEVAL = FOLDER / "geneval" / "evaluation_metadata.jsonl"
DPG = FOLDER / "dpg_bench" / "prompts.jsonl"

needs_geneval = pytest.mark.skipif(
    not GENEVAL.exists(), reason="GenEval's official files are not in ../shared/eval_data/geneval"
)
needs_dpg = pytest.mark.skipif(
    not DPG.exists(), reason="DPG-Bench's official prompts are not in ../shared/eval_data/dpg_bench"
)
