"""GenEval's relation of two boxes: laws that hold for every pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinflow.data.relations import RELATIONS, relative_position

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
STEPS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}

# Whole numbers: centres and moves by whole numbers are exact, so that laws hold to the last bit.
corner, side = st.integers(-64, 64), st.integers(1, 64)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[float, float, float, float]:
    x, y = draw(corner), draw(corner)
    return (x, y, x + 2 * draw(side), y + 2 * draw(side))


@given(a=boxes(), b=boxes())
def test_swapping_the_boxes_gives_the_opposite_relations(a, b):
    assert relative_position(b, a) == {OPPOSITE[relation] for relation in relative_position(a, b)}


@given(a=boxes(), b=boxes())
def test_at_most_one_relation_along_each_axis(a, b):
    relations = relative_position(a, b)
    assert relations <= set(RELATIONS)
    assert not {"left of", "right of"} <= relations
    assert not {"above", "below"} <= relations


@given(a=boxes(), b=boxes(), dx=corner, dy=corner)
def test_does_not_depend_on_where_the_pair_is(a, b, dx, dy):
    moved = [(x1 + dx, y1 + dy, x2 + dx, y2 + dy) for x1, y1, x2, y2 in (a, b)]
    assert relative_position(*moved) == relative_position(a, b)


@given(a=boxes(), b=boxes(), power=st.integers(0, 4))
def test_does_not_depend_on_the_unit_of_length(a, b, power):
    scaled = [tuple(2**power * value for value in box) for box in (a, b)]
    assert relative_position(*scaled) == relative_position(a, b)


@given(a=boxes(), b=boxes())
def test_mirroring_exchanges_left_and_right_alone(a, b):
    mirrored = [(-x2, y1, -x1, y2) for x1, y1, x2, y2 in (a, b)]
    expected = {OPPOSITE[r] if r in ("left of", "right of") else r for r in relative_position(a, b)}
    assert relative_position(*mirrored) == expected


@given(a=boxes(), b=boxes())
def test_any_two_opposite_corners_are_the_box(a, b):
    x1, y1, x2, y2 = a
    for corners in ((x2, y1, x1, y2), (x1, y2, x2, y1), (x2, y2, x1, y1)):
        assert relative_position(corners, b) == relative_position(a, b)
        assert relative_position(b, corners) == relative_position(b, a)


@given(a=boxes())
def test_a_box_has_no_relation_to_itself(a):
    assert relative_position(a, a) == set()


@given(a=boxes(), x=st.integers(2, 40), y=st.integers(2, 40))
def test_only_the_first_four_numbers_count(a, x, y):
    b = (x, y, x + 3, y + 5)
    assert relative_position((*a, 0.9), (*b, 0.1)) == relative_position(a, b)


def test_less_than_a_thousandth_of_a_pixel_is_no_offset():
    point = np.zeros(4)
    assert relative_position(point - (9e-4, 0, 9e-4, 0), point) == set()
    assert relative_position(point - (11e-4, 0, 11e-4, 0), point) == {"left of"}


@pytest.mark.parametrize("relation", RELATIONS)
def test_far_along_one_axis(relation):
    box = np.array([0, 0, 10, 10])
    assert relative_position(box + 30 * np.tile(STEPS[relation], 2), box) == {relation}


def test_two_relations_hold_on_the_diagonal():
    # offset 30 each way, reduced by 0.1 * 20 to 28: 28 / 42.4 = 0.66 > 0.5
    assert relative_position((30, 30, 40, 40), (0, 0, 10, 10)) == {"right of", "below"}


def test_the_unreduced_distance_is_in_the_denominator():
    # offset 4 in one axis alone, reduced by 0.1 * 20 to 2, and 2 / 4 = 0.5 is not enough; with 5 it is 3 / 5.
    box = np.array([0, 0, 10, 10])
    for relation, step in STEPS.items():
        assert relative_position(box + 4 * np.tile(step, 2), box) == set()
        assert relative_position(box + 5 * np.tile(step, 2), box) == {relation}
        assert relative_position(box + 4 * np.tile(step, 2), box, margin=0.0) == {relation}
