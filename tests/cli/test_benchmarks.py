"""GenEval and DPG-Bench as a user types them, with local files and tiny random weights alone."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from evaluation.geneval.lines import SIX, write_lines
from evaluation.geneval.mmdet_oracle import random_state
from evaluation.geneval.tiny import tiny_clip, tiny_detector, tiny_tokenizer
from twinflow.cli import geneval_detector  # noqa: F401 - puts its command on the app
from twinflow.cli.app import app
from twinflow.errors import TwinflowError
from twinflow.evaluation.dpg import prompts as dpg
from twinflow.evaluation.geneval import prompts as geneval


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    tiny_detector().save_pretrained(folder / "detector")
    tiny_clip().save_pretrained(folder / "clip")
    tiny_tokenizer().save_pretrained(folder / "clip")
    return folder


def test_geneval_from_drawing_to_the_page_and_the_same_pictures_from_a_folder_of_others(weights, tmp_path):
    prompts = write_lines(tmp_path / "six.jsonl", *SIX)
    options = ["--benchmark", "geneval", "--images-per-prompt", "1", "--prompts", prompts]
    for option in (f"detector={weights / 'detector'}", f"colors={weights / 'clip'}", "device=cpu"):
        options += ["--with", f"geneval.{option}"]
    own, theirs = tmp_path / "own", tmp_path / "theirs"
    told = run("eval", "shapeworld-tiny", "--nfe", "1", *options, "--output", own)
    assert f"report: {own / 'report.html'}" in told.replace("\n", "")
    table = json.loads((own / "table.json").read_text())
    (row,) = table["rows"]
    assert (row["nfe"], row["images"], set(row["tasks"])) == (1, 6, {line["tag"] for line in SIX})
    assert row["overall"] == pytest.approx(sum(row["tasks"].values()) / 6)
    assert table["protocol"]["detector"] == "HF detector"
    assert table["protocol"]["benchmark"] == "GenEval with other prompts and 1 picture a prompt instead of 4"
    page = (own / "report.html").read_text()
    assert ">missing<" not in page
    assert "GenEval" in page

    shutil.copytree(own / "shapeworld-tiny_nfe1", theirs, ignore=shutil.ignore_patterns("*.jsonl"))
    for index, line in enumerate(SIX):  # as GenEval's own script leaves it
        (theirs / f"{index:05}" / "metadata.jsonl").write_text(json.dumps(line))
        (sample,) = (theirs / f"{index:05}" / "samples").glob("*.png")
        Image.open(sample).convert("RGB").save(sample.with_name("0000.png"))
        sample.unlink()
        Image.new("RGB", (9, 9)).save(theirs / f"{index:05}" / "grid.png")
    run("eval", theirs, *options, "--output", tmp_path / "again")
    (other,) = json.loads((tmp_path / "again" / "table.json").read_text())["rows"]
    assert (other["tasks"], other["strict"]) == (row["tasks"], row["strict"])


def test_the_seed_mode_is_an_option(tmp_path):
    prompts = write_lines(tmp_path / "six.jsonl", *SIX)
    options = ["--benchmark", "geneval", "--prompts", prompts, "--output", tmp_path / "out"]
    with pytest.raises(TwinflowError, match="seed_mode must be one of image, geneval, got 'theirs'"):
        run("eval", "shapeworld-tiny", *options, "--with", "geneval.seed_mode=theirs")
    with pytest.raises(TwinflowError, match="would be ignored"):
        run("eval", "shapeworld-tiny", *options, "--with", "geneval.seed_mode=geneval", "--seed", "3")


def test_addresses_are_whole_in_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    told = run("eval", "--list")
    assert "743b7d99.pth" in told  # the end of the longest
    assert told.count("…") == told.count("=…")  # nothing is cut off; an option's value is left open


@pytest.mark.parametrize("module", [geneval, dpg], ids=["geneval", "dpg"])
def test_without_prompts_one_error_says_where_they_are(module, tmp_path, monkeypatch):
    monkeypatch.setenv("TWINFLOW_CACHE", str(tmp_path / "cache"))
    nowhere = (tmp_path / "nowhere").as_uri()
    offline = {name: getattr(module.OFFICIAL, name) for name in module.OFFICIAL.__dataclass_fields__}
    monkeypatch.setattr(module, "OFFICIAL", type(module.OFFICIAL)(**offline | {"urls": (nowhere,)}))
    name = module.OFFICIAL.benchmark
    with pytest.raises(TwinflowError) as error:
        run("eval", "shapeworld-tiny", "--benchmark", name, "--output", tmp_path / "out")
    for part in (str(tmp_path / "cache" / name), nowhere, f"--with {name}.prompts=FILE"):
        assert part in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_list_says_what_both_need(monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    told = " ".join(run("eval", "--list").split())
    for need in (
        "evaluation_metadata.jsonl, fetched once 85 kB, MIT",
        "--with geneval.prompts=",
        "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco",
        "--with geneval.detector=",
        "openai/clip-vit-large-patch14; a local copy: --with geneval.colors=",
        "0.5 MB, Apache-2.0",
        "--with dpg.prompts=",
        "--with dpg.questions=",
        "Qwen/Qwen2.5-VL-7B-Instruct; a local copy: --with dpg.judge=",
    ):
        assert need in told, need


def test_the_list_opens_no_connection(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("COLUMNS", "400")
    told = run("eval", "--list")
    mplug = next(line for line in told.splitlines() if "damo/mplug" in line)
    assert "--with dpg.judge=import:FILE" in mplug
    assert "a local copy" not in mplug  # it can't run here
    assert "see the model card" not in told


def test_the_official_detector_is_converted_by_a_command(tmp_path):
    torch.save({"state_dict": random_state(0)}, tmp_path / "tiny.pth")
    told = run("geneval-detector", tmp_path / "tiny.pth", tmp_path / "out")
    assert "mmdet Mask2Former tiny.pth (" in told
    assert {"model.safetensors", "config.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    with pytest.raises(TwinflowError, match="there is no checkpoint"):
        run("geneval-detector", tmp_path / "absent.pth", tmp_path / "new")
