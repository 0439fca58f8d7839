"""The GenEval benchmark (arXiv 2310.11513): what to draw, and a complete folder of pictures to a score."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from twinflow.errors import TwinflowError
from twinflow.evaluation.benchmark import Progress, silent
from twinflow.evaluation.geneval.colors import ColorClassifier
from twinflow.evaluation.geneval.detector import ObjectDetector
from twinflow.evaluation.geneval.folder import find_images, image_path, listed, write_metadata
from twinflow.evaluation.geneval.image import score_image, strict_verdict
from twinflow.evaluation.geneval.prompts import PromptFile, official_prompts, read_prompts
from twinflow.evaluation.geneval.seeds import SEED_MODES, SeedMode, generators, prompt_seeds
from twinflow.evaluation.results import EvaluationRow
from twinflow.evaluation.results_file import read_results, write_results
from twinflow.evaluation.scoring import (
    COUNTING_THRESHOLD,
    THRESHOLD,
    ImageResult,
    Metadata,
    Summary,
    summarize,
)

OFFICIAL_IMAGES = 4  # of a prompt


@dataclass(frozen=True, kw_only=True)
class PromptWork:
    """One prompt to draw."""

    index: int
    prompt: str
    metadata: Metadata
    seeds: tuple[int | None, ...]  # of each picture; None: go on with the numbers of the picture before
    paths: tuple[str, ...]  # of each picture, relative to the folder

    def generators(self, device: torch.device | str = "cpu") -> tuple[torch.Generator, ...]:
        """See :func:`twinflow.evaluation.geneval.seeds.generators`."""
        return generators(self.seeds, device)


@dataclass(frozen=True, kw_only=True)
class GenEvalReport:
    """Scores of one folder, and what they depend on."""

    rows: list[ImageResult]
    official: Summary  # GenEval's rule: more objects than asked for are free, except in counting
    strict: Summary  # exactly as many objects of the named classes as asked for
    protocol: dict[str, str | int | float] = field(default_factory=dict)

    def write_jsonl(self, path: str | Path) -> None:
        """The official results file (its ``summary_scores.py`` runs on it), with strict verdicts and colours added."""
        write_results(path, self.rows)

    def evaluation_row(self, *, model: str, nfe: int, **more: Any) -> EvaluationRow:
        """A row of a table; ``more`` are its other fields: style, guidance, seconds_per_image, …"""
        return EvaluationRow(
            model=model,
            nfe=nfe,
            images=len(self.rows),
            overall=self.official.overall,
            overall_error=self.official.overall_error,
            strict=self.strict.overall,
            strict_error=self.strict.overall_error,
            tasks=dict(self.official.tasks),
            **more,
        )


@dataclass(kw_only=True)
class GenEval:
    """The benchmark for one prompt file. Pictures are drawn elsewhere; this says which, and scores them.

    ``metadata`` is None for the 553 official prompts, or a file of the same format: rewritten prompts, or one's own.
    """

    metadata: str | Path | PromptFile | None = None
    images_per_prompt: int = OFFICIAL_IMAGES
    seed_mode: SeedMode = "image"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images_per_prompt < 1:
            raise TwinflowError(f"images_per_prompt must be at least 1, got {self.images_per_prompt}")
        if self.seed_mode not in SEED_MODES:
            raise TwinflowError(f"seed_mode must be one of {', '.join(SEED_MODES)}, got {self.seed_mode!r}")
        if self.seed_mode == "geneval" and self.seed != 0:
            raise TwinflowError(
                f"seed_mode 'geneval' has the official seed 42; seed={self.seed} would be ignored"
            )

    @property
    def prompt_file(self) -> PromptFile:
        if self.metadata is None:
            self.metadata = official_prompts()
        if not isinstance(self.metadata, PromptFile):
            self.metadata = read_prompts(self.metadata)
        return self.metadata

    def prompts(self) -> list[PromptWork]:
        """What to draw, in the official order."""
        seeds = prompt_seeds(self.seed_mode, self.images_per_prompt, seed=self.seed)
        return [
            PromptWork(
                index=index,
                prompt=row["prompt"],
                metadata=row,
                seeds=seeds,
                paths=tuple(image_path(index, k) for k in range(self.images_per_prompt)),
            )
            for index, row in enumerate(self.prompt_file.rows)
        ]

    def prepare(self, folder: str | Path) -> None:
        """Write the ``metadata.jsonl`` of every prompt, so that any GenEval scorer can read the folder."""
        write_metadata(folder, self.prompt_file)

    def score(
        self,
        folder: str | Path,
        *,
        detector: ObjectDetector,
        colors: ColorClassifier | None,
        done: Iterable[ImageResult] = (),
        keep: Callable[[ImageResult], None] | None = None,
        progress: Progress = silent,
    ) -> GenEvalReport:
        """Score a folder in the official layout, whoever made it; an incomplete one is a TwinflowError.

        ``done`` are rows of the same folder that were scored before and are taken as they are (a broken-off
        evaluation's); ``keep`` is called with every other one as soon as it is there, and ``progress`` with the
        number of pictures that are done, first of those. ``colors`` may be None only where no prompt asks for a
        colour.
        """
        images = find_images(folder, self.prompt_file, images_per_prompt=self.images_per_prompt)
        wanted = {image.filename: image.metadata for image in images}
        before = {row.filename: row for row in done if wanted.get(row.filename) == row.metadata}
        self._check_colors(colors)
        count = len(before)
        progress(count, len(images))
        rows = []
        for image in images:
            row = before.get(image.filename)
            if row is None:
                row = score_image(
                    image.path, image.metadata, detector=detector, colors=colors, filename=image.filename
                )
                if keep is not None:
                    keep(row)
                count += 1
                progress(count, len(images))
            rows.append(row)
        names = {"detector": detector.name, "colors": colors.name if colors else "none"}
        return self.report(rows, **names)

    def read(self, path: str | Path) -> GenEvalReport:
        """The report on a results file, ours or the official scorer's; it must be of this prompt file and complete."""
        try:
            rows = read_results(path)
        except OSError as error:
            raise TwinflowError(f"the results {path} can't be read: {error}") from error
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise TwinflowError(f"{path} is not a results file of GenEval: {error!r}") from error
        self._check_rows(rows, path)
        return self.report(
            [replace(row, verdict=strict_verdict(row)) for row in rows], results=Path(path).name
        )

    def report(self, rows: Sequence[ImageResult], **protocol: str | int | float) -> GenEvalReport:
        """Scores of rows, with the protocol that they depend on."""
        return GenEvalReport(
            rows=list(rows),
            official=summarize(rows),
            strict=summarize(rows, strict=True),
            protocol={**self.protocol(), **protocol},
        )

    @property
    def title(self) -> str:
        """GenEval's name alone for its 553 prompts with four pictures each; else with what is not so."""
        other = "" if self.prompt_file.official else " with other prompts"
        if self.images_per_prompt == OFFICIAL_IMAGES:
            return f"GenEval{other}"
        count = f"{self.images_per_prompt} picture{'' if self.images_per_prompt == 1 else 's'} a prompt"
        return f"GenEval{other}{' and' if other else ' with'} {count} instead of {OFFICIAL_IMAGES}"

    def protocol(self) -> dict[str, str | int | float]:
        """What a reader needs to compare the numbers, or to refuse to."""
        prompts = self.prompt_file
        return {
            "benchmark": self.title,
            "prompts": prompts.name,
            "prompts_sha256": prompts.sha256,
            "images_per_prompt": self.images_per_prompt,
            "seed_mode": self.seed_mode,
            "seed": "42" if self.seed_mode == "geneval" else self.seed,
            "thresholds": f"{THRESHOLD}, counting {COUNTING_THRESHOLD}",
        }

    def _check_colors(self, colors: ColorClassifier | None) -> None:
        asked = any("color" in need for row in self.prompt_file.rows for need in row["include"])
        if asked and colors is None:
            raise TwinflowError(
                "the prompts ask for colours: a colour classifier is needed (ClipColors.load with the weights of "
                "openai/clip-vit-large-patch14)"
            )

    def _check_rows(self, rows: Sequence[ImageResult], path: str | Path) -> None:
        known = {json.dumps(row, sort_keys=True): row["prompt"] for row in self.prompt_file.rows}
        counts = dict.fromkeys(known, 0)
        for row in rows:
            key = json.dumps(row.metadata, sort_keys=True)
            if key not in counts:
                raise TwinflowError(
                    f"{path} is of another prompt set: {row.prompt!r} is not in {self.prompt_file.name} with that "
                    "metadata. Give the prompt file that the pictures were drawn from."
                )
            counts[key] += 1
        wrong = [f"{known[key]!r} has {n}" for key, n in counts.items() if n != self.images_per_prompt]
        if wrong:
            raise TwinflowError(
                f"{path}: every prompt needs {self.images_per_prompt} results, but {listed(wrong)}. "
                "A mean over fewer would not be GenEval's score."
            )
