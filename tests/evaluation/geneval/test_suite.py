"""From a folder of pictures to a score on the CPU, with a tiny random detector and a tiny random CLIP."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image

from evaluation.geneval.lines import SIX, prompt_file
from evaluation.geneval.tiny import tiny_clip, tiny_detector, tiny_tokenizer
from evaluation.official import GENEVAL, needs_geneval
from twinflow.errors import TwinflowError
from twinflow.evaluation.geneval import (
    TASKS,
    ClipColors,
    GenEval,
    Mask2FormerDetector,
    read_prompts,
    requirements,
    score_image,
)
from twinflow.evaluation.geneval.image import judge
from twinflow.evaluation.results_file import read_results
from twinflow.evaluation.scoring import Detection, confident, score_detections

OFFICIAL_KEYS = {"filename", "tag", "prompt", "correct", "reason", "metadata", "details"}


def golden(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@needs_geneval
def test_verdicts_equal_the_official_scorers():
    rows = read_prompts(GENEVAL).rows
    wrong = []
    vectors = golden(GENEVAL.with_name("golden_official_evaluate.jsonl"))
    assert len(vectors) == 1106
    for number, vector in enumerate(vectors):
        metadata = rows[vector["meta_index"]]
        found = [
            Detection(class_name=name, box=(x1, y1, x2, y2), score=score, color=color)
            for name, x1, y1, x2, y2, score, color in vector["detections"]
        ]
        row = judge(confident(found, metadata["tag"]), metadata, filename="x")
        assert row.correct or not row.strict
        if row.correct != vector["correct"]:
            wrong.append(number)
    assert wrong == []


def test_strict_counts_the_named_classes_alone():
    metadata = SIX[0]
    name = metadata["include"][0]["class"]
    bench = Detection(class_name=name, box=(0, 0, 9, 9), score=0.9)
    tree = replace(bench, class_name="potted plant")
    assert judge([bench], metadata, filename="").strict
    assert judge([bench, tree, tree], metadata, filename="").strict
    crowd = judge([bench, bench], metadata, filename="")
    assert crowd.correct
    assert not crowd.strict


@pytest.fixture(scope="module")
def prompts():
    """One prompt of each task."""
    return prompt_file(*SIX)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    tiny_detector().save_pretrained(folder / "tiny-swin")
    return dict(
        detector=Mask2FormerDetector.load(folder / "tiny-swin"),
        colors=ClipColors(tiny_clip(), tiny_tokenizer(), name="tiny-clip"),
    )


@pytest.fixture(scope="module")
def scored(tmp_path_factory, prompts, models):
    folder = tmp_path_factory.mktemp("pictures")
    suite = GenEval(metadata=prompts, images_per_prompt=2)
    suite.prepare(folder)
    rng = np.random.default_rng(0)
    for work in suite.prompts():
        for path in work.paths:  # long and thin: small for the detector, which enlarges to 1333 x 800
            pixels = rng.integers(0, 256, (2, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((120, 20), Image.Resampling.BICUBIC).save(folder / path)
    seen: list[tuple[int, int]] = []
    report = suite.score(folder, **models, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 12) for i in range(13)]
    return suite, folder, report


def test_a_folder_becomes_a_score(scored):
    _, _, report = scored
    assert list(report.official.tasks) == list(TASKS)
    assert report.official.images.total == 12
    assert report.official.prompts.total == 6
    assert 0 <= report.strict.overall <= report.official.overall <= 1
    assert sum(len(row.detections) for row in report.rows) > 12  # the detector sees things
    row = report.evaluation_row(model="tiny", nfe=1, seconds_per_image=0.5)
    assert (row.images, row.overall, row.strict) == (12, report.official.overall, report.strict.overall)
    assert report.protocol["detector"] == "HF tiny-swin"
    assert report.protocol["colors"] == "tiny-clip"
    assert report.protocol["benchmark"] != "GenEval"  # six prompts are not the benchmark


def test_verdicts_follow_from_the_objects_that_were_written(scored):
    _, _, report = scored
    for row in report.rows:
        assert all(d.score > (0.9 if row.tag == "counting" else 0.3) for d in row.detections)
        assert score_detections(row.detections, row.metadata).correct == row.correct
        height, width = 20, 120
        assert all(0 <= d.box[0] < d.box[2] <= width for d in row.detections)
        assert all(0 <= d.box[1] < d.box[3] <= height for d in row.detections)


def test_colors_are_asked_for_where_the_prompt_names_one(models):
    """Every object that the detector sees of a coloured clause gets a colour, if there are enough of them."""
    rng = np.random.default_rng(3)
    image = Image.fromarray(rng.integers(0, 256, (20, 120, 3), dtype=np.uint8))
    found = models["detector"].detect(image, threshold=0.3)
    name, count = Counter(one.class_name for one in found).most_common(1)[0]
    need = {"class": name, "count": 1, "color": "red"}
    metadata = {"tag": "colors", "include": [need], "prompt": "a photo"}
    row = score_image(image, metadata, filename="x", **models)
    named = [d for d in row.detections if d.color is not None]
    assert len(named) == 1
    best = max(found, key=lambda one: (one.class_name == name, one.score))
    assert (named[0].box, named[0].score) == (best.box, best.score)
    assert row.correct == (named[0].color == "red")
    need["count"] = count + 1
    assert all(d.color is None for d in score_image(image, metadata, filename="x", **models).detections)


def test_the_results_file_is_the_official_one_and_reads_back(scored, tmp_path):
    suite, _, report = scored
    path = tmp_path / "results.jsonl"
    report.write_jsonl(path)
    lines = golden(path)
    assert all(line.keys() >= OFFICIAL_KEYS for line in lines)
    again = suite.read(path)
    assert again.rows == report.rows
    # what the official summary computes, with its library
    table = pandas.read_json(path, orient="records", lines=True)
    assert table["correct"].mean() == report.official.images.value
    assert table.groupby("metadata")["correct"].any().mean() == report.official.prompts.value
    overall = table.groupby("tag", sort=False)["correct"].mean().mean()
    assert overall == pytest.approx(report.official.overall, abs=1e-12)
    # a file of the official scorer: no colours, no strict verdicts, which are told from the objects
    path.write_text("\n".join(json.dumps({k: line[k] for k in OFFICIAL_KEYS}) for line in lines))
    official = suite.read(path)
    assert official.official == report.official
    assert official.strict == report.strict


def test_a_stopped_evaluation_goes_on(scored, models, tmp_path):
    suite, folder, report = scored
    report.write_jsonl(tmp_path / "results.jsonl")
    done = read_results(tmp_path / "results.jsonl")[:11]

    class Once:
        name = models["detector"].name
        calls = 0

        def detect(self, image, *, threshold):
            self.calls += 1
            return models["detector"].detect(image, threshold=threshold)

    once = Once()
    again = suite.score(folder, detector=once, colors=models["colors"], done=done)
    assert once.calls == 1
    assert again.rows == report.rows


def test_results_of_other_prompts_or_incomplete_ones_are_refused(scored, tmp_path):
    suite, _, report = scored
    path = tmp_path / "results.jsonl"
    report.write_jsonl(path)
    with pytest.raises(TwinflowError, match="every prompt needs 4 results"):
        GenEval(metadata=suite.metadata).read(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(TwinflowError, match="every prompt needs 2 results, but .* has 1"):
        suite.read(path)
    other = prompt_file(*SIX[:5])
    with pytest.raises(TwinflowError, match="of another prompt set"):
        GenEval(metadata=other, images_per_prompt=2).read(path)
    short = json.loads(lines[-1]) | {"details": json.dumps({"cup": [[1, 2, 3, 4]]})}  # a box without a score
    for other_line in (lines[-1][:40], "[1, 2]", json.dumps(short)):
        path.write_text("\n".join([*lines[:-1], other_line]))
        with pytest.raises(TwinflowError, match="not a results file"):
            suite.read(path)
    with pytest.raises(TwinflowError, match="can't be read"):
        suite.read(tmp_path / "absent.jsonl")


def test_colors_are_needed_before_anything_is_detected(scored, models):
    suite, folder, _ = scored
    with pytest.raises(TwinflowError, match="a colour classifier is needed"):
        suite.score(folder, detector=models["detector"], colors=None)


def test_a_detector_of_other_classes_is_refused():
    model = tiny_detector()
    model.config.id2label = {i: str(i) for i in range(133)}
    with pytest.raises(TwinflowError, match="133 classes"):
        Mask2FormerDetector(model, name="panoptic")


def test_detectors_that_are_not_there(tmp_path):
    with pytest.raises(TwinflowError, match="no detector can be loaded"):
        Mask2FormerDetector.load(tmp_path / "absent")


def test_requirements_name_what_is_fetched():
    needed = {r.name: r for r in requirements()}
    assert needed["detector"].source.endswith("743b7d99.pth")
    assert needed["colors"].source == "openai/clip-vit-large-patch14"
    assert all(r.size and r.licence and r.what for r in needed.values())
