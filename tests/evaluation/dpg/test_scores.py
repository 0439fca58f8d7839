"""DPG-Bench's arithmetic: known answers, and a slow copy of what the official code does, bugs included."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from statistics import fmean

import pytest

from evaluation.dpg.items import random_rows, write_csv
from evaluation.official import DPG, needs_dpg
from twinflow.errors import TwinflowError
from twinflow.evaluation.dpg import dpg_scores, read_prompts, read_questions


def answers_for(questions, rng, pictures=4):
    return {
        item: [{q.id: rng.random() < 0.7 for q in asked} for _ in range(pictures)]
        for item, asked in questions.by_item.items()
    }


def slow_official(rows, answers):
    """The official procedure as it is described: skip row 0; walk; an item with an error is dropped; categories know
    the last picture."""
    table: dict = {}
    for number, (item, question, dependency, category, _) in enumerate(rows):
        if number == 0:
            continue
        entry = table.setdefault(item, {})
        entry[question] = ([int(part) for part in dependency.split(",")], category)
    items, categories = {}, defaultdict(list)
    for item, pictures in answers.items():
        try:
            means = []
            for said in pictures:
                score = {question: float(said[question]) for question in table[item]}
                raw = dict(score)
                for question, (parents, _) in table[item].items():
                    for parent in parents:
                        if parent == 0:
                            continue
                        if score[parent] == 0:
                            score[question] = 0.0
                            break
                means.append(sum(score.values()) / len(score))
        except KeyError:
            continue
        items[item] = sum(means) / len(means)
        for question, (_, category) in table[item].items():
            categories[category].append(raw[question])
    return items, {name: fmean(values) for name, values in categories.items()}


@pytest.mark.parametrize("seed", range(5))
def test_compat_equals_the_official_procedure(tmp_path, seed):
    rng = random.Random(seed)
    rows = random_rows(rng, 20)
    questions = read_questions(write_csv(tmp_path / "q.csv", rows))
    answers = answers_for(questions, rng)
    items, categories = slow_official(rows, answers)
    scores = dpg_scores(questions, answers, compat=True)
    assert scores.items == pytest.approx(items, abs=1e-12)
    assert scores.categories == pytest.approx(categories, abs=1e-12)
    assert set(scores.left_out) == set(answers) - set(items)
    assert scores.overall == pytest.approx(fmean(items.values()), abs=1e-12)


def test_the_official_code_drops_the_first_item_and_ours_does_not(tmp_path):
    rows = [
        ("partiprompts97", 1, "0", "entity - whole", "Is there a cat?"),
        ("partiprompts97", 2, "1", "attribute - color", "Is the cat red?"),
        ("1", 1, "0", "entity - whole", "Is there a dog?"),
        ("1", 2, "1", "attribute - color", "Is the dog blue?"),
    ]
    questions = read_questions(write_csv(tmp_path / "q.csv", rows))
    yes, no = {1: True, 2: True}, {1: False, 2: True}
    answers = {"partiprompts97": [yes] * 4, "1": [no, yes, yes, no]}
    ours = dpg_scores(questions, answers)
    assert ours.items == {"partiprompts97": 1.0, "1": 0.5}  # a blue dog that isn't there counts twice as no
    assert ours.overall == 0.75
    assert ours.categories == {"entity - whole": 6 / 8, "attribute - color": 1.0}  # raw answers, all pictures
    assert ours.broad_categories == {"entity": 6 / 8, "attribute": 1.0}
    assert ours.broad_pictures == {"entity": 8, "attribute": 8}
    assert ours.left_out == ()
    official = dpg_scores(questions, answers, compat=True)
    assert official.left_out == ("partiprompts97",)
    assert official.items == {"1": 0.5}
    assert official.categories == {"entity - whole": 0.0, "attribute - color": 1.0}  # the last picture alone
    assert official.broad_pictures == {"entity": 1, "attribute": 1}


def test_the_first_item_stays_where_nothing_depends_on_its_first_question(tmp_path):
    rows = [
        ("a", 1, "0", "global", "Is it a photo?"),
        ("a", 2, "0", "global", "Is it dark?"),
        ("b", 1, "0", "global", "Is it night?"),
    ]
    questions = read_questions(write_csv(tmp_path / "q.csv", rows))
    answers = {"a": [{1: False, 2: True}], "b": [{1: True}]}
    assert dpg_scores(questions, answers).items == {"a": 0.5, "b": 1.0}
    assert dpg_scores(questions, answers, compat=True).items == {"a": 1.0, "b": 1.0}


def test_failures_go_on_to_grandchildren_in_the_order_of_the_file(tmp_path):
    chain = [("a", k, str(k - 1), "entity - whole", f"{k}?") for k in (1, 2, 3)]
    questions = read_questions(write_csv(tmp_path / "q.csv", chain))
    assert dpg_scores(questions, {"a": [{1: False, 2: True, 3: True}]}).items == {"a": 0.0}
    # a parent that comes later has not failed yet when its child is looked at
    backwards = read_questions(write_csv(tmp_path / "b.csv", [chain[2], chain[1], chain[0]]))
    assert dpg_scores(backwards, {"a": [{1: False, 2: True, 3: True}]}).items == {"a": 1 / 3}


def test_the_interval_is_that_of_a_mean_over_prompts(tmp_path):
    rows = [(str(k), 1, "0", "global", "?") for k in range(400)]
    questions = read_questions(write_csv(tmp_path / "q.csv", rows))
    scores = dpg_scores(questions, {str(k): [{1: k % 2 == 0}] for k in range(400)})
    assert scores.overall == 0.5
    assert scores.overall_error == pytest.approx(1.96 * 0.5 / 20, rel=2e-3)
    # Of two prompts at 0 and 1 the unbiased deviation is the root of 1/2; of one there is none.
    pair = read_questions(write_csv(tmp_path / "two.csv", rows[:2]))
    scores = dpg_scores(pair, {str(k): [{1: k == 0}] for k in range(2)})
    assert scores.overall_error == pytest.approx(1.96 / 2, rel=1e-4)
    single = read_questions(write_csv(tmp_path / "one.csv", rows[:1]))
    assert math.isnan(dpg_scores(single, {"0": [{1: True}]}).overall_error)
    with pytest.raises(TwinflowError, match="no item is left"):  # the official code skips the only question
        dpg_scores(single, {"0": [{1: True}]}, compat=True)


def test_missing_answers_are_errors(tmp_path):
    rows = [("a", 1, "0", "global", "?"), ("a", 2, "0", "global", "!"), ("b", 1, "0", "global", "?")]
    questions = read_questions(write_csv(tmp_path / "q.csv", rows))
    good = {"a": [{1: True, 2: True}], "b": [{1: True}]}
    assert dpg_scores(questions, good).overall == 1.0
    with pytest.raises(TwinflowError, match="1 of 2 items have no answers: b"):
        dpg_scores(questions, {"a": good["a"]})
    with pytest.raises(TwinflowError, match="question 2 of a has no answer for picture 0"):
        dpg_scores(questions, {**good, "a": [{1: True}]})
    with pytest.raises(TwinflowError, match="different numbers of pictures"):
        dpg_scores(questions, {**good, "b": [{1: True}] * 4})
    with pytest.raises(TwinflowError, match="items without questions: c"):
        dpg_scores(questions, {**good, "c": good["b"]})


@needs_dpg
def test_the_published_code_scores_1064_of_the_1065_items(tmp_path):
    """Its csv begins with partiprompts97; the item of the row that is skipped falls out, and no other does."""
    items = list(read_prompts(DPG).texts)
    items.remove("partiprompts97")
    items.insert(0, "partiprompts97")
    rows = [
        (item, number, str(number - 1), "entity - whole", f"Is thing {number} there?")
        for item in items
        for number in (1, 2)
    ]
    questions = read_questions(write_csv(tmp_path / "dpg_bench.csv", rows))
    answers = {item: 4 * [{1: True, 2: True}] for item in items}
    official = dpg_scores(questions, answers, compat=True)
    assert len(items) == len(dpg_scores(questions, answers).items) == 1065
    assert len(official.items) == 1064
    assert official.left_out == ("partiprompts97",)
