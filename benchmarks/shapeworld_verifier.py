"""How far ShapeWorld's detector can be trusted: recall on true scenes, false positives on wrong and junk ones.

    python benchmarks/shapeworld_verifier.py --level tiny full --images 1200 --json figures.json

Recall: scenes are drawn for their captions, degraded as a weak generator would, and must be scored correct.
False positives: the verifier says correct where the scene's own layout (or plain sense: noise shows nothing)
says wrong. Runs on one core; figures depend on the seed and the number of images only.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import scipy
from rich.console import Console
from rich.table import Table
from shapeworld_spoiling import DEGRADATIONS, JUNK, NEGATIVE_CONDITIONS

from twinflow.data.relations import RELATIONS
from twinflow.data.shapeworld import TASKS, all_captions, draw_scene, evaluation_suite, get_level, render
from twinflow.data.shapeworld.captions import Caption
from twinflow.data.shapeworld.dataset import EVAL_STREAM
from twinflow.data.shapeworld.scenes import SceneObject
from twinflow.data.shapeworld.world import OBJECT_GAP, Level
from twinflow.evaluation.detector import ShapeDetector
from twinflow.evaluation.scoring import Detection, ImageResult, score_detections, summarize

CONDITIONS = [name for name in DEGRADATIONS if "own pixels" not in name]  # which differs at other sizes alone

# ---- the truth: captions that a scene's own layout proves wrong -----------------------------------------------


def oracle(scene: list[SceneObject], caption: Caption) -> bool:
    """Whether the layout itself, without a picture, satisfies the caption."""
    found = [Detection(class_name=o.shape, box=o.box, score=1.0, color=o.color) for o in scene]
    return score_detections(found, caption).correct


def hard_negatives(caption: Caption, level: Level) -> Iterator[Caption]:
    """Captions with one attribute changed: class, count, colour, colours swapped, or relation."""
    include = caption["include"]

    def changed(index: int, **new: object) -> Caption:
        needs = [need | new if i == index else need for i, need in enumerate(include)]
        return {key: value for key, value in caption.items() if key != "exclude"} | {"include": needs}

    for i, need in enumerate(include):
        for shape in level.shapes:
            if shape not in {other["class"] for other in include}:
                yield changed(i, **{"class": shape})
        for color in level.colors if "color" in need else ():
            if color != need["color"]:
                yield changed(i, color=color)
        for relation in RELATIONS if "position" in need else ():
            if relation != need["position"][0]:
                yield changed(i, position=[relation, 0])
    if caption["tag"] == "counting":
        count = include[0]["count"]
        for other in (count - 1, count + 1):
            yield changed(0, count=other) | {"exclude": [include[0] | {"count": other + 1}]}
    if caption["tag"] == "color_attr":
        first, second = include
        swapped = [first | {"color": second["color"]}, second | {"color": first["color"]}]
        yield caption | {"include": swapped}


# ---- measurements -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Recall:
    level: str
    size: int
    condition: str
    images: int
    wrong: int
    overall: float
    strict: float
    error: float  # standard error of strict; 0 for all or nothing, where some 3 / images may still be wrong
    weakest_task: str
    weakest: float
    mean_score: float  # of all objects found
    milliseconds: float  # CPU time of the detector a picture
    gap: float = OBJECT_GAP  # least distance of two objects' boxes, in pixels of a 32 x 32 picture


@dataclass(frozen=True, kw_only=True)
class FalsePositives:
    level: str
    size: int
    test: str
    condition: str
    questions: int  # (picture, caption) pairs that are wrong
    said_correct: int
    share: float
    error: float  # standard error of the share, over pictures
    missed: int = 0  # pairs that happen to be right, but were scored wrong


class Verifier:
    """Scenes and pictures of one level and size, and what the detector makes of them."""

    def __init__(
        self, level: Level, *, images: int, seed: int, full_vocabulary: bool, gap: float = OBJECT_GAP
    ) -> None:
        if images < 2 * len(TASKS):
            raise SystemExit(f"--images must be at least {2 * len(TASKS)}, got {images}")
        self.level, self.seed, self.gap = level, seed, gap
        self.detector = ShapeDetector(level, full_vocabulary=full_vocabulary)
        self.captions = evaluation_suite(level, images // len(TASKS), seed)
        rngs = [np.random.default_rng([seed, EVAL_STREAM, i]) for i in range(len(self.captions))]
        self.scenes = [draw_scene(caption, rng, level, gap=gap) for caption, rng in zip(self.captions, rngs)]
        self.pictures = [render(scene, level).astype(np.float64) for scene in self.scenes]

    def _rng(self, *words: str) -> np.random.Generator:
        """Every test has its own stream, so that leaving one out changes no other."""
        text = " ".join([self.level.name, str(self.level.size), *words])
        return np.random.default_rng([self.seed, *text.encode()])

    def recall(self, condition: str) -> Recall:
        rng = self._rng("recall", condition)
        pictures = [DEGRADATIONS[condition](picture, rng) for picture in self.pictures]
        start = time.process_time()
        found = [self.detector.detect(picture) for picture in pictures]
        seconds = time.process_time() - start
        rows = [
            ImageResult(filename="", metadata=caption, verdict=score_detections(objects, caption))
            for objects, caption in zip(found, self.captions)
        ]
        strict = summarize(rows, strict=True)
        weakest = min(strict.tasks, key=lambda task: strict.tasks[task])
        scores = [d.score for objects in found for d in objects]
        return Recall(
            level=self.level.name,
            size=self.level.size,
            condition=condition,
            images=len(rows),
            wrong=sum(not row.strict for row in rows),
            overall=summarize(rows).overall,
            strict=strict.overall,
            error=strict.overall_standard_error,
            weakest_task=weakest,
            weakest=strict.tasks[weakest],
            mean_score=float(np.mean(scores)) if scores else 0.0,
            milliseconds=1e3 * seconds / len(rows),
            gap=self.gap,
        )

    def negatives(self, condition: str) -> list[FalsePositives]:
        """One hard negative and one independent caption of the same task for every picture."""
        rng = self._rng("negatives", condition)
        tests = ("hard negative", "random caption of the task")
        answers: dict[str, list[int]] = {test: [] for test in tests}  # of the wrong pairs: said to be correct
        missed = dict.fromkeys(tests, 0)
        for caption, scene, picture in zip(self.captions, self.scenes, self.pictures):
            found = self.detector.detect(DEGRADATIONS[condition](picture, rng))
            hard = [c for c in hard_negatives(caption, self.level) if not oracle(scene, c)]
            pool = all_captions(self.level, caption["tag"])
            for test, asked in zip(tests, (hard[rng.integers(len(hard))], pool[rng.integers(len(pool))])):
                true, said = oracle(scene, asked), score_detections(found, asked).correct
                if true:
                    missed[test] += not said
                else:
                    answers[test].append(int(said))
        return [self._row(test, condition, answers[test], 1, missed[test]) for test in tests]

    def junk(self, name: str) -> FalsePositives:
        """Pictures of nothing, each against a random caption of every task."""
        rng = self._rng("junk", name)
        said: list[int] = []  # captions that each picture is said to show
        for _ in self.pictures:
            scenes = [self.pictures[i] for i in rng.choice(len(self.pictures), 8, replace=False)]
            found = self.detector.detect(JUNK[name](scenes, rng))
            pools = [all_captions(self.level, task) for task in TASKS]
            asked = [pool[rng.integers(len(pool))] for pool in pools]
            said.append(sum(score_detections(found, caption).correct for caption in asked))
        return self._row("junk", name, said, len(TASKS), 0)

    def _row(self, test: str, condition: str, said: list[int], captions: int, missed: int) -> FalsePositives:
        """Of pictures with so many ``captions`` each, how many of them are ``said`` to be correct."""
        share = np.array(said) / captions
        return FalsePositives(
            level=self.level.name,
            size=self.level.size,
            test=test,
            condition=condition,
            questions=captions * len(said),
            said_correct=sum(said),
            share=float(share.mean()),
            error=float(share.std() / np.sqrt(len(said))),
            missed=missed,
        )


def show(console: Console, title: str, rows: list[Recall] | list[FalsePositives]) -> None:
    if not rows:
        return
    table = Table(title=title)
    for name in asdict(rows[0]):
        table.add_column(name, justify="left" if isinstance(getattr(rows[0], name), str) else "right")
    for row in rows:
        table.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in asdict(row).values()))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--level", nargs="+", default=["full"], help="tiny, full")
    parser.add_argument("--size", nargs="+", type=int, default=[32], help="side of the pictures in pixels")
    parser.add_argument("--images", type=int, default=1200, help="pictures per condition, tasks equally")
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--conditions", nargs="*", choices=list(DEGRADATIONS), default=CONDITIONS)
    parser.add_argument(
        "--negatives", nargs="*", choices=list(DEGRADATIONS), default=list(NEGATIVE_CONDITIONS)
    )
    parser.add_argument("--junk", nargs="*", choices=list(JUNK), default=list(JUNK))
    parser.add_argument(
        "--gaps",
        nargs="*",
        type=float,
        default=[],
        help="then clean scenes with so little between boxes: pixels of a 32 x 32 picture",
    )
    parser.add_argument("--full-vocabulary", action="store_true", help="look for all shapes and colours")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--append", action="store_true", help="keep the runs that the JSON file has")
    args = parser.parse_args()

    recalls: list[Recall] = []
    positives: list[FalsePositives] = []
    console = Console(width=150)
    for name in args.level:
        for size in args.size:
            level = replace(get_level(name), size=size)
            common = {"images": args.images, "seed": args.seed, "full_vocabulary": args.full_vocabulary}
            verifier = Verifier(level, **common)
            recall = [verifier.recall(condition) for condition in args.conditions]
            recall += [Verifier(level, **common, gap=gap).recall("clean") for gap in args.gaps]
            false = [row for condition in args.negatives for row in verifier.negatives(condition)]
            false += [verifier.junk(kind) for kind in args.junk]
            show(console, f"Recall on true scenes, level {name}, {size} px", recall)
            show(console, f"False positives, level {name}, {size} px", false)
            recalls, positives = recalls + recall, positives + false

    if args.json:
        run = {
            "command": f"python {shlex.join(sys.argv)}",
            "date": date.today().isoformat(),
            "seed": args.seed,
            "full_vocabulary": args.full_vocabulary,
            "versions": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "scipy": scipy.__version__,
            },
            "machine": f"{platform.machine()}, one core shared with other work",
            "recall": [asdict(row) for row in recalls],
            "false_positives": [asdict(row) for row in positives],
        }
        before = json.loads(args.json.read_text())["runs"] if args.append else []
        args.json.write_text(json.dumps({"runs": [*before, run]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
