"""The Fréchet distance against closed forms, and its statistics against one pass over everything."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from twinflow.evaluation.frechet import FeatureStatistics, frechet_distance, image_statistics

F64 = torch.float64


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def gather(features: torch.Tensor) -> FeatureStatistics:
    statistics = FeatureStatistics()
    statistics.update(features)
    return statistics


def exact(mean: torch.Tensor, covariance: torch.Tensor) -> FeatureStatistics:
    return FeatureStatistics("pixels", 11, mean, covariance * 10)


def test_moments_are_those_of_numpy():
    x = random(50, 6) * 3 + 100
    statistics = gather(x)
    np.testing.assert_allclose(statistics.mean, x.numpy().mean(0))
    np.testing.assert_allclose(statistics.covariance, np.cov(x.numpy(), rowvar=False))


@given(cuts=st.lists(st.integers(0, 40), max_size=6))
def test_any_split_and_merge_is_one_pass(cuts):
    x = random(40, 5) * torch.tensor([1e-3, 1, 10, 1, 1], dtype=F64) + 1e4
    edges = [0, *sorted(cuts), 40]
    streamed, merged = FeatureStatistics(), FeatureStatistics()
    for start, end in pairwise(edges):
        streamed.update(x[start:end])
        merged = merged.merge(gather(x[start:end]))
    whole = gather(x)
    for statistics in (streamed, merged):
        assert statistics.count == 40
        torch.testing.assert_close(statistics.mean, whole.mean, rtol=1e-14, atol=0)
        torch.testing.assert_close(statistics.scatter, whole.scatter, rtol=1e-9, atol=1e-9)


def test_merge_changes_neither_part():
    a, b = gather(random(5, 3)), gather(random(7, 3, seed=1))
    before = a.mean.clone(), a.scatter.clone(), b.mean.clone(), b.scatter.clone()
    a.merge(b).update(random(4, 3))
    for kept, now in zip(before, (a.mean, a.scatter, b.mean, b.scatter), strict=True):
        assert torch.equal(kept, now)
    assert (a.count, b.count) == (5, 7)


def test_diagonal_gaussians():
    a, b = torch.tensor([1.0, 4.0, 9.0], dtype=F64), torch.tensor([4.0, 1.0, 0.25], dtype=F64)
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    expected = (mean**2).sum() + ((a.sqrt() - b.sqrt()) ** 2).sum()
    distance = frechet_distance(exact(mean, a.diag()), exact(torch.zeros_like(mean), b.diag()))
    assert distance == pytest.approx(expected.item(), rel=1e-12)


def test_general_gaussians_agree_with_the_matrix_square_root():
    from scipy.linalg import sqrtm

    a, b = (
        np.cov(random(30, 6, seed=s).numpy() @ random(6, 6, seed=s + 9).numpy(), rowvar=False) for s in (0, 1)
    )
    expected = np.trace(a + b - 2 * sqrtm(a @ b).real)
    zero = torch.zeros(6, dtype=F64)
    distance = frechet_distance(exact(zero, torch.tensor(a)), exact(zero, torch.tensor(b)))
    assert distance == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [4, 30, 200])
def test_symmetric_zero_on_equals_and_invariant_under_rotation_and_shift(count):
    x, y = random(count, 30), random(count, 30, seed=1) * 2 + 0.3
    distance = frechet_distance(gather(x), gather(y))
    assert distance == pytest.approx(frechet_distance(gather(y), gather(x)), rel=1e-10)
    assert frechet_distance(gather(x), gather(x)) == pytest.approx(0, abs=1e-9)
    rotation = torch.linalg.qr(random(30, 30, seed=2)).Q
    moved = frechet_distance(gather(x @ rotation + 7), gather(y @ rotation + 7))
    assert moved == pytest.approx(distance, rel=1e-9)
    assert frechet_distance(gather(3 * x), gather(3 * y)) == pytest.approx(9 * distance, rel=1e-9)


def test_fewer_pictures_than_features():
    # Two sets in a plane of a 50-dimensional space: the distance is that of the plane.
    plane = torch.linalg.qr(random(50, 2, seed=3)).Q
    x, y = random(6, 2), random(6, 2, seed=1) * 2 + 1
    flat = frechet_distance(gather(x), gather(y))
    assert frechet_distance(gather(x @ plane.T), gather(y @ plane.T)) == pytest.approx(flat, rel=1e-10)


def test_orthogonal_and_vanishing_spreads():
    axes = torch.eye(4, dtype=F64)
    zero = torch.zeros(4, dtype=F64)
    # Spreads with nothing in common: nothing to gain from moving along them.
    assert frechet_distance(
        exact(zero, axes[0].diag() * 4), exact(zero, axes[1].diag() * 9)
    ) == pytest.approx(13)
    # A single repeated picture against another: the distance of the two.
    a, b = gather(torch.zeros(3, 4)), gather(torch.ones(3, 4))
    assert frechet_distance(a, b) == pytest.approx(4)


def test_pictures_stream_through_any_features():
    images = random(10, 3, 4, 4).float()
    whole = image_statistics([images])
    assert whole.mean.shape == (48,)
    batched = image_statistics(images.split(3))
    torch.testing.assert_close(batched.covariance, whole.covariance)
    colours = image_statistics([images], features=lambda x: x.mean((2, 3)), name="mean colour")
    assert (colours.feature_name, colours.mean.shape) == ("mean colour", (3,))


def test_saved_statistics_are_the_same(tmp_path):
    statistics = gather(random(9, 4))
    statistics.save(tmp_path / "reference.safetensors")
    loaded = FeatureStatistics.load(tmp_path / "reference.safetensors")
    assert (loaded.feature_name, loaded.count) == (statistics.feature_name, 9)
    assert torch.equal(loaded.mean, statistics.mean)
    assert torch.equal(loaded.scatter, statistics.scatter)


def test_features_of_a_network_are_summed_in_fp64_and_without_its_graph():
    features = random(9, 4).float().requires_grad_()
    statistics = gather(features)
    assert not statistics.mean.requires_grad
    assert torch.equal(statistics.scatter, gather(features.detach().double()).scatter)


def test_a_distance_is_never_negative():
    assert all(frechet_distance(*[gather(random(7, 5, seed=seed))] * 2) >= 0 for seed in range(20))
    assert frechet_distance(gather(random(2, 3)), gather(random(2, 3, seed=1))) > 0  # two are enough


def test_errors(tmp_path):
    save_file({"mean": torch.zeros(3), "scatter": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="names no features"):
        FeatureStatistics.load(tmp_path / "other.safetensors")
    one, some = gather(random(1, 3)), gather(random(5, 3))
    with pytest.raises(ValueError, match="at least 2 pictures, got 1"):
        frechet_distance(one, some)
    with pytest.raises(ValueError, match="3 entries in one set and 4"):
        frechet_distance(some, gather(random(5, 4)))
    with pytest.raises(ValueError, match="4 entries, those before had 3"):
        some.update(random(2, 4))
    with pytest.raises(ValueError, match="NaN"):
        some.update(torch.full((2, 3), float("nan")))
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        some.update(random(2, 3, 4))
    other = FeatureStatistics("clip")
    other.update(random(5, 3))
    for compare in (frechet_distance, FeatureStatistics.merge):
        with pytest.raises(ValueError, match="'pixels' and 'clip'"):
            compare(some, other)
    with pytest.raises(ValueError, match="name must say"):
        image_statistics([], features=lambda x: x)
    with pytest.raises(ValueError, match=r"2 pictures must have the shape \(2, D\)"):
        image_statistics([torch.zeros(2, 3, 4, 4)], features=lambda x: x, name="wrong")
