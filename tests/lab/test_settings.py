"""Mistakes in the file of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from twinflow.errors import TwinflowError
from twinflow.lab import load_lab

from .comparisons import METHODS, comparison


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {}}, r"methods = \{\} is not allowed: dictionary should have at least 1 item"),
        ({"methods": {"base": METHODS["dmd2"]}}, r"methods\.base can't be"),
        ({"methods": {"a": {"objective": {"name": "gan"}}}}, "gan"),
        ({"methods": {"a": {"objective": {"name": "dmd", "guidanc": 1.0}}}}, "guidanc"),
        (
            {"methods": {"a": {"objektive": {}}}},
            r"methods.a.objective is missing: the comparison must set it",
        ),
        (
            {"methods": {"a": {"objective": {"name": "dmd"}, "recipes": {}}}},
            r"methods.a.recipes is not a comparison key \(did you mean 'recipe'\?\); allowed in methods.a: objective",
        ),
        (
            {"budget": {"unit": "hours", "amount": 1}},
            r"budget.unit = 'hours' is not allowed: input should be",
        ),
        ({"budget": {"unit": "steps", "amount": 0}}, r"budget.amount = 0 is not allowed: input should be"),
        (
            {"budget": {"unit": "steps", "amuont": 1}},
            r"budget.amuont is not a comparison key \(did you mean 'am",
        ),
        ({"seeds": []}, r"seeds = \[\] is not allowed: list should have at least 1 item"),
        ({"search": {"keys": {"optimizer.lr": [-1.0]}}}, r"optimizer\.lr"),
        ({"extra": 1}, r"extra is not a comparison key; allowed in a comparison: run, methods, budget"),
    ],
)
def test_what_is_wrong_is_named_before_anything_runs(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TwinflowError, match=message):
        load_lab(comparison(tmp_path, **changes))


def test_unknown_sizes_and_files(tmp_path: Path) -> None:
    with pytest.raises(TwinflowError, match="'huge' is not in .*small"):
        load_lab(comparison(tmp_path), size="huge")
    with pytest.raises(TwinflowError, match="there is no comparison"):
        load_lab(tmp_path / "nowhere.yaml")
    with pytest.raises(TwinflowError, match="'small' is not an override: write key=value"):
        load_lab(comparison(tmp_path), ["small"])
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(TwinflowError, match="is not a readable comparison"):
        load_lab(tmp_path / "picture.yaml")
    assert load_lab(comparison(tmp_path), ["budget.amount=7"], size="small").budget.amount == 7
    assert load_lab(comparison(tmp_path), size="small").budget.amount == 8
