"""GenEval's scoring: equal to the official scorer on its golden vectors, and to published tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from twinflow.evaluation.results_file import read_results, write_results
from twinflow.evaluation.scoring import (
    Detection,
    ImageResult,
    Proportion,
    Verdict,
    confident,
    score_detections,
    summarize,
)

GENEVAL = Path(__file__).parents[2] / ".." / "shared" / "eval_data" / "geneval"
needs_golden = pytest.mark.skipif(
    not (GENEVAL / "golden_official_evaluate.jsonl").exists(),
    reason="the golden vectors of the official scorer are not in ../shared/eval_data/geneval",
)


def thing(
    name: str, x: float = 0, y: float = 0, *, color: str | None = None, score: float = 0.9
) -> Detection:
    return Detection(class_name=name, box=(x - 5, y - 5, x + 5, y + 5), color=color, score=score)


def metadata(*include: dict, exclude: list | None = None, tag: str = "two_object") -> dict:
    caption = {"tag": tag, "include": list(include), "prompt": "a photo"}
    return caption | ({"exclude": exclude} if exclude else {})


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@needs_golden
def test_equals_the_official_scorer_on_every_golden_vector():
    captions = lines(GENEVAL / "evaluation_metadata.jsonl")
    golden = lines(GENEVAL / "golden_official_evaluate.jsonl")
    assert len(golden) == 1106
    different = []
    for i, vector in enumerate(golden):
        caption = captions[vector["meta_index"]]
        found = [
            Detection(class_name=name, box=(x1, y1, x2, y2), score=score, color=color)
            for name, x1, y1, x2, y2, score, color in vector["detections"]
        ]
        verdict = score_detections(confident(found, caption["tag"]), caption)
        assert not verdict.strict or verdict.correct
        assert verdict.correct == (not verdict.reason)
        if verdict.correct != vector["correct"]:
            different.append(i)
    assert different == []


@needs_golden
def test_reasons_equal_the_official_ones_for_counts_and_exclusions():
    captions = lines(GENEVAL / "evaluation_metadata.jsonl")
    for vector in lines(GENEVAL / "golden_official_evaluate.jsonl"):
        caption = captions[vector["meta_index"]]
        if caption["tag"] not in ("single_object", "two_object", "counting"):
            continue
        found = [
            Detection(class_name=name, box=(x1, y1, x2, y2), score=score, color=color)
            for name, x1, y1, x2, y2, score, color in vector["detections"]
        ]
        assert score_detections(confident(found, caption["tag"]), caption).reason == vector["reason"]


def test_more_objects_do_not_hurt_but_are_not_strict():
    caption = metadata({"class": "ring", "count": 1})
    assert score_detections([thing("ring")], caption) == Verdict(correct=True, strict=True, reason="")
    for extra in (thing("ring", 20), thing("cross", 20)):
        verdict = score_detections([thing("ring"), extra], caption)
        assert verdict.correct
        assert not verdict.strict


def test_exclude_limits_the_count():
    caption = metadata({"class": "ring", "count": 2}, exclude=[{"class": "ring", "count": 3}])
    outcomes = [score_detections([thing("ring")] * n, caption).correct for n in range(5)]
    assert outcomes == [False, False, True, False, False]


def test_an_unclear_object_is_one_too_many_and_never_what_was_asked_for():
    need = metadata({"class": "cup", "count": 2}, exclude=[{"class": "cup", "count": 3}], tag="counting")
    two, blend = [thing("cup"), thing("cup")], replace(thing("cup"), clear=False)
    assert score_detections(two, need).strict
    assert not score_detections([*two, blend], need).correct
    assert not score_detections([two[0], blend], need).correct
    without_limit = metadata({"class": "cup", "count": 2})
    verdict = score_detections([*two, blend], without_limit)
    assert verdict.correct
    assert not verdict.strict


def test_only_the_most_confident_objects_are_asked_for_their_color():
    caption = metadata({"class": "ring", "count": 1, "color": "red"})
    red, blue = thing("ring", color="red", score=0.8), thing("ring", color="blue", score=0.9)
    assert score_detections([red], caption).correct
    assert not score_detections([red, blue], caption).correct
    assert not score_detections([thing("ring")], caption).correct  # no known colour


def test_the_right_objects_of_a_wrong_color_are_not_strict_and_the_reason_names_what_was_found():
    caption = metadata({"class": "ring", "count": 2, "color": "red"})
    rings = [thing("ring", color="red"), thing("ring", 20, color="blue")]
    verdict = score_detections(rings, caption)
    assert (verdict.correct, verdict.strict) == (False, False)
    assert verdict.reason == "expected red ring>=2, found 1 red; and 1 blue"


def test_clauses_of_one_class_ask_for_the_largest_of_their_counts():
    for counts in ((2, 1), (1, 2)):
        caption = metadata(*[{"class": "ring", "count": count} for count in counts])
        verdicts = [score_detections([thing("ring")] * n, caption) for n in range(4)]
        assert [v.correct for v in verdicts] == [False, False, True, True]
        assert [v.strict for v in verdicts] == [False, False, True, False]


@pytest.mark.parametrize(
    ("x", "y", "relation"), [(-20, 0, "left of"), (20, 0, "right of"), (0, -20, "above"), (0, 20, "below")]
)
def test_position_is_that_of_the_second_clause_relative_to_the_first(x, y, relation):
    for asked in ("left of", "right of", "above", "below"):
        caption = metadata(
            {"class": "ring", "count": 1}, {"class": "cross", "count": 1, "position": [asked, 0]}
        )
        verdict = score_detections([thing("ring"), thing("cross", x, y)], caption)
        assert verdict.correct == (asked == relation)


@pytest.mark.parametrize(
    ("x", "y", "found"),
    [(20, 0, "right of"), (20, 20, "below and right of"), (0, 0, "no relation to")],
)
def test_the_reason_says_where_the_object_is_instead(x, y, found):
    caption = metadata(
        {"class": "ring", "count": 1}, {"class": "cross", "count": 1, "position": ["above", 0]}
    )
    verdict = score_detections([thing("ring"), thing("cross", x, y)], caption)
    assert verdict.reason == f"expected cross above target, found {found} target"


def test_a_failed_clause_cannot_be_a_target():
    caption = metadata(
        {"class": "ring", "count": 1, "color": "red"},
        {"class": "cross", "count": 1, "position": ["left of", 0]},
    )
    verdict = score_detections([thing("ring", color="blue"), thing("cross", -20)], caption)
    assert "no target for cross to be left of" in verdict.reason


def test_thresholds_are_strict_and_higher_for_counting():
    scores = [0.3, 0.301, 0.9, 0.901]
    found = [thing("cat", score=score) for score in scores]
    assert [d.score for d in confident(found, "two_object")] == [0.901, 0.9, 0.301]
    assert [d.score for d in confident(found, "counting")] == [0.901]
    assert len(confident([thing("cat")] * 30 + [thing("dog")], "colors")) == 17


def rows_of(passes: dict[str, tuple[int, int]]) -> list[ImageResult]:
    """``total`` images of each task, four a prompt, the first ``correct`` of them right."""
    return [
        ImageResult(
            filename=f"{task}{i}",
            metadata={"tag": task, "include": [], "prompt": f"{task} {i // 4}"},
            verdict=Verdict(correct=i < correct, strict=False, reason=""),
        )
        for task, (correct, total) in passes.items()
        for i in range(total)
    ]


TOTALS = dict(single_object=320, two_object=396, counting=320, colors=376, position=400, color_attr=400)


@pytest.mark.parametrize(
    ("correct", "overall", "digits"),
    [
        ((314, 349, 245, 328, 158, 226), 0.74342, 5),  # Z-Image#142
        ((306, 149, 121, 281, 14, 19), 0.4234, 4),  # ELLA#24: SD1.5 at 95.62 37.63 37.81 74.73 3.50 4.75
    ],
)
def test_published_breakdowns_give_the_published_overall(correct, overall, digits):
    passes = {task: (count, total) for count, (task, total) in zip(correct, TOTALS.items())}
    summary = summarize(rows_of(passes))
    assert round(summary.overall, digits) == overall
    assert summary.images == Proportion(sum(correct), 2212)
    assert summary.prompts.total == 553
    assert list(summary.tasks) == list(TOTALS)
    assert summary.overall_standard_error == pytest.approx(0.009, abs=0.002)  # about 0.9 points


def test_a_prompt_counts_when_any_of_its_images_is_right():
    summary = summarize(rows_of({"colors": (5, 12)}))
    assert summary.prompts == Proportion(2, 3)
    assert summarize(rows_of({"colors": (5, 12)}), strict=True).overall == 0.0


def test_overall_is_the_mean_of_tasks_not_of_images():
    summary = summarize(rows_of({"colors": (10, 10), "counting": (0, 90)}))
    assert summary.overall == 0.5
    assert summary.images.value == 0.1
    with pytest.raises(ValueError, match="no rows"):
        summarize([])


def test_wilson_interval_against_published_values():
    # Newcombe 1998, table I, method 3: 81/263 and 0/20.
    assert Proportion(81, 263).interval == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert Proportion(0, 20).interval == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert Proportion(0, 20).standard_error == 0.0
    assert all(Proportion(0, n).interval[0] >= 0 and Proportion(n, n).interval[1] <= 1 for n in range(1, 99))


def test_interval_of_the_overall_contains_it_and_shrinks_with_the_root_of_n():
    small = summarize(rows_of({task: (150, 200) for task in TOTALS}))
    large = summarize(rows_of({task: (600, 800) for task in TOTALS}))
    low, high = small.overall_interval
    assert low < small.overall < high
    assert small.overall_error == pytest.approx(2 * large.overall_error, rel=0.02)
    assert small.overall_error == pytest.approx(1.96 * small.overall_standard_error, rel=0.02)
    perfect = summarize(rows_of({task: (200, 200) for task in TOTALS}))
    assert perfect.overall_interval[1] == pytest.approx(1.0)
    assert perfect.overall_error > 0


def test_results_file_has_the_official_keys_and_reads_back(tmp_path):
    caption = metadata({"class": "ring", "count": 1, "color": "red"}, tag="colors")
    found = [
        thing("ring", color="red", score=0.95),
        thing("cross", 20, score=0.9),
        thing("ring", 9, score=0.85),
    ]
    row = ImageResult(
        filename="00000.png", metadata=caption, verdict=score_detections(found, caption), detections=found
    )
    write_results(tmp_path / "results.jsonl", [row])
    (line,) = lines(tmp_path / "results.jsonl")
    # what djghosh13/geneval's summary_scores.py groups by, and what its evaluate_images.py writes
    assert {"filename", "tag", "prompt", "correct", "reason", "metadata", "details"} <= set(line)
    assert line["correct"] is True
    assert json.loads(line["metadata"]) == caption
    assert json.loads(line["details"])["ring"] == [[-5, -5, 5, 5, 0.95], [4, -5, 14, 5, 0.85]]
    assert read_results(tmp_path / "results.jsonl") == [row]

    official = {
        key: line[key] for key in ("filename", "tag", "prompt", "correct", "reason", "metadata", "details")
    }
    (tmp_path / "official.jsonl").write_text(json.dumps(official) + "\n")
    (read,) = read_results(tmp_path / "official.jsonl")
    assert read.correct
    assert [d.color for d in read.detections] == [None, None, None]
