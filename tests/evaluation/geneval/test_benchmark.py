"""GenEval and DPG-Bench as the runner and the command line see them."""

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
from twinflow.evaluation.building import build
from twinflow.evaluation.dpg.benchmark import DPGBenchmark
from twinflow.evaluation.geneval.benchmark import KEPT, GenEvalBenchmark
from twinflow.evaluation.geneval.detector import Mask2FormerDetector
from twinflow.evaluation.registry import entries


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
    known = entries()
    assert {"geneval", "dpg"} <= known.keys()
    needed = [need for name in ("geneval", "dpg") for need in known[name].requires]
    assert all(need.what and need.size and need.licence and need.source for need in needed)


def test_geneval(weights, tmp_path):
    prompts = write_lines(tmp_path / "two.jsonl", SIX[0], SIX[-1])
    options = dict(
        detector=str(weights / "detector"), colors=str(weights / "clip"), prompts=str(prompts), device="cpu"
    )
    (benchmark,), _ = build(["geneval"], common={"images_per_prompt": "2"}, own={"geneval": options})
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


def test_pictures_have_seeds_of_their_own_or_geneval_s(tmp_path):
    prompts = str(write_lines(tmp_path / "six.jsonl", *SIX))
    common = {"prompts": prompts, "images_per_prompt": 3}
    (own,), _ = build(["geneval"], common=common | {"seed": 5}, own={})
    assert [(p.seed, p.skip) for p in own.pictures[:4]] == [(5, 0), (6, 0), (7, 0), (5, 0)]
    (geneval,), _ = build(["geneval"], common=common, own={"geneval": {"seed_mode": "geneval"}})
    assert [(p.seed, p.skip) for p in geneval.pictures] == 6 * [(42, 0), (42, 1), (42, 2)]
    assert geneval.suite.protocol()["seed_mode"] != own.suite.protocol()["seed_mode"]
    with pytest.raises(TwinflowError, match="would be ignored"):
        build(["geneval"], common=common | {"seed": 5}, own={"geneval": {"seed_mode": "geneval"}})


def test_geneval_goes_on_where_scoring_was_stopped(weights, tmp_path, monkeypatch):
    """Pictures are looked at once, unless they, or the weights that look at them, have changed."""
    prompts = write_lines(tmp_path / "two.jsonl", SIX[0], SIX[3])
    options = dict(prompts=str(prompts), colors=str(weights / "clip"), images_per_prompt=2, device="cpu")
    looked = []
    detect, stop_after = Mask2FormerDetector.detect, [3]

    def counted(self, image, *, threshold):
        if len(looked) == stop_after[0]:
            raise KeyboardInterrupt
        looked.append(image.size)
        return detect(self, image, threshold=threshold)

    monkeypatch.setattr(Mask2FormerDetector, "detect", counted)

    def score(folder, detector="detector"):
        return GenEvalBenchmark(detector=str(weights / detector), **options).score(folder)

    folder = draw(GenEvalBenchmark(detector=str(weights / "detector"), **options), tmp_path / "pictures")
    with pytest.raises(KeyboardInterrupt):
        score(folder)
    with (folder / KEPT).open("a") as file:
        file.write((folder / KEPT).read_text()[:90])  # the line that was being written
    stop_after[0] = None
    first = score(folder)
    assert len(looked) == 4
    assert score(folder) == first
    assert len(looked) == 4
    whole = shutil.copytree(folder, tmp_path / "whole", ignore=lambda *_: [KEPT])
    assert score(whole) == first  # as if it had never been stopped
    assert len(looked) == 8
    Image.effect_noise((61, 10), 80).save(folder / "00000" / "samples" / "00000.png")
    score(folder)
    assert looked[8:] == [(61, 10)]
    shutil.copytree(weights / "detector", tmp_path / "other" / "detector")
    tiny_detector(seed=1).save_pretrained(tmp_path / "other" / "detector")  # of the same name
    score(folder, tmp_path / "other" / "detector")
    assert len(looked) == 13


def test_weights_that_arrive_with_the_first_score_are_the_same_in_the_second(weights, tmp_path, monkeypatch):
    """A detector by its hub id is a configuration before it is loaded, and all its files afterwards."""
    prompts = write_lines(tmp_path / "one.jsonl", SIX[0])
    late = tmp_path / "late"
    late.mkdir()
    shutil.copyfile(weights / "detector" / "config.json", late / "config.json")
    load, detect, looked = Mask2FormerDetector.load, Mask2FormerDetector.detect, []

    def fetch(path, **options):
        shutil.copytree(weights / "detector", path, dirs_exist_ok=True)
        return load(path, **options)

    monkeypatch.setattr(Mask2FormerDetector, "load", fetch)
    monkeypatch.setattr(
        Mask2FormerDetector,
        "detect",
        lambda self, *args, **how: looked.append(1) or detect(self, *args, **how),
    )
    options = dict(detector=str(late), prompts=str(prompts), colors=str(weights / "clip"), device="cpu")
    folder = draw(GenEvalBenchmark(**options), tmp_path / "pictures")
    for _ in range(2):
        GenEvalBenchmark(**options).score(folder)
        assert len(looked) == 4


