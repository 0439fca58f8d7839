"""The commands as a user types them, on the embedded model."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from families import FAMILIES
from twinflow.cli.app import app
from twinflow.config import load_recipe
from twinflow.errors import TwinflowError
from twinflow.evaluation.models import load_model
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.exported import Exported
from twinflow.sampling import few_step_times

SHORT = ["train.steps=3", "train.batch=4", "data.length=24", "optimizer.warmup_steps=1", "log.every=1"]


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_sample_draws_one_picture_for_each_prompt_and_nfe(tmp_path: Path) -> None:
    prompts = ["a photo of a red circle", "a photo of two squares"]
    run("sample", "shapeworld-tiny", *prompts, "--nfe", "1,2", "--output", tmp_path)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"00{i}_seed{i}_nfe{n}.png" for i in (0, 1) for n in (1, 2)]
    assert Image.open(tmp_path / files[0]).size == (32, 32)


def test_clips_of_a_size_and_length(tmp_path: Path) -> None:
    FAMILIES["wan"].stock().save_pretrained(tmp_path / "wan")
    asked = ("--size", "32x48", "--frames", "5", "--dtype", "bfloat16")
    run("sample", tmp_path / "wan", "a", *asked, "--output", tmp_path)
    clip = Image.open(tmp_path / "000_seed0_nfe1.png")
    assert (clip.size, clip.n_frames) == ((48, 32), 5)


def test_edits_of_source_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for all prompts or one for each; the edits of two sources differ. The tiny encoder has one layer to read."""
    tiny = functools.partial(load_model, text_encoder_out_layers=(1,))
    monkeypatch.setattr("twinflow.evaluation.samples.load_model", tiny)
    FAMILIES["flux2_klein"].stock().save_pretrained(tmp_path / "model")
    for name, colour in (("red.png", "red"), ("blue.png", "blue")):
        Image.new("RGB", (80, 64), colour).save(tmp_path / name)
    command = ("sample", tmp_path / "model", "less", "less", "--size", "64x64")
    sources = [part for name in ("red.png", "blue.png") for part in ("--image", tmp_path / name)]
    run(*command, *sources, "--output", tmp_path / "each")
    run(*command, *sources[:2], "--output", tmp_path / "one")
    each, one = (
        [Image.open(tmp_path / folder / f"00{i}_seed{i}_nfe1.png").tobytes() for i in (0, 1)]
        for folder in ("each", "one")
    )
    assert each[0] == one[0]
    assert each[1] != one[1]
    with pytest.raises(TwinflowError, match="2 source pictures for 3 prompts"):
        run(*command, "more", *sources)
    with pytest.raises(TwinflowError, match="none.png can't be read"):
        run(*command, "--image", tmp_path / "none.png")


def test_what_a_model_can_not_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AnyStepPipeline.from_pretrained("shapeworld-tiny")
    model.exported = Exported(kind="diffusers", nfe=2, times=few_step_times(2))
    monkeypatch.setattr("twinflow.evaluation.samples.load_model", lambda name, **_: model)
    with pytest.raises(TwinflowError, match=r"it at --nfe 1: this model was exported for exactly 2"):
        run("sample", "it", "a photo of a red circle", "--output", tmp_path)
    with pytest.raises(TwinflowError, match="--size '32' is not HEIGHTxWIDTH"):
        run("sample", "it", "a photo of a red circle", "--size", "32")


def test_the_same_seed_draws_the_same_picture(tmp_path: Path) -> None:
    for folder, prompts in (("a", ["a photo of a red circle"]), ("b", ["a photo of a red circle"] * 3)):
        run("sample", "shapeworld-tiny", *prompts, "--nfe", "4", "--output", tmp_path / folder)
    first, second = (Image.open(tmp_path / folder / "000_seed0_nfe4.png").tobytes() for folder in ("a", "b"))
    difference = max(abs(x - y) for x, y in zip(first, second))
    assert difference <= 1  # 8-bit rounding of sums that a larger batch adds in another order


def test_a_word_that_the_model_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(TwinflowError, match="purple.*dog"):
        run("sample", "shapeworld-tiny", "a photo of a purple dog", "--output", tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("nfe", ["", "one", "0", "1,,2", "-4"])
def test_nfe_that_is_no_list_of_numbers(nfe: str, tmp_path: Path) -> None:
    with pytest.raises(TwinflowError, match="--nfe"):
        run("sample", "shapeworld-tiny", "a photo of a red circle", "--nfe", nfe, "--output", tmp_path)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TwinflowError, match="not-there"):
        run("eval", str(tmp_path / "not-there"), "--output", tmp_path / "out")


def test_unknown_benchmark_and_level(tmp_path: Path) -> None:
    with pytest.raises(TwinflowError, match="imagenet"):
        run("eval", "shapeworld-tiny", "--benchmark", "imagenet")
    with pytest.raises(TwinflowError, match="huge.*tiny"):
        run("eval", "shapeworld-tiny", "--level", "huge", "--output", tmp_path)


