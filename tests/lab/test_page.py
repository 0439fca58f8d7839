"""The leaderboard's page: well-formed, in the order of the scores, with every method's pictures at equal seeds."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from report.checker import Checker
from twinflow.data.shapeworld import draw_scene, evaluation_suite, render
from twinflow.evaluation.results import EvaluationTable
from twinflow.lab.leaderboard import Leaderboard
from twinflow.lab.page import PROMPTS, headline, leaderboard_page
from twinflow.lab.plots import ranking, score_by_compute
from twinflow.report.names import apart

from .outcomes import outcome

SUITE = evaluation_suite("tiny", 2)


def leaderboard(**scores: float | None) -> Leaderboard:
    """Of two seeds a method; a method without a score diverged."""
    runs = [outcome(method, seed, value) for method, value in scores.items() for seed in (0, 1)]
    base, partial = outcome("base", 0, 0.9), {"twinflow": outcome("twinflow", 0, 0.1)}
    partial["twinflow"].costs["flops"] = 2e11
    facts = {"budget": "3 steps a run", "level": "tiny"}
    return Leaderboard.of(base, runs, compared_with="twinflow", facts=facts, nfe=[1], partial=partial)


def pictures(folder: Path, board: Leaderboard) -> EvaluationTable:
    """What the first seed of each method drew."""
    table = EvaluationTable(benchmark="shapeworld", rows=[], protocol={})
    for method in ("base", *(s.method for s in board.standings if s.overall is not None)):
        row = outcome(method, 0, 0.5).rows[0]
        (folder / f"{method}_nfe1").mkdir()
        for i, caption in enumerate(SUITE):
            file = f"{method}_nfe1/{i:05}.png"
            pixels = render(draw_scene(caption, np.random.default_rng(i), "tiny"), "tiny")
            Image.fromarray((255 * pixels).astype(np.uint8)).save(folder / file)
            row.samples.append({"prompt": caption["prompt"], "file": file, "correct": i % 2 == 0})
        table.rows.append(row)
    return table


def test_the_page_has_all_methods_in_order_and_their_pictures(tmp_path: Path) -> None:
    board = leaderboard(scm=0.2, twinflow=0.5, mean_flow=None, dmd=0.7)
    text = leaderboard_page(tmp_path, board, pictures(tmp_path, board))
    page = Checker(text)
    assert "script" not in page.tags
    assert all(source.startswith("data:image/") for source in page.images)
    assert len(page.images) == 4 * PROMPTS  # the base and the three that drew
    standings, tasks, costs = re.findall(r'<table class="scores">.*?</table>', text, flags=re.DOTALL)
    assert "<b>0.70</b>" in tasks
    for table in (standings, tasks, costs):
        assert re.findall(r'<th scope="row">(\w+)</th>', table) == ["dmd", "twinflow", "scm", "mean_flow"]
    assert "2 of 2" in standings  # diverged
    plots = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(plots) == 3
    for plot in plots:
        ElementTree.fromstring(plot)
        assert ">dmd</text>" in plot
    for method in ("dmd", "twinflow", "scm"):
        assert f"{method} at 1 NFE" in text
    assert "dmd scores best with 1 evaluation: 0.700." in text
    assert "twinflow is number 2 of 4, with 0.500 ± 0.000. The base scores 0.900 at its best." in text


def test_the_headline_is_true_whoever_wins() -> None:
    assert headline(leaderboard(twinflow=0.5, dmd=0.2))[0] == "twinflow scores best with 1 evaluation: 0.500."
    tie = headline(leaderboard(dmd=0.5, twinflow=0.5))
    assert tie == (
        "2 methods share the best score with 1 evaluation: 0.500.",
        "The base scores 0.900 at its best.",
    )
    assert headline(leaderboard(twinflow=None))[0] == "No method has a score."
    assert headline(leaderboard(dmd=0.5, twinflow=None))[0] == "dmd scores best with 1 evaluation: 0.500."


def test_a_board_without_scores_still_has_a_page(tmp_path: Path) -> None:
    board = leaderboard(twinflow=None)
    text = leaderboard_page(tmp_path, board, pictures(tmp_path, board))
    Checker(text)
    assert len(re.findall("<svg", text)) == 1  # nothing has a score to set against its cost


def test_what_the_search_found_on_the_way_is_kept() -> None:
    board = leaderboard(twinflow=0.5)
    assert board.partial == {"twinflow": {"flops": 2e11, "scores": {"1": 0.1}}}
    assert (board.base_nfe, board.base_score, ranking(board, 1)) == (1, 0.9, ["twinflow"])


def test_without_a_part_of_the_budget_lines_begin_at_the_base() -> None:
    """Which nothing was computed for; with one, at the search's run, on a scale that may have no zero."""
    searched = leaderboard(twinflow=0.5)
    alone = Leaderboard(base=searched.base, standings=searched.standings)
    starts = {}
    for name, board in (("searched", searched), ("alone", alone)):
        plot = score_by_compute(board)
        assert plot is not None
        starts[name] = ">0</text>" in plot.split("TFLOP of training")[0]
    assert starts == {"searched": False, "alone": True}


def test_names_of_many_methods_stay_above_the_axis() -> None:
    names = [f"method{i:02}" for i in range(24)]
    plot = score_by_compute(leaderboard(**dict.fromkeys(names, 0.5)))
    assert plot is not None
    heights = {
        text.text: float(text.attrib["y"])
        for text in ElementTree.fromstring(plot).iter()
        if text.text and "y" in text.attrib
    }
    column = sorted(heights[name] for name in names)
    assert min(b - a for a, b in pairwise(column)) > 9  # points: the size of the text
    assert column[-1] < heights["TFLOP of training"] - 9


def test_names_that_would_touch_are_moved_apart() -> None:
    assert apart([0.2, 0.5], gap=0.1) == [0.2, 0.5]
    assert apart([0.5, 0.5, 0.5], gap=0.1) == pytest.approx([0.4, 0.5, 0.6])
    assert apart([0.0, 0.0, 1.0, 1.0], gap=0.1) == pytest.approx([0.0, 0.1, 0.9, 1.0])
