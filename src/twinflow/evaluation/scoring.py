"""GenEval's scoring core (arXiv 2310.11513): detections and a caption's metadata in, a verdict out.

Everything but the detector. The real benchmark and ShapeWorld share it, so that their scores mean the same.
Metadata is GenEval's JSON object:
``{"tag", "include": [{"class", "count", "color"?, "position"?: [relation, index]}], "exclude"?, "prompt"}``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, TypeVar

from twinflow.data.relations import relative_position

Metadata = Mapping[str, Any]
Box = tuple[float, float, float, float]  # (x1, y1, x2, y2) in pixels, y pointing down

MAX_OBJECTS = 16  # of a class
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9  # for the scores of GenEval's Mask2Former
NORMAL_95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One object found in a picture."""

    class_name: str
    box: Box
    score: float  # in [0, 1]
    color: str | None = None  # None: not asked, or none of the known colours
    clear: bool = (
        True  # False: an object of blended colours; it is one too many, but never what was asked for
    )


AnyDetection = TypeVar("AnyDetection", bound=Detection)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a picture shows what its caption says."""

    correct: bool  # GenEval's answer: objects beyond the caption do not count, except in counting
    strict: bool  # correct, and no object that the caption does not name
    reason: str  # empty when correct


def confident(
    detections: Iterable[AnyDetection], tag: str, *, max_objects: int = MAX_OBJECTS
) -> list[AnyDetection]:
    """What GenEval keeps of its detector's output for a task: the best 16 of each class above the threshold."""
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    kept: list[AnyDetection] = []
    seen: Counter[str] = Counter()
    for found in sorted(detections, key=lambda d: -d.score):
        if found.score > threshold and seen[found.class_name] < max_objects:
            seen[found.class_name] += 1
            kept.append(found)
    return kept


def score_detections(detections: Iterable[Detection], metadata: Metadata) -> Verdict:
    """GenEval's ``evaluate``: every ``include`` clause must hold, and no ``exclude`` clause may.

    Of each class the ``count`` most confident objects are examined, so more of them never hurt. A clause's
    position is examined only when its count and colour hold, against the objects of an earlier clause, which
    must hold too.
    """
    by_class: dict[str, list[Detection]] = {}
    present: Counter[str] = Counter()  # with those that are not clear
    for found in sorted(detections, key=lambda d: -d.score):
        present[found.class_name] += 1
        if found.clear:
            by_class.setdefault(found.class_name, []).append(found)

    failures: list[str] = []
    groups: list[list[Detection] | None] = []  # objects of each clause, None where it does not hold
    for need in metadata["include"]:
        group = by_class.get(need["class"], [])[: need["count"]]
        failure = (
            _count_failure(need, group)
            or _color_failure(need, group)
            or _position_failure(need, group, groups)
        )
        groups.append(None if failure else group)
        failures += [failure] if failure else []
    for limit in metadata.get("exclude", ()):
        count = present[limit["class"]]
        if count >= limit["count"]:
            failures.append(f"expected {limit['class']}<{limit['count']}, found {count}")

    correct = not failures
    asked: dict[str, int] = {}
    for need in metadata["include"]:
        asked[need["class"]] = max(need["count"], asked.get(need["class"], 0))
    exact = dict(present) == asked
    return Verdict(correct=correct, strict=correct and exact, reason="\n".join(failures))


def _count_failure(need: Metadata, group: Sequence[Detection]) -> str | None:
    if len(group) >= need["count"]:
        return None
    return f"expected {need['class']}>={need['count']}, found {len(group)}"


def _color_failure(need: Metadata, group: Sequence[Detection]) -> str | None:
    if "color" not in need:
        return None
    colors = Counter(str(found.color) for found in group)
    if colors[need["color"]] >= need["count"]:
        return None
    others = " and ".join(f"{count} {color}" for color, count in colors.items() if color != need["color"])
    wanted = f"{need['color']} {need['class']}>={need['count']}"
    return f"expected {wanted}, found {colors[need['color']]} {need['color']}; and {others}"


