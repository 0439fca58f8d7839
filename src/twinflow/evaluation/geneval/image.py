"""One picture against its prompt: detector, colours, verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from twinflow.evaluation.geneval.colors import ColorClassifier
from twinflow.evaluation.geneval.detector import MaskedDetection, ObjectDetector
from twinflow.evaluation.geneval.preprocess import read_image
from twinflow.evaluation.scoring import (
    COUNTING_THRESHOLD,
    THRESHOLD,
    Detection,
    ImageResult,
    Metadata,
    Verdict,
    confident,
    score_detections,
)


def score_image(
    image: Image.Image | str | Path,
    metadata: Metadata,
    *,
    detector: ObjectDetector,
    colors: ColorClassifier | None,
    filename: str,
) -> ImageResult:
    """The verdict on one picture, with the objects that it rests on."""
    picture = image if isinstance(image, Image.Image) else read_image(image)
    threshold = COUNTING_THRESHOLD if metadata["tag"] == "counting" else THRESHOLD
    found = confident(detector.detect(picture, threshold=threshold), metadata["tag"])
    found = with_colors(picture, found, metadata, colors)
    return judge(found, metadata, filename=filename)


def with_colors(
    image: Image.Image,
    found: Sequence[MaskedDetection],
    metadata: Metadata,
    colors: ColorClassifier | None,
) -> list[MaskedDetection]:
    """The objects with the colours that the verdict needs: of the most confident ones of each coloured clause."""
    named: dict[int, str] = {}
    for need in metadata["include"]:
        if "color" not in need:
            continue
        places = [i for i, one in enumerate(found) if one.class_name == need["class"]][: need["count"]]
        if len(places) < need["count"]:
            continue  # wrong already
        if colors is None:
            raise ValueError(f"{metadata['prompt']!r} asks for a colour and there is no colour classifier")
        named |= zip(places, colors.classify(image, need["class"], [found[i] for i in places]))
    return [replace(one, color=named.get(i)) for i, one in enumerate(found)]


def judge(found: Sequence[Detection], metadata: Metadata, *, filename: str) -> ImageResult:
    """GenEval's verdict on objects above the threshold, and the strict one; masks are dropped."""
    plain = [
        Detection(class_name=one.class_name, box=one.box, score=one.score, color=one.color) for one in found
    ]
    official = score_detections(plain, metadata)
    row = ImageResult(filename=filename, metadata=metadata, verdict=official, detections=plain)
    return replace(row, verdict=strict_verdict(row))


def strict_verdict(row: ImageResult) -> Verdict:
    """The row's verdict with its strict half told from the objects that the row lists."""
    return replace(row.verdict, strict=row.correct and exact_counts(row.detections, row.metadata))


def exact_counts(found: Iterable[Detection], metadata: Metadata) -> bool:
    """Whether every named class has exactly as many objects as asked for.

    Other classes are free, unlike in ShapeWorld: a bench may stand in front of a car.
    """
    asked: dict[str, int] = {}
    for need in metadata["include"]:
        asked[need["class"]] = max(need["count"], asked.get(need["class"], 0))
    present = Counter(one.class_name for one in found)
    return all(present[name] == count for name, count in asked.items())
