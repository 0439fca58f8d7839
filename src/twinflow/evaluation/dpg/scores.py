"""DPG-Bench's arithmetic: answers and dependencies in, scores out; as specified, and with the official code's bugs.

A picture's score is the mean over its questions, where a question counts as no if any parent of it does (in the order
of the csv, so that a failure goes on to grandchildren). A prompt's is the mean over its pictures, the DPG score the
mean over prompts. Category scores are means of the raw answers, before dependencies.

``compat=True`` does what the published code does instead:

1. It skips the first row of the csv. The children of that question then fail, and the item is left out (1064 items).
2. Its category scores know only the last picture of each prompt.

Its third bug, categories mixed up between processes, differs from run to run and can't be reproduced.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from twinflow.errors import TwinflowError
from twinflow.evaluation.dpg.questions import Question, Questions
from twinflow.evaluation.scoring import NORMAL_95

PictureAnswers = Mapping[int, bool]  # question -> answered with yes
ItemAnswers = Sequence[PictureAnswers]  # one a picture, in the order of the grid


@dataclass(frozen=True, kw_only=True)
class DPGScores:
    """Scores in [0, 1]; the paper shows them in percent."""

    items: Mapping[str, float]
    categories: Mapping[str, float]  # "attribute - color", …
    broad_categories: Mapping[str, float]  # "attribute", …: means over questions, not over categories
    broad_pictures: Mapping[str, int]  # pictures that the questions of a broad category were asked about
    left_out: tuple[str, ...]  # items that the official code drops; empty unless ``compat``
    compat: bool

    @property
    def overall(self) -> float:
        """The DPG score."""
        return fmean(self.items.values())

    @property
    def overall_error(self) -> float:
        """Half of the 95 % interval for independent prompts; NaN for a single one."""
        if len(self.items) < 2:
            return math.nan
        return NORMAL_95 * stdev(self.items.values()) / math.sqrt(len(self.items))


def dpg_scores(
    questions: Questions, answers: Mapping[str, ItemAnswers], *, compat: bool = False
) -> DPGScores:
    """Scores of answers to all questions about all pictures; TwinflowError, naming the item, where one is missing."""
    _check(questions, answers)
    items: dict[str, float] = {}
    raw: dict[str, list[bool]] = {}
    seen: Counter[str] = Counter()
    left_out = []
    for item, asked in questions.by_item.items():
        if compat and item == questions.first[0]:
            asked = tuple(q for q in asked if q.id != questions.first[1])
            if not asked:  # that row was the item's only one
                left_out.append(item)
                continue
        try:
            scores = [picture_score(asked, picture) for picture in answers[item]]
        except KeyError:  # only in compat: a child of the skipped question
            left_out.append(item)
            continue
        items[item] = fmean(scores)
        for picture in answers[item][-1:] if compat else answers[item]:
            seen.update({question.broad_category for question in asked})
            for question in asked:
                raw.setdefault(question.category, []).append(picture[question.id])
    if not items:
        raise TwinflowError("no item is left to score")
    broad: dict[str, list[bool]] = {}
    for category, values in raw.items():
        broad.setdefault(category.split("-")[0].strip(), []).extend(values)
    return DPGScores(
        items=items,
        categories={name: fmean(values) for name, values in raw.items()},
        broad_categories={name: fmean(values) for name, values in broad.items()},
        broad_pictures=dict(seen),
        left_out=tuple(left_out),
        compat=compat,
    )


def picture_score(questions: Sequence[Question], answers: PictureAnswers) -> float:
    """Share of questions that are answered with yes and whose parents are, too."""
    counts = {question.id: answers[question.id] for question in questions}
    for question in questions:
        if any(not counts[parent] for parent in question.parents):
            counts[question.id] = False
    return fmean(counts.values())


def _check(questions: Questions, answers: Mapping[str, ItemAnswers]) -> None:
    if missing := [item for item in questions.by_item if not answers.get(item)]:
        raise TwinflowError(
            f"{len(missing)} of {len(questions.by_item)} items have no answers: {missing[0]}, …"
        )
    if extra := sorted(answers.keys() - questions.by_item.keys()):
        raise TwinflowError(f"there are answers for items without questions: {extra[0]}, …")
    pictures = {len(answers[item]) for item in questions.by_item}
    if len(pictures) > 1:
        raise TwinflowError(f"items have different numbers of pictures: {sorted(pictures)}")
    for item, asked in questions.by_item.items():
        for number, picture in enumerate(answers[item]):
            if unanswered := [q.id for q in asked if q.id not in picture]:
                raise TwinflowError(f"question {unanswered[0]} of {item} has no answer for picture {number}")
