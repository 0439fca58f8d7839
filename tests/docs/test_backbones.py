"""The table of families is what was measured, complete, and within its bounds."""

import importlib
import json
from pathlib import Path

from families import NAMES

ROOT = Path(__file__).parents[2]


def test_the_page_shows_the_results_and_the_results_are_good(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    backbones = importlib.import_module("backbones_tables")
    rows = json.loads(backbones.RESULTS.read_text())["families"]
    page = backbones.DOCS.read_text()
    assert list(rows) == NAMES
    assert backbones.table(rows) in page
    assert backbones.sizes(rows) in page
    for name, row in rows.items():
        errors = [row["field"], row["lora_file"], *row["bake"].values()]
        errors += [row[key]["error"] for key in ("slim", "comfyui") if "error" in row[key]]
        assert max(errors) <= 1e-5, (name, errors)
        assert max(row["bake_fp64"].values()) <= 1e-6, name
        assert row["full"]["finite"], name
        assert row["lora"]["finite"], name
        assert row["lora"]["frozen_moved"] == 0, name
        assert "refused" in row["single_file"] or row["single_file"]["same"], name