def test_the_protocol_tells_weights_of_one_name_apart(weights, tmp_path):
    prompts = write_lines(tmp_path / "one.jsonl", SIX[0])
    questions = write_csv(tmp_path / "q.csv", [("a", 1, "0", "global", "?")])
    (tmp_path / "p.jsonl").write_text(json.dumps({"item_id": "a", "text": "A red cup."}))
    tiny_detector(seed=1).save_pretrained(tmp_path / "detector")
    save_tiny_vlm(tmp_path / "vlm", seed=1)

    def protocols(folder):
        geneval = dict(prompts=str(prompts), colors=str(weights / "clip"), detector=str(folder / "detector"))
        dpg = dict(questions=str(questions), prompts=str(tmp_path / "p.jsonl"), judge=str(folder / "vlm"))
        return GenEvalBenchmark(**geneval).protocol, DPGBenchmark(**dpg).protocol

    for own, other, moved in zip(
        protocols(weights),
        protocols(tmp_path),
        protocols(shutil.copytree(weights, tmp_path / "moved")),
    ):
        assert own != other
        assert own == moved
        assert str(tmp_path) not in str(moved)


def test_dpg(weights, tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps({"item_id": "a", "text": "A red cup."}))
    questions = write_csv(
        tmp_path / "q.csv", [("a", 1, "0", "global", "?"), ("a", 2, "0", "entity - whole", "Cup?")]
    )
    options = dict(questions=str(questions), prompts=str(tmp_path / "p.jsonl"), device="cpu")
    judge = dict(judge=str(weights / "vlm"), mode="compare")
    (benchmark,), _ = build(["dpg"], common={}, own={"dpg": options | judge})
    assert isinstance(benchmark, DPGBenchmark)
    benchmark.ready()
    folder = draw(benchmark, tmp_path / "pictures")
    scores = benchmark.score(folder)
    assert 0 <= scores.overall <= 1
    assert scores.tasks.keys() == {"global", "entity"}
    assert scores.task_images == {"global": 4, "entity": 4}  # what the categories' intervals are taken from
    assert scores.overall_error is None  # of a single prompt
    imported = DPGBenchmark(**options, judge="import:mplug.jsonl", compat="true")
    imported.ready()
    with pytest.raises(TwinflowError, match="ask the judge about them"):
        imported.score(folder)
    (answers,) = folder.glob("answers_*.jsonl")
    (folder / "mplug.jsonl").write_text(answers.read_text())
    assert imported.score(folder).metrics["dpg_other"].value == pytest.approx(100 * scores.overall)


def test_what_is_missing_is_told_before_anything_is_drawn(weights, tmp_path):
    prompts = str(write_lines(tmp_path / "six.jsonl", *SIX))
    with pytest.raises(TwinflowError, match=r"--with geneval.detector=FOLDER"):
        GenEvalBenchmark(prompts=prompts).ready()
    with pytest.raises(TwinflowError, match="are not there"):
        GenEvalBenchmark(prompts=prompts, detector=str(tmp_path / "absent")).ready()
    detector = str(weights / "detector")
    (tmp_path / "bare").mkdir()
    shutil.copyfile(weights / "clip" / "config.json", tmp_path / "bare" / "config.json")
    with pytest.raises(TwinflowError, match=r"GenEval's CLIP, .*bare, are not there: .* no .safetensors"):
        GenEvalBenchmark(prompts=prompts, detector=detector, colors=str(tmp_path / "bare")).ready()
    tiny_clip("gelu").save_pretrained(tmp_path / "laion")
    with pytest.raises(TwinflowError, match="laion computes with 'gelu'"):
        GenEvalBenchmark(prompts=prompts, detector=detector, colors=str(tmp_path / "laion")).ready()
    with pytest.raises(TwinflowError, match="the detector 'HF clip' has 2 classes"):
        GenEvalBenchmark(prompts=prompts, detector=str(weights / "clip")).ready()
    with pytest.raises(TwinflowError, match="seed must be a whole number, got 'x'"):
        GenEvalBenchmark(seed="x")
    texts = tmp_path / "p.jsonl"
    texts.write_text(json.dumps({"item_id": "a", "text": "A red cup."}))
    with pytest.raises(TwinflowError, match=r"give the path of dpg_bench.csv"):
        DPGBenchmark(prompts=str(texts), judge=str(weights / "vlm")).ready()
    own = dict(
        prompts=str(texts), questions=str(write_csv(tmp_path / "q.csv", [("a", 1, "0", "global", "?")]))
    )
    with pytest.raises(TwinflowError, match=r"the judge, .*bare, are not there"):
        DPGBenchmark(**own, judge=str(tmp_path / "bare")).ready()
    with pytest.raises(TwinflowError, match="compat must be true or false"):
        DPGBenchmark(compat="perhaps")
