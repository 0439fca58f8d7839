"""Captions of ShapeWorld with GenEval's metadata: six task types, every distinct prompt of a level.

A caption is the JSON object that GenEval's scorer reads:
``{"tag", "include": [{"class", "count", "color"?, "position"?: [relation, index]}], "exclude"?, "prompt"}``.
"""

from __future__ import annotations

from functools import cache
from itertools import permutations, product
from typing import Any

import numpy as np

from twinflow.data.relations import RELATIONS
from twinflow.data.shapeworld.world import NUMBER_WORDS, Level, get_level, plural, with_article

Caption = dict[str, Any]
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def _need(shape: str, count: int = 1, **extra: Any) -> dict[str, Any]:
    return {"class": shape, "count": count, **extra}


def _single_object(level: Level) -> list[Caption]:
    return [_caption([_need(a)], with_article(a)) for a in level.shapes]


def _two_object(level: Level) -> list[Caption]:
    pairs = permutations(level.shapes, 2)
    return [_caption([_need(a), _need(b)], f"{with_article(a)} and {with_article(b)}") for a, b in pairs]


def _counting(level: Level) -> list[Caption]:
    captions = []
    for shape, count in product(level.shapes, range(2, level.max_count + 1)):
        caption = _caption([_need(shape, count)], f"{NUMBER_WORDS[count]} {plural(shape)}")
        captions.append(caption | {"exclude": [_need(shape, count + 1)]})
    return captions


def _colors(level: Level) -> list[Caption]:
    pairs = product(level.shapes, level.colors)
    return [_caption([_need(a, color=c)], f"{with_article(c)} {a}") for a, c in pairs]


def _position(level: Level) -> list[Caption]:
    # GenEval's order: the object of reference comes first, "position" points back at it.
    return [
        _caption(
            [_need(b), _need(a, position=[relation, 0])], f"{with_article(a)} {relation} {with_article(b)}"
        )
        for (a, b), relation in product(permutations(level.shapes, 2), RELATIONS)
    ]


def _color_attr(level: Level) -> list[Caption]:
    return [
        _caption([_need(a, color=c), _need(b, color=d)], f"{with_article(c)} {a} and {with_article(d)} {b}")
        for (a, b), (c, d) in product(permutations(level.shapes, 2), permutations(level.colors, 2))
    ]


def _caption(include: list[dict[str, Any]], phrase: str) -> Caption:
    return {"include": include, "prompt": f"a photo of {phrase}"}


_BUILDERS = dict(zip(TASKS, (_single_object, _two_object, _counting, _colors, _position, _color_attr)))


@cache
def _captions_of(level: Level, task: str) -> tuple[Caption, ...]:
    return tuple({"tag": task, **caption} for caption in _BUILDERS[task](level))


def all_captions(level: str | Level, task: str) -> list[Caption]:
    """Every distinct caption of a task (full level: 6, 30, 18, 60, 120 and 2700)."""
    if task not in _BUILDERS:
        raise ValueError(f"unknown task {task!r}: choose one of {', '.join(TASKS)}")
    return list(_captions_of(get_level(level), task))


def held_out(level: str | Level, caption: Caption) -> bool:
    """Whether the caption names a (shape, colour) pair that training never names.

    Pairs with (shape index + colour index) % 5 == 0 are left out of the training captions of ``colors`` and
    ``color_attr``, so that scores on them measure composition.
    """
    world = get_level(level)
    return any(
        (world.shapes.index(need["class"]) + world.colors.index(need["color"])) % 5 == 0
        for need in caption["include"]
        if "color" in need
    )


def training_captions(level: str | Level, task: str) -> list[Caption]:
    """The captions of a task that training may use: all but the held-out ones."""
    return [caption for caption in all_captions(level, task) if not held_out(level, caption)]


def vocabulary(level: str | Level) -> list[str]:
    """Every word of every caption, sorted."""
    return sorted({w for task in TASKS for c in all_captions(level, task) for w in c["prompt"].split()})


def evaluation_suite(level: str | Level, images_per_task: int = 200, seed: int = 0) -> list[Caption]:
    """One caption per picture to draw: the prompts of each task in random order, cycled to the quota."""
    rng = np.random.default_rng([seed, 0x5EED])
    suite: list[Caption] = []
    for task in TASKS:
        captions = all_captions(level, task)
        rounds = -(-images_per_task // len(captions))
        order = np.concatenate([rng.permutation(len(captions)) for _ in range(rounds)])[:images_per_task]
        suite += [captions[i] for i in order]
    return suite
