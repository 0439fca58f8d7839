"""GenEval and DPG-Bench as the runner and the command line see them."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from evaluation.dpg.items import write_csv
from evaluation.dpg.tiny import save_tiny_vlm
from evaluation.geneval.lines import SIX, write_lines
from evaluation.geneval.tiny import tiny_clip, tiny_detector, tiny_tokenizer
from twinflow.errors import TwinflowError

WITHOUT = "the runner of benchmarks is not in this installation"
registry = pytest.importorskip("twinflow.evaluation.registry", reason=WITHOUT)
DPGBenchmark = pytest.importorskip("twinflow.evaluation.dpg.benchmark", reason=WITHOUT).DPGBenchmark
GenEvalBenchmark = pytest.importorskip(
    "twinflow.evaluation.geneval.benchmark", reason=WITHOUT
).GenEvalBenchmark


def draw(benchmark, folder):
    benchmark.prepare(folder)
    for picture in benchmark.pictures:
        path = folder / picture.file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((60, 10), 80 + picture.seed).convert("RGB").save(path)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    tiny_detector().save_pretrained(folder / "detector")
    tiny_clip().save_pretrained(folder / "clip")
    tiny_tokenizer().save_pretrained(folder / "clip")
    save_tiny_vlm(folder / "vlm")
    return folder


def test_both_are_registered_and_say_what_they_need():
    known = registry.entries()
    assert {"geneval", "dpg"} <= known.keys()
    needed = [need for name in ("geneval", "dpg") for need in known[name].requires]
    assert all(need.what and need.size and need.licence and need.source for need in needed)


def test_geneval(weights, tmp_path):
    prompts = write_lines(tmp_path / "two.jsonl", SIX[0], SIX[-1])
    options = dict(
        detector=str(weights / "detector"), colors=str(weights / "clip"), prompts=str(prompts), device="cpu"
    )
    (benchmark,), _ = registry.build(["geneval"], common={"images_per_prompt": "2"}, own={"geneval": options})
    assert isinstance(benchmark, GenEvalBenchmark)
    benchmark.ready()
    assert [p.seed for p in benchmark.pictures] == [0, 1, 0, 1]
    folder = draw(benchmark, tmp_path / "pictures")
    scores = benchmark.score(folder)
    assert scores.tasks.keys() == {"single_object", "color_attr"}
    assert scores.task_images == {"single_object": 2, "color_attr": 2}
    assert [finding.file for finding in scores.findings] == [picture.file for picture in benchmark.pictures]
    assert benchmark.protocol["detector"] == "HF detector"
    assert len((folder / "results.jsonl").read_text().splitlines()) == 4


def test_dpg(weights, tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps({"item_id": "a", "text": "A red cup."}))
    questions = write_csv(
        tmp_path / "q.csv", [("a", 1, "0", "global", "?"), ("a", 2, "0", "entity - whole", "Cup?")]
    )
    options = dict(questions=str(questions), prompts=str(tmp_path / "p.jsonl"), device="cpu")
    judge = dict(judge=str(weights / "vlm"), mode="compare")
    (benchmark,), _ = registry.build(["dpg"], common={}, own={"dpg": options | judge})
    assert isinstance(benchmark, DPGBenchmark)
    benchmark.ready()
    folder = draw(benchmark, tmp_path / "pictures")
    scores = benchmark.score(folder)
    assert 0 <= scores.overall <= 1
    assert scores.tasks.keys() == {"global", "entity"}
    imported = DPGBenchmark(**options, judge="import:mplug.jsonl", compat="true")
    imported.ready()
    with pytest.raises(TwinflowError, match="ask the judge about them"):
        imported.score(folder)
    (folder / "mplug.jsonl").write_text((folder / "answers.jsonl").read_text())
    assert imported.score(folder).metrics["dpg_other"].value == pytest.approx(100 * scores.overall)


def test_what_is_missing_is_told_before_anything_is_drawn(weights, tmp_path):
    prompts = str(write_lines(tmp_path / "six.jsonl", *SIX))
    with pytest.raises(TwinflowError, match=r"--with geneval.detector=FOLDER"):
        GenEvalBenchmark(prompts=prompts).ready()
    with pytest.raises(TwinflowError, match="are not there"):
        GenEvalBenchmark(prompts=prompts, detector=str(tmp_path / "absent")).ready()
    with pytest.raises(TwinflowError, match="seed must be a whole number, got 'x'"):
        GenEvalBenchmark(seed="x")
    texts = tmp_path / "p.jsonl"
    texts.write_text(json.dumps({"item_id": "a", "text": "A red cup."}))
    with pytest.raises(TwinflowError, match=r"give the path of dpg_bench.csv"):
        DPGBenchmark(prompts=str(texts), judge=str(weights / "vlm")).ready()
    with pytest.raises(TwinflowError, match="compat must be true or false"):
        DPGBenchmark(compat="perhaps")
