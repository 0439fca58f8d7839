"""Features of a folder's pictures, kept in shards, so that a stopped evaluation reads no picture twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from twinflow.evaluation.benchmark import Progress, digest
from twinflow.evaluation.extractors import FeatureExtractor, extractor_hash
from twinflow.evaluation.features import extract
from twinflow.evaluation.frechet import FeatureStatistics
from twinflow.evaluation.pictures import Picture, read_pixels
from twinflow.tensor_files import save_tensors

SHARD = 512  # pictures


class FeatureBank:
    """Features (N, D) of ``pictures`` in ``folder``, fp32 in files under ``cache``, computed when asked for.

    A shard belongs to its pictures' names, sizes and times of writing: one whose pictures changed is made again.
    """

    def __init__(
        self,
        folder: Path,
        pictures: Sequence[Picture],
        extractor: FeatureExtractor,
        *,
        cache: Path,
        batch: int = 32,
        shard: int = SHARD,
    ) -> None:
        self.folder, self.extractor, self.cache, self.batch = folder, extractor, cache, batch
        self.parts = [pictures[i : i + shard] for i in range(0, len(pictures), shard)]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def compute(self, progress: Progress, *, before: int = 0, total: int | None = None) -> None:
        """Make the shards that are not there. ``progress`` is told of ``before`` more pictures, of ``total`` in all."""
        lacking = [part for part in self.parts if not self._file(part).is_file()]
        done = before + len(self) - sum(map(len, lacking))
        tell = partial(_tell, progress, total or len(self))
        tell(done)
        for part in lacking:
            self._shard(part, partial(tell, done))
            done += len(part)

    def shards(self) -> Iterator[Tensor]:
        """The features in order, (up to 512, D) fp64 each."""
        for part in self.parts:
            yield self._shard(part)

    def features(self) -> Tensor:
        """All features (N, D) fp64."""
        return torch.cat(list(self.shards()))

    def statistics(self) -> FeatureStatistics:
        """Mean and covariance, streamed; mergeable with those of other pictures."""
        statistics = FeatureStatistics(f"{self.extractor.name} {extractor_hash(self.extractor)}")
        for features in self.shards():
            statistics.update(features)
        return statistics

    def _shard(self, part: Sequence[Picture], tell: Callable[[int], None] | None = None) -> Tensor:
        def rows() -> Tensor:
            found, read = [], 0
            for pixels in read_pixels(self.folder, part, batch=self.batch):
                found.append(extract(self.extractor, pixels))
                read += len(pixels)
                if tell is not None:
                    tell(read)
            return torch.cat(found).float()

        return once(self._file(part), rows).double()

    def _file(self, part: Sequence[Picture]) -> Path:
        return (
            self.cache / f"{digest([extractor_hash(self.extractor), states(self.folder, part)])}.safetensors"
        )


def _tell(progress: Progress, total: int, before: int, read: int = 0) -> None:
    progress(before + read, total)


def states(folder: Path, pictures: Sequence[Picture]) -> list[tuple[str, int, int]]:
    """Names, sizes and times of writing: other ones are other pictures."""
    found = ((picture.file, (folder / picture.file).stat()) for picture in pictures)
    return [(name, state.st_size, state.st_mtime_ns) for name, state in found]


def once(file: Path, compute: Callable[[], Tensor]) -> Tensor:
    """What ``compute`` returned when ``file`` was not there yet."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        hidden = file.with_name(f".{file.name}.{os.getpid()}")
        save_tensors({"features": compute().contiguous()}, hidden)
        os.replace(hidden, file)
    return load_file(file)["features"]
