"""The README's Python and the commands of its section "Your own model" run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from twinflow.assets import ROOT
from twinflow.cli import cache, export, plan  # noqa: F401 - each puts its command on the app
from twinflow.cli.app import app
from twinflow.config import load_recipe

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
(OWN_MODEL,) = re.findall(r"^## Your own model\n.*?(?=^## )", README, flags=re.DOTALL | re.MULTILINE)
PYTHON = [text for language, text in BLOCK.findall(README.replace(OWN_MODEL, "")) if language == "python"]
MODEL = ROOT / "shapeworld-tiny"
pytestmark = pytest.mark.skipif(
    not (MODEL / "model_index.json").is_file(), reason="the embedded model is not there"
)
# The same commands on less: what the test adds to them, and the number of pictures.
LESS = {"train": ["train.steps=3", "train.batch=2", "optimizer.warmup_steps=1"]}
PICTURES = ("count=500", "count=6")


def test_the_readme_s_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it writes a picture and a model
    assert PYTHON
    names: dict = {}
    for i, block in enumerate(PYTHON):
        exec(compile(block, f"README.md, python block {i + 1}", "exec"), names)
    assert (tmp_path / "circle.png").is_file()
    assert (tmp_path / "one-step" / "model_index.json").is_file()


def test_the_recipes_that_the_readme_trains_start_from_what_ships():
    commands = [
        line for language, text in BLOCK.findall(README) if language == "bash" for line in text.splitlines()
    ]
    trained = [
        words for line in commands if (words := shlex.split(line, comments=True))[:2] == ["twinflow", "train"]
    ]
    recipes = [words for words in trained if words[2].startswith("recipes/")]
    assert recipes
    for words in recipes:
        recipe = load_recipe(Path(__file__).parents[2] / words[2], words[3:])
        assert (ROOT / recipe.model.path / "model_index.json").is_file(), words


def type_in(line: str) -> str | None:
    """Run one line of a shell block in this process; the command that it was."""
    words = shlex.split(line, comments=True)
    if not words:
        return None
    if words[:2] == ["python", "-c"]:
        assert PICTURES[0] in words[2]
        exec(words[2].replace(*PICTURES), {})
        return "python"
    assert words[0] == "twinflow", line
    result = CliRunner().invoke(app, words[1:] + LESS.get(words[1], []), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return words[1]


def test_your_own_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    typed = []
    for language, text in BLOCK.findall(OWN_MODEL):
        if language == "yaml":
            Path("mine.yaml").write_text(text)
        elif language == "python":
            exec(compile(text, "README.md, your own model", "exec"), {})
        else:
            typed += [type_in(line) for line in text.splitlines()]
    assert [name for name in typed if name] == [
        "python", "train", "plan", "cache", "train", "train", "sample", "export", "export"
    ]  # fmt: skip
    assert len(list(Path("pictures").glob("*.png"))) == 6
    assert Image.open("stock.png").size == (32, 32)
    assert Path("exports/lora/pytorch_lora_weights.safetensors").is_file()
