"""The README's Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from twinflow.assets import ROOT

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(
    r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
)
MODEL = ROOT / "shapeworld-tiny"


def test_there_is_python_in_the_readme():
    assert BLOCKS


@pytest.mark.skipif(not (MODEL / "model_index.json").is_file(), reason="the embedded model is not there")
def test_the_readme_s_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it writes a picture and a model
    names: dict = {}
    for i, block in enumerate(BLOCKS):
        exec(compile(block, f"README.md, python block {i + 1}", "exec"), names)
    assert (tmp_path / "circle.png").is_file()
    assert (tmp_path / "one-step" / "model_index.json").is_file()
