"""GenEval for the runner and the command line: pictures, protocol, scores."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from twinflow.errors import TwinflowError
from twinflow.evaluation.benchmark import Benchmark, Finding, Progress, Requirement, Scores, digest, silent
from twinflow.evaluation.fingerprint import fingerprint, weights_name
from twinflow.evaluation.geneval.colors import ClipColors, check_activation, clip_name
from twinflow.evaluation.geneval.detector import (
    Mask2FormerDetector,
    check_classes,
    detector_name,
    detector_weights,
)
from twinflow.evaluation.geneval.folder import find_images
from twinflow.evaluation.geneval.kept import KeptRows
from twinflow.evaluation.geneval.requirements import CLIP, HF_DETECTOR, requirements
from twinflow.evaluation.geneval.suite import GenEval, PromptWork
from twinflow.evaluation.pictures import Picture
from twinflow.evaluation.registry import Entry
from twinflow.evaluation.requirements import config_of
from twinflow.evaluation.scoring import ImageResult

RESULTS = "results.jsonl"
KEPT = "scored.jsonl"  # rows as they come


class GenEvalBenchmark(Benchmark):
    """GenEval as ``twinflow eval --benchmark geneval`` runs it. Options come as text."""

    name = "geneval"

    def __init__(
        self,
        *,
        detector: str | None = None,
        colors: str = CLIP,
        prompts: str | None = None,
        images_per_prompt: int | str = 4,
        seed: int | str = 0,
        seed_mode: str = "image",
        device: str | None = None,
    ) -> None:
        self.suite = GenEval(
            metadata=prompts,
            images_per_prompt=whole("images_per_prompt", images_per_prompt),
            seed=whole("seed", seed),
            seed_mode=seed_mode,  # type: ignore[arg-type]
        )
        self.detector_path, self.colors_path = detector, colors
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.pictures = [picture for work in self.suite.prompts() for picture in pictures_of(work)]

    @property
    def protocol(self) -> dict[str, Any]:
        return self.suite.protocol() | {
            "detector": detector_name(self._detector_path()),
            "colors": clip_name(self.colors_path),
            "weights": f"{detector_weights(self._detector_path())}; {weights_name(self.colors_path)}",
        }

    def ready(self) -> None:
        detector, colors = self._detector_path(), self.colors_path
        check_classes(config_of(detector, what="GenEval's detector"), name=detector_name(detector))
        check_activation(config_of(colors, what="GenEval's CLIP"), name=clip_name(colors))

    def check(self, folder: Path) -> None:
        find_images(folder, self.suite.prompt_file, images_per_prompt=self.suite.images_per_prompt)

    def prepare(self, folder: Path) -> None:
        self.suite.prepare(folder)

    def score(self, folder: Path, *, keep: Path | None = None, progress: Progress = silent) -> Scores:
        keep = keep or folder
        detector, colors = self.detector, self.colors  # here, before their files are told apart
        kept = KeptRows(keep / KEPT, pictures=folder, judges=self._judges())
        report = self.suite.score(
            folder, detector=detector, colors=colors, done=kept.read(), keep=kept.add, progress=progress
        )
        report.write_jsonl(keep / RESULTS)
        official = report.official
        return Scores(
            overall=official.overall,
            overall_error=official.overall_error,
            strict=report.strict.overall,
            strict_error=report.strict.overall_error,
            tasks=dict(official.tasks),
            task_images={task: proportion.total for task, proportion in official.by_task.items()},
            findings=[finding(row) for row in report.rows],
        )

    @cached_property
    def detector(self) -> Mask2FormerDetector:
        return Mask2FormerDetector.load(self._detector_path(), device=self.device)

    @cached_property
    def colors(self) -> ClipColors:
        return ClipColors.load(self.colors_path, device=self.device)

    def _judges(self) -> str:
        """What a verdict depends on besides its picture: the weights, too, since two folders may have one name."""
        paths = (self._detector_path(), self.colors_path)
        names = (detector_name(paths[0]), clip_name(paths[1]))
        return digest([*names, *map(fingerprint, paths), self.device.partition(":")[0]])

    def _detector_path(self) -> str:
        if self.detector_path is None:
            raise TwinflowError(
                "GenEval needs its detector: --with geneval.detector=FOLDER, a folder that `twinflow geneval-detector` "
                f"made of OpenMMLab's checkpoint, or a transformers Mask2Former such as {HF_DETECTOR}, whose name "
                "the result then bears"
            )
        return self.detector_path


def pictures_of(work: PromptWork) -> Iterator[Picture]:
    """A picture without a seed of its own goes on with the random numbers of the one before."""
    seed, skip = 0, 0
    for path, own in zip(work.paths, work.seeds):
        seed, skip = (seed, skip + 1) if own is None else (own, 0)
        yield Picture(file=path, prompt=work.prompt, seed=seed, skip=skip)


def finding(row: ImageResult) -> Finding:
    """A scored picture as the page shows it."""
    labels = [" ".join(filter(None, (d.color, d.class_name))) for d in row.detections]
    boxes = [(label, [float(x) for x in d.box], d.score) for label, d in zip(labels, row.detections)]
    return Finding(
        file=row.filename, prompt=row.prompt, correct=row.correct, reason=row.verdict.reason, boxes=boxes
    )


def whole(name: str, value: int | str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise TwinflowError(f"{name} must be a whole number, got {value!r}") from error


ENTRY = Entry(
    name="geneval",
    kind="benchmark",
    summary="553 prompts of six kinds, judged by an object detector and CLIP, as the authors do.",
    build=GenEvalBenchmark,
    options={
        "detector": "a converted folder, or a transformers Mask2Former",
        "colors": f"CLIP for the colours ({CLIP})",
        "prompts": "a file of the same format, such as rewritten prompts (the 553 official ones, fetched once)",
        "images_per_prompt": "pictures of each prompt (4)",
        "seed": "picture k of a prompt has the seed plus k (0)",
        "seed_mode": "image, or geneval: one generator of seed 42 for all pictures of a prompt (image)",
        "device": "cpu or cuda (cuda if there is one)",
    },
    requires=tuple(
        Requirement(
            what=f"{need.name}: {need.what}",
            size=need.size,
            licence=need.licence,
            source=need.source,
            option=f"--with geneval.{need.option}=…" if need.option else "",
        )
        for need in requirements()
    ),
)
