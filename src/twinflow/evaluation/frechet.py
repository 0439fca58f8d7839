"""Fréchet distance between two sets of pictures (FID, arXiv 1706.08500), for any features.

A number compares only with numbers of the same features, the same reference set and a like count of
pictures: the distance falls with the count. Statistics therefore carry the features' name and their count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from twinflow.evaluation.features import FeatureFunction, extract, pixel_features
from twinflow.tensor_files import save_tensors


@dataclass
class FeatureStatistics:
    """Mean and covariance of D features over any number of pictures, gathered batch by batch in fp64.

    Batches are merged by Chan's formula for centred second moments, so that a large common offset of the
    features costs no digits of the covariance.
    """

    feature_name: str = "pixels"  # what the features are; only equal names are compared
    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))  # (D,)
    scatter: Tensor = field(default_factory=lambda: torch.zeros((0, 0), dtype=torch.float64))  # (D, D)

    def update(self, features: Tensor) -> None:
        """Add the features (N, D) of N pictures; N may be 0."""
        if features.dim() != 2:
            raise ValueError(f"features must have the shape (N, D), got {tuple(features.shape)}")
        if not features.isfinite().all():
            raise ValueError(
                f"features {self.feature_name!r} have NaN or infinite entries: check the pictures"
            )
        values = features.detach().to("cpu").double()
        if values.shape[0] == 0:
            return
        mean = values.mean(0)
        centred = values - mean
        self._add(FeatureStatistics(self.feature_name, values.shape[0], mean, centred.T @ centred))

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Statistics of both sets together, say of two processes; neither is changed."""
        if other.feature_name != self.feature_name:
            raise ValueError(
                f"statistics of {self.feature_name!r} and {other.feature_name!r} do not merge: "
                "use the same features for both"
            )
        merged = FeatureStatistics(self.feature_name, self.count, self.mean, self.scatter)
        if other.count:
            merged._add(other)
        return merged

    def _add(self, other: FeatureStatistics) -> None:
        if self.count == 0:
            self.count, self.mean, self.scatter = other.count, other.mean, other.scatter
            return
        if other.mean.shape != self.mean.shape:
            raise ValueError(
                f"features have {other.mean.numel()} entries, those before had {self.mean.numel()}"
            )
        total = self.count + other.count
        offset = other.mean - self.mean
        self.scatter = (
            self.scatter + other.scatter + torch.outer(offset, offset) * (self.count * other.count / total)
        )
        self.mean = self.mean + offset * (other.count / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance (D, D) fp64."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 pictures, got {self.count}")
        return self.scatter / (self.count - 1)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, bit for bit."""
        tensors = {"mean": self.mean.contiguous(), "scatter": self.scatter.contiguous()}
        save_tensors(tensors, path, metadata={"features": self.feature_name, "count": str(self.count)})

    @classmethod
    def load(cls, path: str | Path) -> FeatureStatistics:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if not {"features", "count"} <= set(metadata):
                raise ValueError(f"{path} was not written by FeatureStatistics.save: it names no features")
            return cls(
                metadata["features"],
                int(metadata["count"]),
                file.get_tensor("mean"),
                file.get_tensor("scatter"),
            )


def image_statistics(
    batches: Iterable[Tensor], *, features: FeatureFunction = pixel_features, name: str = "pixels"
) -> FeatureStatistics:
    """Statistics of the ``features``, called ``name``, of all pictures in ``batches`` of (N, C, H, W)."""
    if features is not pixel_features and name == "pixels":
        raise ValueError("name must say what the features are, since they are not the pixels")
    statistics = FeatureStatistics(name)
    for images in batches:
        statistics.update(extract(features, images))
    return statistics


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Squared 2-Wasserstein distance of the Gaussians with these means and covariances.

    ``|mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)``. With A = F_a F_a^T and B = F_b F_b^T the last
    trace is the sum of the singular values of F_a^T F_b. This takes no square root of an eigenvalue that is
    zero but for rounding, which is what spoils the usual formula when there are fewer pictures than features.
    """
    if a.feature_name != b.feature_name:
        raise ValueError(
            f"statistics of {a.feature_name!r} and {b.feature_name!r} do not compare: use the same features"
        )
    cov_a, cov_b = a.covariance, b.covariance
    if cov_a.shape != cov_b.shape:
        raise ValueError(f"features have {len(cov_a)} entries in one set and {len(cov_b)} in the other")
    overlap = torch.linalg.svdvals(_factor(cov_a).T @ _factor(cov_b)).sum()
    distance = (a.mean - b.mean).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap
    return max(0.0, distance.item())  # rounding can leave -1e-16


def _factor(covariance: Tensor) -> Tensor:
    """F (D, rank) with F F^T = ``covariance``: eigenvalues that are rounding errors are left out."""
    values, vectors = torch.linalg.eigh(covariance)
    keep = values > values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, keep] * values[keep].sqrt()
