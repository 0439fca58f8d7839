"""Files of answers, and what counts as one."""

from __future__ import annotations

import math

import pytest

from evaluation.dpg.items import write_csv
from twinflow.errors import TwinflowError
from twinflow.evaluation.dpg import dpg_scores, read_questions
from twinflow.evaluation.dpg.answers import (
    Answer,
    append_answers,
    check_clear,
    collect,
    plain,
    read_answers,
)


def answer(picture: int = 0, text: str = "Yes", question: str = "Is it day?") -> Answer:
    return Answer(item="a", picture=picture, question_id=1, question=question, text=text, judge="j", grid="g")


def test_plain_answers():
    assert {plain(text) for text in ("yes", " Yes. ", "YES .", "\tyes!\n")} == {"yes"}
    assert not answer(text="yes and no").clear


def test_a_line_that_was_cut_off_is_replaced_and_blank_ones_are_passed_over(tmp_path):
    path = tmp_path / "answers.jsonl"
    append_answers(str(path), [answer(0), answer(1)])
    path.write_text(path.read_text() + "\n" + '{"item_id": "a", "pict')
    assert read_answers(path) == [answer(0), answer(1)]
    append_answers(path, [answer(2)])
    assert read_answers(path) == [answer(0), answer(1), answer(2)]
    path.write_text('{"item_id"')  # not even one line
    append_answers(path, [answer(3)])
    assert read_answers(path) == [answer(3)]


def test_answers_may_come_in_any_order_and_the_last_one_counts(tmp_path):
    questions = read_questions(write_csv(tmp_path / "q.csv", [("a", 1, "0", "global", "Is it day?")]))
    found = collect(
        questions, [answer(1), answer(0, "no"), answer(1, "no"), answer(0, question=" Is it day? ")]
    )
    assert found == {"a": [{1: True}, {1: False}]}
    with pytest.raises(TwinflowError, match=r"pictures \[0, 2\], expected 0, 1"):
        collect(questions, [answer(2), answer(0)])
    with pytest.raises(TwinflowError, match="about other questions: 'Is it night\\?' is not question 1 of a"):
        collect(questions, [answer(question="Is it night?")])
    # A single item has a score, and nothing to tell its error by.
    scores = dpg_scores(questions, found)
    assert scores.overall == 0.5
    assert math.isnan(scores.overall_error)
    with pytest.raises(TwinflowError, match="no item is left"):
        dpg_scores(questions, found, compat=True)


def test_a_tenth_of_the_answers_may_be_neither_yes_nor_no():
    check_clear([answer(text="maybe"), *[answer()] * 9])
    with pytest.raises(TwinflowError, match="3 of 20 answers that are neither.*as 'perhaps'"):
        check_clear([answer(text="perhaps")] * 3 + [answer()] * 17)
