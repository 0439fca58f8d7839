"""Measures: numbers for the pictures of any benchmark, beside its own score."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinflow.errors import TwinflowError
from twinflow.evaluation.benchmark import Measure, Progress, digest, silent
from twinflow.evaluation.clip_scores import ClipScorer
from twinflow.evaluation.diversity import seed_diversity, vendi_score
from twinflow.evaluation.extractors import FeatureExtractor, extractor_hash, open_extractor
from twinflow.evaluation.feature_bank import SHARD, FeatureBank, once, states
from twinflow.evaluation.frechet import FeatureStatistics, frechet_distance
from twinflow.evaluation.kernel_distance import kernel_distance
from twinflow.evaluation.neighbours import neighbours
from twinflow.evaluation.pictures import Picture, pictures_in, read_pixels
from twinflow.evaluation.results import Metric
from twinflow.evaluation.sharpness import contrast, sharpness

NORMAL_95 = 1.959964


def mean_metric(values: Tensor, title: str, better: str = "", digits: int = 2) -> Metric:
    """The mean over pictures, with half of its 95 % interval where there are two."""
    count = len(values)
    error = NORMAL_95 * (values.double().std() / math.sqrt(count)).item() if count > 1 else None
    return Metric(values.double().mean().item(), title, better, digits, error)


class Sharpness(Measure):
    """Sharpness and contrast; beside those of the base they say whether a model blurs or washes out."""

    name = "sharpness"

    @property
    def protocol(self) -> dict[str, Any]:
        return {"sharpness": "Laplacian and RMS contrast of Rec. 601 luma"}

    def measure(
        self,
        folder: Path,
        pictures: Sequence[Picture],
        *,
        cache: Path,
        progress: Progress = silent,
    ) -> dict[str, Metric]:
        found, done = [], 0
        for pixels in read_pixels(folder, pictures):
            found.append((sharpness(pixels), contrast(pixels)))
            done += len(pixels)
            progress(done, len(pictures))
        sharp, rms = (torch.cat(parts) for parts in zip(*found))
        return {
            "sharpness": mean_metric(sharp, "Sharpness", digits=3),
            "contrast": mean_metric(rms, "Contrast", digits=3),
        }


class SeedDiversity(Measure):
    """How different the pictures of one prompt are: mean pairwise distance of features, and Vendi score."""

    name = "diversity"

    def __init__(self, features: str = "texture", distance: str = "cosine") -> None:
        self.extractor: FeatureExtractor = open_extractor(features)
        if distance not in ("l1", "l2", "cosine"):
            raise TwinflowError(f"diversity.distance must be l1, l2 or cosine, got {distance!r}")
        self.distance: Any = distance

    @property
    def protocol(self) -> dict[str, Any]:
        features = f"{self.extractor.name} {extractor_hash(self.extractor)}"
        return {"diversity": f"{self.distance} of {features}"}

    def ready(self, pictures: Sequence[Picture]) -> None:
        prompts = [picture.prompt for picture in pictures]
        if len(set(prompts)) == len(prompts):
            raise TwinflowError(
                "diversity compares pictures of one prompt, and here each prompt has one picture: give "
                "--images-per-prompt 4, say"
            )

    def measure(
        self,
        folder: Path,
        pictures: Sequence[Picture],
        *,
        cache: Path,
        progress: Progress = silent,
    ) -> dict[str, Metric]:
        bank = FeatureBank(folder, pictures, self.extractor, cache=cache)
        bank.compute(progress)
        values = bank.features()
        prompts = [picture.prompt for picture in pictures]
        found = seed_diversity(values, prompts, distance=self.distance)
        rows: dict[str, list[int]] = {}
        for row, prompt in enumerate(prompts):
            rows.setdefault(prompt, []).append(row)
        counts = [vendi_score(values[group]) for group in rows.values() if len(group) > 1]
        spread = mean_metric(torch.tensor([*found.prompts.values()]), "Seed distance", "higher", 3)
        return {
            "seed_distance": spread,
            "vendi": mean_metric(torch.tensor(counts), "Vendi", "higher", 2),
        }


class Distribution(Measure):
    """Distances from reference pictures: Fréchet (FID), kernel (KID), precision, recall, density, coverage.

    ``reference``: a folder of pictures, or statistics that :meth:`FeatureStatistics.save` wrote, which give the
    Fréchet distance alone.
    """

    name = "distribution"

    def __init__(self, reference: str | None = None, features: str = "texture", k: int = 5) -> None:
        if reference is None:
            raise TwinflowError(
                "distribution needs reference pictures: --with distribution.reference=FOLDER, or a .safetensors "
                "file of statistics"
            )
        self.reference, self.k = Path(reference), k
        self.extractor: FeatureExtractor = open_extractor(features)
        if self.reference.is_dir():
            names = sorted(pictures_in(self.reference))
            self.pictures = [Picture(file=name, prompt="", seed=0) for name in names]
            if len(names) < 2:
                raise TwinflowError(f"{reference} has {len(names)} pictures: a distance needs at least 2")
            state = digest([(name, (self.reference / name).stat().st_size) for name in names])
            self.key = f"{self.reference.name}, {len(names)} pictures, {state}"
        elif self.reference.is_file():
            self.statistics = self._load(self.reference)
            state = hashlib.sha256(self.reference.read_bytes()).hexdigest()[:16]
            self.key = f"{self.reference.name}, {self.statistics.count} pictures, {state}"
        else:
            raise TwinflowError(f"there are no reference pictures or statistics at {reference}")

    def _load(self, file: Path) -> FeatureStatistics:
        try:
            statistics = FeatureStatistics.load(file)
        except Exception as error:  # safetensors has errors of its own
            raise TwinflowError(f"{file} has no statistics: {error}") from error
        expected = f"{self.extractor.name} {extractor_hash(self.extractor)}"
        if statistics.feature_name != expected:
            raise TwinflowError(
                f"{file} has statistics of {statistics.feature_name!r}, and the features here are {expected!r}"
            )
        return statistics

    @property
    def protocol(self) -> dict[str, Any]:
        return {
            "reference": self.key,
            "neighbours": self.k,
            "features": f"{self.extractor.name} {extractor_hash(self.extractor)}",
        }

    def ready(self, pictures: Sequence[Picture]) -> None:
        if len(pictures) < 2:
            raise TwinflowError(f"a distance of distributions needs at least 2 pictures, got {len(pictures)}")

    def measure(
        self,
        folder: Path,
        pictures: Sequence[Picture],
        *,
        cache: Path,
        progress: Progress = silent,
    ) -> dict[str, Metric]:
        drawn, real_bank = FeatureBank(folder, pictures, self.extractor, cache=cache), None
        if self.reference.is_dir():
            real_bank = FeatureBank(
                self.reference, self.pictures, self.extractor, cache=cache.parent / "reference"
            )
            total = len(real_bank) + len(drawn)
            real_bank.compute(progress, total=total)
            drawn.compute(progress, before=len(real_bank), total=total)
        else:
            drawn.compute(progress)
        title = "FID" if self.extractor.name.startswith("inception") else "Fréchet"
        statistics = drawn.statistics()
        statistics.save(cache / "statistics.safetensors")
        if real_bank is None:
            distance = frechet_distance(statistics, self.statistics)
            return {"frechet": Metric(distance, title, "lower", 3)}
        real, features = real_bank.features(), drawn.features()
        kernel = kernel_distance(features, real)
        found = {
            "frechet": Metric(frechet_distance(statistics, real_bank.statistics()), title, "lower", 3),
            "kid": Metric(1000 * kernel.mean, "KID × 1000", "lower", 2, 1000 * kernel.deviation or None),
        }
        if min(len(real), len(features)) > self.k:
            near = neighbours(real, features, k=self.k)
            for name in ("precision", "recall", "density", "coverage"):
                found[name] = Metric(getattr(near, name), name.capitalize(), "higher", 3)
        return found


class PromptScore(Measure):
    """CLIPScore, PickScore or HPSv2.1."""

    def __init__(self, name: str, title: str, scorer: ClipScorer) -> None:
        self.name, self.title, self.scorer = name, title, scorer

    @property
    def protocol(self) -> dict[str, Any]:
        prefix = f" with the prefix {self.scorer.prefix!r}" if self.scorer.prefix else ""
        beside = f", prepared as by {self.scorer.processor}" if self.scorer.processor else ""
        return {self.name: self.scorer.name + prefix + beside}

    def measure(
        self,
        folder: Path,
        pictures: Sequence[Picture],
        *,
        cache: Path,
        progress: Progress = silent,
    ) -> dict[str, Metric]:
        parts = [pictures[first : first + SHARD] for first in range(0, len(pictures), SHARD)]
        files = [cache / f"{self._key(folder, part)}.safetensors" for part in parts]
        done = sum(len(part) for part, file in zip(parts, files) if file.is_file())
        progress(done, len(pictures))
        values = []
        for part, file in zip(parts, files):
            new = 0 if file.is_file() else len(part)

            def tell(count: int, before: int = done) -> None:
                progress(before + count, len(pictures))

            values.append(once(file, partial(self._scores, folder, part, tell)))
            done += new
        return {self.name: mean_metric(torch.cat(values), self.title, "higher", 2)}

    def _key(self, folder: Path, part: Sequence[Picture]) -> str:
        return digest([self.protocol, states(folder, part), [picture.prompt for picture in part]])

    def _scores(self, folder: Path, pictures: Sequence[Picture], tell: Callable[[int], None]) -> Tensor:
        values, done = [], 0
        for pixels in read_pixels(folder, pictures, batch=32):
            prompts = [picture.prompt for picture in pictures[done : done + len(pixels)]]
            values.append(self.scorer.score(pixels, prompts))
            done += len(pixels)
            tell(done)
        return torch.cat(values)