def test_eval_writes_a_table_results_pictures_and_a_page(tmp_path: Path) -> None:
    run("eval", "base=shapeworld-tiny", "--nfe", "1,8", "--images-per-task", "2", "--output", tmp_path)
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [(row["model"], row["nfe"], row["images"]) for row in rows] == [("base", 1, 12), ("base", 8, 12)]
    lines = (tmp_path / "base_nfe1" / "results.jsonl").read_text().splitlines()
    assert set(json.loads(lines[0])) >= {
        "filename",
        "tag",
        "prompt",
        "correct",
        "reason",
        "metadata",
        "details",
    }
    page = (tmp_path / "report.html").read_text()
    assert "base" in page
    assert 'src="http' not in page  # one file, nothing fetched
    output = run("report", tmp_path)
    assert "report" in output
    for name in ("a", "b"):  # two runs of one name
        trained = tmp_path / name / "run"
        trained.mkdir(parents=True)
        (trained / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    run("report", tmp_path, "--run", tmp_path / "a" / "run", "--run", tmp_path / "b" / "run")
    page = (tmp_path / "report.html").read_text()
    assert all(f"{name}/run" in page for name in ("a", "b"))


def test_a_file_of_prompts_is_drawn_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a photo of a red circle\n")
    output = tmp_path / "out"
    run("eval", "shapeworld-tiny", "--prompts", tmp_path / "mine.txt", "--nfe", "1", "--output", output)
    table = json.loads((output / "table.json").read_text())
    assert (table["benchmark"], table["rows"][0]["images"]) == ("prompts", 1)


def test_report_of_a_folder_without_an_evaluation(tmp_path: Path) -> None:
    with pytest.raises(TwinflowError, match="table.json"):
        run("report", tmp_path)


def test_the_quick_start_from_beginning_to_end(tmp_path: Path) -> None:
    """Short, but everything is real: evaluate, train, evaluate, report, and a model that loads again."""
    began = time.monotonic()
    run("quickstart", "--output", tmp_path, "--images-per-task", "2", *SHORT)
    table = json.loads((tmp_path / "table.json").read_text())
    assert 0 < table["facts"]["training_seconds"] < table["facts"]["seconds"] < time.monotonic() - began
    assert f"{table['facts']['seconds']:.0f} s" in (tmp_path / "report.md").read_text()
    rows = table["rows"]
    assert [(r["model"], r["nfe"]) for r in rows if r["model"] == "twinflow"] == [
        ("twinflow", 1),
        ("twinflow", 2),
        ("twinflow", 4),
    ]
    assert (tmp_path / "report.html").is_file()
    assert Image.open(tmp_path / "comparison.png").width > 500
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in metrics] == [1, 2, 3]
    run("sample", tmp_path / "run" / "pipeline", "a photo of a red circle", "--output", tmp_path / "drawn")


def test_training_a_folder_of_pictures(tmp_path: Path) -> None:
    for i, color in enumerate(("red", "blue")):
        Image.new("RGB", (40, 30), color).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"a photo of a {color} square")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: shapeworld-tiny\n"
        f"data: {{kind: folder, path: {tmp_path}, size: 32}}\n"
        "objective: {name: twinflow, teacher: ema}\n"
        f"train: {{steps: 2, batch: 2}}\noutput: {tmp_path / 'run'}\n"
    )
    assert f"trained model: {tmp_path / 'run' / 'pipeline'}\n" in run("train", recipe)
    assert (tmp_path / "run" / "pipeline" / "target_time.safetensors").is_file()
    # The same command on a finished run has nothing left to do, and says so by succeeding.
    run("train", recipe)


def test_a_broken_picture_stops_before_any_training(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    (tmp_path / "bad.txt").write_text("a photo of a red square")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: shapeworld-tiny\ndata: {tmp_path}\nobjective: {{name: flow_matching}}\n"
        f"train: {{steps: 2, batch: 2}}\noutput: {tmp_path / 'run'}\n"
    )
    with pytest.raises(TwinflowError, match="bad.png"):
        run("train", recipe)
    assert not (tmp_path / "run").exists()


def test_the_version_and_a_recipe_are_shown(tmp_path: Path) -> None:
    assert run("--version") == f"twinflow {version('twinflow')}\n"
    (tmp_path / "short.yaml").write_text(
        "model: shapeworld-tiny\ndata: {kind: shapeworld}\nobjective: {name: twinflow}\n"
        f"train: {{steps: 2, batch: 2}}\noutput: {tmp_path / 'run'}\n"
    )
    (tmp_path / "shown.yaml").write_text(run("train", tmp_path / "short.yaml", "train.batch=3", "--show"))
    assert load_recipe(tmp_path / "shown.yaml") == load_recipe(tmp_path / "short.yaml", ["train.batch=3"])
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch has no such segments")
@pytest.mark.parametrize("own", [None, "max_split_size_mb:64"])
def test_gpu_memory_grows_in_segments_unless_the_user_says_otherwise(own: str | None) -> None:
    """Set before torch is imported, which reads it once."""
    code = (
        "import os, sys; from twinflow.cli import _let_memory_grow; assert 'torch' not in sys.modules; "
        "_let_memory_grow(); print(os.environ.get('PYTORCH_ALLOC_CONF'))"
    )
    environment = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name}
    if own is not None:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = own
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ("expandable_segments:True" if own is None else "None")