def _position_failure(
    need: Metadata, group: Sequence[Detection], groups: Sequence[Sequence[Detection] | None]
) -> str | None:
    if "position" not in need:
        return None
    relation, index = need["position"]
    targets = groups[index]
    if targets is None:
        return f"no target for {need['class']} to be {relation}"
    for found in group:
        for target in targets:
            true = relative_position(found.box, target.box)
            if relation not in true:
                shown = " and ".join(sorted(true)) or "no relation to"
                return f"expected {need['class']} {relation} target, found {shown} target"
    return None


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """One scored picture: a line of GenEval's results file, with the strict verdict and colours added."""

    filename: str
    metadata: Metadata
    verdict: Verdict
    detections: list[Detection] = field(default_factory=list)  # most confident first

    @property
    def tag(self) -> str:
        return self.metadata["tag"]

    @property
    def prompt(self) -> str:
        return self.metadata["prompt"]

    @property
    def correct(self) -> bool:
        return self.verdict.correct

    @property
    def strict(self) -> bool:
        return self.verdict.strict


@dataclass(frozen=True)
class Proportion:
    """``correct`` of ``total`` independent trials."""

    correct: int
    total: int

    @property
    def value(self) -> float:
        return self.correct / self.total

    @property
    def standard_error(self) -> float:
        """Binomial; 0 for all or nothing, where only the interval tells anything."""
        return math.sqrt(self.value * (1 - self.value) / self.total)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval: stays inside [0, 1] and keeps its width at 0 and 1."""
        squared = NORMAL_95**2
        centre = (self.correct + squared / 2) / (self.total + squared)
        spread = self.total * self.value * (1 - self.value) + squared / 4
        half = NORMAL_95 * math.sqrt(spread) / (self.total + squared)
        return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """GenEval's table. ``overall`` is the unweighted mean of the task scores, not the mean over images."""

    by_task: dict[str, Proportion]
    images: Proportion
    prompts: Proportion  # a prompt counts when any of its images is correct

    @property
    def tasks(self) -> dict[str, float]:
        return {task: proportion.value for task, proportion in self.by_task.items()}

    @property
    def overall(self) -> float:
        return sum(self.tasks.values()) / len(self.by_task)

    @property
    def overall_standard_error(self) -> float:
        """Of independent images; that of repeated seeds is much the same."""
        return math.hypot(*(p.standard_error for p in self.by_task.values())) / len(self.by_task)

    @property
    def overall_interval(self) -> tuple[float, float]:
        """95 % interval: the tasks' Wilson intervals, their arms added in squares (Zou and Donner 2008)."""
        below = math.hypot(*(p.value - p.interval[0] for p in self.by_task.values())) / len(self.by_task)
        above = math.hypot(*(p.interval[1] - p.value for p in self.by_task.values())) / len(self.by_task)
        return self.overall - below, self.overall + above

    @property
    def overall_error(self) -> float:
        """Half the width of the 95 % interval."""
        low, high = self.overall_interval
        return (high - low) / 2


def summarize(rows: Sequence[ImageResult], *, strict: bool = False) -> Summary:
    """Task scores of the rows, in the order in which the tasks first appear."""
    if not rows:
        raise ValueError("no rows to summarize")
    by_task: dict[str, list[bool]] = {}
    by_prompt: dict[tuple[str, str], list[bool]] = {}
    for row in rows:
        passed = row.strict if strict else row.correct
        by_task.setdefault(row.tag, []).append(passed)
        by_prompt.setdefault((row.tag, row.prompt), []).append(passed)
    passes = {task: Proportion(sum(answers), len(answers)) for task, answers in by_task.items()}
    return Summary(
        by_task=passes,
        images=Proportion(sum(p.correct for p in passes.values()), len(rows)),
        prompts=Proportion(sum(any(answers) for answers in by_prompt.values()), len(by_prompt)),
    )
