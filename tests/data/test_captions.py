"""ShapeWorld's captions: how many, in which words, and which are held out."""

from __future__ import annotations

import re

import pytest

from twinflow.data.relations import RELATIONS
from twinflow.data.shapeworld import (
    LEVELS,
    TASKS,
    all_captions,
    get_level,
    held_out,
)
from twinflow.data.shapeworld.captions import training_captions, vocabulary
from twinflow.data.shapeworld.world import PALETTE

both_levels = pytest.mark.parametrize("level", LEVELS)
SHAPE = r"(circle|square|triangle|diamond|cross|ring)"
PLURAL = r"(circles|squares|triangles|diamonds|crosses|rings)"
COLOR = "(" + "|".join(PALETTE) + ")"
GRAMMAR = {
    "single_object": rf"a photo of a {SHAPE}",
    "two_object": rf"a photo of a {SHAPE} and a {SHAPE}",
    "counting": rf"a photo of (two|three|four) {PLURAL}",
    "colors": rf"a photo of an? {COLOR} {SHAPE}",
    "position": rf"a photo of a {SHAPE} (left of|right of|above|below) a {SHAPE}",
    "color_attr": rf"a photo of an? {COLOR} {SHAPE} and an? {COLOR} {SHAPE}",
}


def test_number_of_captions():
    assert [len(all_captions("full", task)) for task in TASKS] == [6, 30, 18, 60, 120, 2700]
    assert [len(all_captions("tiny", task)) for task in TASKS] == [3, 6, 9, 15, 24, 120]


@both_levels
def test_captions_are_distinct_and_follow_the_grammar(level):
    for task in TASKS:
        prompts = [caption["prompt"] for caption in all_captions(level, task)]
        assert len(set(prompts)) == len(prompts)
        for prompt in prompts:
            assert re.fullmatch(GRAMMAR[task], prompt), prompt
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", prompt), prompt


@both_levels
def test_metadata_follows_genevals_schema(level):
    """Keys, ranges and cross-references of evaluation_metadata.jsonl, and a prompt that says the same."""
    world = get_level(level)
    for task in TASKS:
        for caption in all_captions(level, task):
            assert set(caption) == {"tag", "include", "prompt"} | (
                {"exclude"} if task == "counting" else set()
            )
            assert caption["tag"] == task
            include = caption["include"]
            assert len(include) == (2 if task in ("two_object", "position", "color_attr") else 1)
            for i, need in enumerate(include):
                colored = {"color"} if task in ("colors", "color_attr") else set()
                placed = {"position"} if task == "position" and i == 1 else set()
                assert set(need) == {"class", "count"} | colored | placed
                assert need["class"] in world.shapes
                assert need["class"] in caption["prompt"]
                assert need.get("color", world.colors[0]) in world.colors
                if placed:
                    relation, target = need["position"]
                    assert relation in RELATIONS
                    assert target == 0
                    assert f"{need['class']} {relation} a {include[0]['class']}" in caption["prompt"]
            if task == "counting":
                (need,) = include
                assert 2 <= need["count"] <= world.max_count
                assert caption["exclude"] == [{"class": need["class"], "count": need["count"] + 1}]
            else:
                assert all(need["count"] == 1 for need in include)


def test_vocabulary_is_small():
    assert len(vocabulary("full")) == 34
    assert set(vocabulary("tiny")) < set(vocabulary("full"))
    longest = max(len(c["prompt"].split()) for task in TASKS for c in all_captions("full", task))
    assert longest == 10  # "a photo of a black circle and a white ring"


@both_levels
def test_no_training_caption_names_a_held_out_pair(level):
    world = get_level(level)
    pairs = {
        (shape, color)
        for i, shape in enumerate(world.shapes)
        for j, color in enumerate(world.colors)
        if (i + j) % 5 == 0
    }
    assert pairs
    for task in TASKS:
        training = training_captions(level, task)
        assert training
        for caption in training:
            named = {(need["class"], need["color"]) for need in caption["include"] if "color" in need}
            assert not named & pairs
        left_out = [c for c in all_captions(level, task) if c not in training]
        assert bool(left_out) == (task in ("colors", "color_attr"))
        assert all(held_out(level, c) for c in left_out)


@both_levels
def test_training_still_names_every_word(level):
    """A word that only held-out captions contain could not be learnt, and would not measure composition."""
    words = {w for task in TASKS for c in training_captions(level, task) for w in c["prompt"].split()}
    assert words == set(vocabulary(level))


def test_unknown_names_are_refused_with_the_choices():
    with pytest.raises(ValueError, match="tiny, full"):
        get_level("huge")
    with pytest.raises(ValueError, match="single_object, two_object"):
        all_captions("tiny", "spelling")
