"""What is typed by mistake is one error with the remedy, before a model is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from twinflow.cli import copy_model, export, export_checkpoint  # noqa: F401 - each puts its command on the app
from twinflow.cli.app import app, dtype_of
from twinflow.errors import TwinflowError, check_place
from twinflow.evaluation.geneval.convert import read_checkpoint
from twinflow.pipelines import AnyStepPipeline

CIRCLE = "a photo of a red circle"


def refused(*arguments: str | Path, saying: str) -> None:
    with pytest.raises(TwinflowError, match=saying):
        CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("mine")
    return tmp_path / "file"


@pytest.mark.parametrize("below", [".", "new", "a/new"])
def test_an_output_that_is_a_file_or_below_one(file: Path, below: str) -> None:
    output = file / below
    for command in (
        ("sample", "shapeworld-tiny", CIRCLE, "--output", output),
        ("eval", "shapeworld-tiny", "--nfe", "1", "--images-per-task", "1", "--output", output),
        ("export", "shapeworld-tiny", output),
        ("export-checkpoint", file.parent, output),
        ("copy-model", "shapeworld-tiny", output),
    ):
        saying = (
            "is there already"
            if (command[0], below) == ("copy-model", ".")
            else "file is a file. Name another"
        )
        refused(*command, saying=saying)
    assert file.read_text() == "mine"


def test_a_place_that_is_not_there_yet_or_not_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_place(tmp_path / "a" / "b", name="output")
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(TwinflowError, match="can't be written to"):
        check_place(tmp_path / "a", name="output")


def test_names_that_are_no_model(tmp_path: Path) -> None:
    """Said at once, without asking the hub."""
    for name in (CIRCLE, "shapeworld-tin", "./none", "/none/at/all", "mine.yaml"):
        refused("sample", name, CIRCLE, saying="not a folder or a model on the hub.*ORGANISATION/NAME")
    (tmp_path / "recipe.yaml").touch()
    refused("export", tmp_path, tmp_path / "out", saying="a run that has not ended")
    (tmp_path / "pipeline").mkdir()
    refused("sample", tmp_path, CIRCLE, saying=f"its trained model is {tmp_path}/pipeline")
    (tmp_path / "step_1").mkdir()
    (tmp_path / "step_1" / "state.json").touch()
    refused("sample", tmp_path / "step_1", CIRCLE, saying="export-checkpoint .*step_1 FOLDER")
    refused("export-checkpoint", tmp_path / "none", tmp_path / "out", saying="there is no folder .*none")


def test_an_export_spoils_no_checkpoint_or_run(tmp_path: Path) -> None:
    for name in ("twinflow.json", "recipe.yaml"):
        output = tmp_path / name.partition(".")[0]
        output.mkdir()
        (output / name).touch()
        refused("export", "shapeworld-tiny", output, saying="which an export would spoil")


def test_an_export_to_what_its_format_does_not_write(tmp_path: Path) -> None:
    for format in ("diffusers", "lora", "comfyui-lora"):
        refused(
            *("export", "shapeworld-tiny", tmp_path / "a.safetensors", "--format", format),
            saying=f"the name of a file, and --format {format} writes a folder.*--format single-file",
        )


def test_a_base_that_is_none(tmp_path: Path) -> None:
    """Said before the model is opened, without asking the hub."""
    refused(
        *("export", "shapeworld-tiny", tmp_path / "new", "--format", "lora", "--base", "nobody"),
        saying="^nobody is not a folder or a model on the hub.*ORGANISATION/NAME",
    )


def test_prompts_in_a_file_are_no_prompt(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(CIRCLE)
    refused(
        "sample", "shapeworld-tiny", tmp_path / "mine.txt", saying=r"twinflow eval .* --prompts .*mine.txt"
    )


def test_precisions_by_either_name() -> None:
    assert [dtype_of(name) for name in ("bf16", "bfloat16")] == ["bfloat16"] * 2


def test_files_that_fail_print_no_traceback(file: Path) -> None:
    """In a process of its own, as a user sees it."""
    command = [sys.executable, "-m", "twinflow", "geneval-detector", str(file.parent), str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("option", "value"), [("--seed", "-1"), ("--batch", "0"), ("--with", "shapeworld.seed=-1")]
)
def test_numbers_that_are_too_small(option: str, value: str, tmp_path: Path) -> None:
    command = ["eval", "shapeworld-tiny", "--output", str(tmp_path / "new"), option, value]
    done = CliRunner().invoke(app, command)
    said = done.output + str(done.exception)
    assert "greater than or equal to" in said or isinstance(done.exception, TwinflowError), said
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_is_no_model_to_evaluate(tmp_path: Path) -> None:
    (tmp_path / "state.json").touch()
    refused("eval", tmp_path, "--output", tmp_path / "new", saying="export-checkpoint")


def test_a_file_that_is_no_checkpoint_is_one_line(file: Path) -> None:
    """Not torch's own text, which recommends to load it without care."""
    with pytest.raises(TwinflowError, match=r"runs no pickled code \(UnpicklingError\)") as caught:
        read_checkpoint(file)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_inputs_that_a_model_does_not_take(tmp_path: Path) -> None:
    """Not the TypeError of its call; by Python, before anything is encoded, just so."""
    picture = tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(picture)
    edit = "^StableDiffusion3Pipeline takes no source image: it does not edit. Leave the picture out"
    clip = "^StableDiffusion3Pipeline takes no number of frames: it makes pictures. Leave it out"
    refused("sample", "shapeworld-tiny", CIRCLE, "--image", picture, saying=edit)
    refused("export", "shapeworld-tiny", tmp_path / "new", "--source", picture, saying=edit)
    refused("sample", "shapeworld-tiny", CIRCLE, "--frames", 9, saying=clip)
    other = "^StableDiffusion3Pipeline takes no argument 'widht': its call has .*height, width"
    refused("export", "shapeworld-tiny", tmp_path / "new", "--call", '{"widht": 32}', saying=other)
    pipe = AnyStepPipeline.from_pretrained("shapeworld-tiny")
    with pytest.raises(TwinflowError, match=edit):
        pipe(CIRCLE, images=Image.open(picture))
    with pytest.raises(TwinflowError, match=clip):
        pipe(CIRCLE, size=(32, 32, 9))
