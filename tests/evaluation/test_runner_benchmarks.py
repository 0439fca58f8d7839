"""GenEval, DPG-Bench and a file of prompts through the runner, with tiny random detectors and judges."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from evaluation.dpg.items import write_csv
from evaluation.dpg.tiny import save_tiny_vlm
from evaluation.geneval.lines import SIX, write_lines
from evaluation.geneval.tiny import tiny_clip, tiny_detector, tiny_tokenizer
from twinflow.errors import TwinflowError
from twinflow.evaluation.model_names import ModelName
from twinflow.evaluation.pictures import pictures_in
from twinflow.evaluation.ranks import processes
from twinflow.evaluation.registry import build
from twinflow.evaluation.runner import Evaluation
from twinflow.report import write_report


def evaluation(tmp_path, names, *, common=None, own=None, **options) -> Evaluation:
    benchmarks, measures = build(names, common=common or {}, own=own or {})
    return Evaluation(
        benchmarks=benchmarks, measures=measures, nfe=[1], output=tmp_path / "out", shown=False, **options
    )


def noise(benchmark, folder):
    benchmark.prepare(folder)
    for i, picture in enumerate(benchmark.pictures):
        path = folder / picture.file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((48, 40), 20 + 20 * i).convert("RGB").save(path)
    return folder


def test_geneval_scores_folders_of_others_in_either_form_of_name(tmp_path):
    tiny_detector().save_pretrained(tmp_path / "detector")
    tiny_clip().save_pretrained(tmp_path / "clip")
    tiny_tokenizer().save_pretrained(tmp_path / "clip")
    write_lines(tmp_path / "two.jsonl", SIX[0], SIX[-1])
    own = {"detector": str(tmp_path / "detector"), "colors": str(tmp_path / "clip"), "device": "cpu"}
    common = {"prompts": str(tmp_path / "two.jsonl"), "images_per_prompt": "2"}
    run = evaluation(tmp_path, ["geneval"], common=common, own={"geneval": own})
    (benchmark,) = run.benchmarks  # --prompts is GenEval's own: no second benchmark comes along
    folder = noise(benchmark, tmp_path / "theirs")
    short = shutil.copytree(folder, tmp_path / "short")
    for sample in short.glob("*/samples/*.png"):  # as the README of GenEval shows it
        sample.rename(sample.with_name(f"{int(sample.stem):04}.png"))
    (table,) = run.run([f"a=images:{folder}@4", f"b=images:{short}"])
    a, b = table.rows
    assert (a.nfe, a.images, a.overall) == (4, 4, b.overall)
    assert table.protocol["prompts_sha256"]
    text = write_report(run.folder(benchmark), table).html.read_text()
    assert ">missing<" not in text
    next(short.glob("*/samples/*.png")).unlink()
    with pytest.raises(TwinflowError, match="every prompt needs 2"):
        run.run([f"b=images:{short}"])


def test_dpg_scores_what_is_drawn_twice_and_grids_alone(tmp_path):
    save_tiny_vlm(tmp_path / "vlm")
    (tmp_path / "p.jsonl").write_text(json.dumps({"item_id": "a", "text": "A red cup."}))
    rows = [("a", 1, "0", "global", "?"), ("a", 2, "0", "entity - whole", "Cup?")]
    questions = write_csv(tmp_path / "q.csv", rows)
    own = {
        "questions": str(questions),
        "prompts": str(tmp_path / "p.jsonl"),
        "judge": str(tmp_path / "vlm"),
        "mode": "compare",
        "device": "cpu",
    }
    run = evaluation(tmp_path, ["dpg"], own={"dpg": own})
    folder = noise(run.benchmarks[0], tmp_path / "theirs")
    (first,) = run.run([f"m={folder}"])
    assert "a.png" in pictures_in(folder)  # the grid lies beside its pictures now
    (again,) = run.run([f"m={folder}"])
    assert again.rows[0].overall == first.rows[0].overall
    grids = tmp_path / "grids"
    grids.mkdir()
    shutil.copyfile(folder / "a.png", grids / "a.png")
    (alone,) = run.run([f"g=images:{grids}"])
    row = alone.row("g", 0)
    assert row.overall == first.rows[0].overall
    assert row.samples == [{"prompt": "A red cup.", "file": "g_nfe0/a.png", "correct": None}]
    assert (run.folder(run.benchmarks[0]) / "g_nfe0" / "a.png").is_file()  # the page shows the grid


def test_measures_of_a_file_of_prompts_and_of_a_benchmark_beside_it(tmp_path):
    (tmp_path / "p.txt").write_text("a photo of a circle\na photo of two squares\n")
    common = {"prompts": tmp_path / "p.txt", "images_per_prompt": 3}
    run = evaluation(tmp_path, ["diversity", "sharpness"], common=common)
    (table,) = run.run(["base=shapeworld-tiny"])
    (row,) = table.rows
    assert row.images == 6
    assert row.overall is None
    assert {"seed_distance", "vendi", "sharpness", "contrast"} <= row.metrics.keys()
    assert row.metrics["seed_distance"].value > 0
    assert "features" not in table.protocol
    assert "texture-1" in table.protocol["diversity"]

    # Two benchmarks at once: a folder for each, and the pictures that are there are not drawn again.
    name = ModelName.parse(f"base=images:{tmp_path / 'out' / 'base_nfe1'}")
    with processes() as place:
        run.score_folder(run.benchmarks[0], table, name, place)
    assert table.row("base", 1).metrics == row.metrics
    with pytest.raises(TwinflowError, match=r"add a benchmark, or --prompts"):
        evaluation(tmp_path, ["clip"])
    with pytest.raises(TwinflowError, match="--images-per-prompt"):
        evaluation(tmp_path, ["diversity"], common={"prompts": tmp_path / "p.txt"}).run(["shapeworld-tiny"])
