"""``twinflow export`` as a user types it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import twinflow.cli.export  # noqa: F401
from pipelines.tiny import PROMPTS, copy_of, lively_pipeline, train_branch
from twinflow.cli.app import app
from twinflow.errors import TwinflowError
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.exported import EXPORT_FILE


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "pipeline"
    train_branch(AnyStepPipeline(copy_of(lively_pipeline()))).save_pretrained(path)
    return path


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["export", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_folder_a_lora_and_one_file(checkpoint, tmp_path):
    assert "num_inference_steps=2" in run(checkpoint, tmp_path / "folder", "--nfe", "2")
    assert json.loads((tmp_path / "folder" / EXPORT_FILE).read_text())["nfe"] == 2
    assert "1 layers, rank up to 2" in run(checkpoint, tmp_path / "lora", "--format", "lora", "--nfe", "4")
    assert "lost at rank 2" in run(
        checkpoint, tmp_path / "full", "--format", "comfyui-lora", "--base", checkpoint, "--rank", "2"
    )
    one = run(checkpoint, tmp_path / "one.safetensors", "--format", "single-file")
    assert "note: ComfyUI runs no Stable Diffusion 3 of these sizes" in one
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "lora", "full", "one.safetensors"}
    exported = AnyStepPipeline.from_pretrained(tmp_path / "folder", target_time=False)
    assert len(exported(PROMPTS[:1], nfe=2).images) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nfe", "0"], "at least 1, got 0"),
        (["--nfe", "-2"], "at least 1, got -2"),
        (["--format", "onnx"], "'onnx' is not known: one of diffusers, lora"),
        (["--format", "slim", "--nfe", "2"], "slim is for one step only"),
        (["--format", "slim"], "modulation depends on the prompt"),
        (["--format", "single-file"], "should end in .safetensors"),
        (["--base", "somewhere"], "--base is for LoRA formats"),
        (["--format", "lora", "--rank", "0"], "rank must be at least 1"),
        (["--dtype", "int3"], "'int3' is not known"),
        (["--call", "[]"], "not a JSON object"),
        (["--source", "nowhere.png"], "no picture"),
    ],
)
def test_one_clear_error(checkpoint, tmp_path, arguments, said):
    with pytest.raises(TwinflowError, match=said):
        run(checkpoint, tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_what_is_no_checkpoint_of_a_run(checkpoint, tmp_path):
    with pytest.raises(TwinflowError, match="would overwrite"):
        run(checkpoint, checkpoint)
    run(checkpoint, tmp_path / "folder")
    with pytest.raises(TwinflowError, match="export for 1 step.* already"):
        run(tmp_path / "folder", tmp_path / "again")
    AnyStepPipeline(copy_of(lively_pipeline()), target_time=False).save_pretrained(tmp_path / "base")
    with pytest.raises(TwinflowError, match="has no target time: it is a base model"):
        run(tmp_path / "base", tmp_path / "again")


def test_training_on_an_export_is_refused(checkpoint, tmp_path):
    run(checkpoint, tmp_path / "folder")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{path: {tmp_path / 'folder'}, target_time: false}}\n"
        "data: {kind: shapeworld}\nobjective: {name: flow_matching}\n"
        f"train: {{steps: 1, batch: 1}}\noutput: {tmp_path / 'run'}\n"
    )
    with pytest.raises(TwinflowError, match="can't be trained on"):
        CliRunner().invoke(app, ["train", str(recipe)], catch_exceptions=False)
