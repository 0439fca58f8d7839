"""Distances of distributions: against other implementations, closed forms and slow oracles."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from twinflow.evaluation.features import pixel_features
from twinflow.evaluation.frechet import FeatureStatistics, frechet_distance, image_statistics
from twinflow.evaluation.kernel_distance import kernel_distance
from twinflow.evaluation.neighbours import neighbours
from twinflow.evaluation.sharpness import contrast, luma, sharpness


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Mixed(nn.Module):
    """Features of uint8 pictures for torchmetrics: a fixed linear map, in fp64."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", normal(48, 6, seed=7))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.double().flatten(1) @ self.weight / 255


def pictures(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)


def test_the_frechet_distance_is_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    extractor = Mixed()
    theirs = FrechetInceptionDistance(feature=extractor, normalize=False, input_img_size=(3, 4, 4))
    theirs.set_dtype(torch.float64)
    sets = [pictures(40, 1), pictures(30, 2) // 2]
    for real, images in zip((True, False), sets):
        theirs.update(images, real=real)
    ours = [image_statistics(images.split(7), features=extractor, name="mixed") for images in sets]
    assert frechet_distance(*ours) == pytest.approx(theirs.compute().item(), rel=1e-9)


def test_the_kernel_distance_is_torchmetrics():
    from torchmetrics.image.kid import KernelInceptionDistance

    extractor = Mixed()
    theirs = KernelInceptionDistance(feature=extractor, subsets=3, subset_size=24)
    sets = [pictures(24, 1), pictures(24, 2) // 2]
    for real, images in zip((True, False), sets):
        theirs.update(images, real=real)
    mean, _ = theirs.compute()
    # Subsets that are the whole set are all the same one, whatever the order.
    ours = kernel_distance(extractor(sets[0]), extractor(sets[1]))
    assert ours.mean == pytest.approx(mean.item(), rel=1e-5)  # theirs ends in fp32
    assert ours.deviation == 0


def test_the_kernel_distance_is_that_of_the_definition():
    a, b = normal(5, 3, seed=1).float(), normal(5, 3, seed=2).float()

    def mean_kernel(one: torch.Tensor, other: torch.Tensor, pairs: list[tuple[int, int]]) -> float:
        return sum(((one[i] @ other[j]).item() / 3 + 1) ** 3 for i, j in pairs) / len(pairs)

    everything = [(i, j) for i in range(5) for j in range(5)]
    apart = [(i, j) for i, j in everything if i != j]
    x, y = a.double(), b.double()
    expected = mean_kernel(x, x, apart) + mean_kernel(y, y, apart) - 2 * mean_kernel(x, y, everything)
    found = kernel_distance(a, b)
    assert found.mean == pytest.approx(expected, rel=1e-12)  # of fp32 features in fp64
    assert found.deviation == 0
    # Two rows are enough, and subsets are as large as the smaller set allows.
    pairs = kernel_distance(a, b[:2], subsets=500)
    exact = [kernel_distance(a[list(rows)], b[:2]).mean for rows in itertools.combinations(range(5), 2)]
    assert pairs.mean == pytest.approx(sum(exact) / 10, abs=4 * pairs.deviation / math.sqrt(500))
    assert kernel_distance(b[:2], a, subsets=500).deviation > 0
    # Subsets are smaller where that is asked for, and the same in every run.
    small = kernel_distance(a, b, size=2, subsets=20)
    assert small.deviation > 0
    torch.manual_seed(1)
    assert small == kernel_distance(a, b, size=2, subsets=20)
    assert small != kernel_distance(a, b, size=2, subsets=20, seed=1)


def test_the_kernel_distance_is_unbiased_and_sees_a_difference():
    same = kernel_distance(normal(400, 4, seed=1), normal(400, 4, seed=2), subsets=50, size=100)
    assert abs(same.mean) < 4 * same.deviation / math.sqrt(50) + 0.05
    assert kernel_distance(normal(100, 4, seed=1), normal(100, 4, seed=2) + 1).mean > 1
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(normal(1, 4, seed=1), normal(9, 4, seed=2))
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(normal(9, 4, seed=1), normal(1, 4, seed=2))
    for shapes in (((5, 4), (9, 3)), ((4,), (9, 4)), ((9, 4), (4,)), ((5, 4, 1), (5, 4, 1))):
        with pytest.raises(ValueError, match="shapes"):
            kernel_distance(*(normal(*shape, seed=1) for shape in shapes))


def test_statistics_do_not_depend_on_the_batches_or_on_who_gathers_them():
    values = normal(50, 5, seed=3) + 1e6  # an offset that would eat the digits of E[x^2] - E[x]^2
    whole, parts = FeatureStatistics("f"), [FeatureStatistics("f"), FeatureStatistics("f")]
    whole.update(values)
    for number, batch in enumerate(values.split(7)):
        parts[number % 2].update(batch)
    merged = parts[0].merge(parts[1])
    assert merged.count == 50
    torch.testing.assert_close(merged.covariance, torch.cov(values.T), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-9, atol=1e-8)


def brute_force(real: torch.Tensor, drawn: torch.Tensor, k: int) -> tuple[float, float, float, float]:
    def radius(values, i):
        return sorted((values - values[i]).norm(dim=1).tolist())[k]  # [0] is itself

    radii_real = [radius(real, i) for i in range(len(real))]
    radii_drawn = [radius(drawn, i) for i in range(len(drawn))]
    inside = [[(d - r).norm().item() <= s for r, s in zip(real, radii_real)] for d in drawn]
    recalled = [any((d - r).norm().item() <= s for d, s in zip(drawn, radii_drawn)) for r in real]
    precision = sum(map(any, inside)) / len(drawn)
    density = sum(map(sum, inside)) / (k * len(drawn))
    coverage = sum(map(any, zip(*inside))) / len(real)
    return precision, sum(recalled) / len(real), density, coverage


@pytest.mark.parametrize("block", [3, 100])
@pytest.mark.parametrize("ties", [False, True])
def test_neighbours_are_those_of_the_definition(block, ties):
    real, drawn = normal(20, 3, seed=4), normal(17, 3, seed=5) * 0.6 + 0.3
    if ties:  # whole numbers: many lie just at the edge of a neighbourhood, and many are copies
        real, drawn = (real * 2).round(), (drawn * 2).round()
    found = neighbours(real, drawn, k=3, block=block)
    expected = brute_force(real, drawn, 3)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 4])
def test_neighbours_are_those_that_scikit_learn_finds(k):
    nearest = pytest.importorskip("sklearn.neighbors").NearestNeighbors
    real, drawn = normal(120, 4, seed=6), normal(90, 4, seed=7) * 0.7 + 0.2

    def inside(centres, others):
        """(N, M): whether each of ``others`` lies within each centre's distance to its k-th neighbour."""
        reach = nearest(n_neighbors=k).fit(centres.numpy()).kneighbors()[0][:, -1]  # itself is left out
        return torch.cdist(centres, others) <= torch.from_numpy(reach)[:, None]

    of_real, of_drawn = inside(real, drawn), inside(drawn, real)
    expected = (
        of_real.any(0).double().mean(),
        of_drawn.any(0).double().mean(),
        of_real.sum(0).double().mean() / k,
        of_real.any(1).double().mean(),
    )
    found = neighbours(real, drawn, k=k)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(
        [value.item() for value in expected], rel=1e-12
    )
    assert 0 < found.coverage < 1


def test_a_picture_at_the_very_edge_of_a_neighbourhood_lies_in_it():
    real, drawn = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[5.0], [7.0]])
    found = neighbours(real, drawn, k=1)  # 5 is as far from 3 as 1 is, and as far from 3 as from 7
    assert (found.precision, found.density) == (1 / 2, 1 / 2)
    assert (found.recall, found.coverage) == pytest.approx((1 / 3, 1 / 3))


def test_neighbours_do_not_depend_on_an_offset_or_on_the_dtype():
    real, drawn = normal(60, 3, seed=4).float(), normal(50, 3, seed=5).float() * 0.6
    found = neighbours(real, drawn, k=1)
    assert found == neighbours(real.double(), drawn.double(), k=1)
    assert found == neighbours(real.double() + 1e6, drawn.double() + 1e6, k=1)


def test_copies_are_perfect_and_one_mode_is_precise_but_covers_little():
    real = normal(60, 3, seed=6)
    same = neighbours(real, real)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    collapsed = neighbours(real, real[:1] + 1e-6 * normal(60, 3, seed=7))
    assert collapsed.precision == 1
    assert collapsed.recall < 0.1
    assert collapsed.coverage < 0.3
    far = neighbours(real, real + 100)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    with pytest.raises(ValueError, match="more than 5"):
        neighbours(real[:5], real)
    with pytest.raises(ValueError, match="more than 5"):
        neighbours(real, real[:5])
    with pytest.raises(ValueError, match="k = 0"):
        neighbours(real, real, k=0)
    for one, other in ((real[0], real), (real, real[0]), (real, real[:, :2])):
        with pytest.raises(ValueError, match="shapes"):
            neighbours(one, other)


def test_blur_lowers_sharpness_and_gray_has_no_contrast():
    images = normal(3, 3, 32, 32, seed=8).clamp(-1, 1)
    blurred = nn.functional.avg_pool2d(images, 3, stride=1, padding=1)
    assert (sharpness(blurred) < 0.5 * sharpness(images)).all()
    assert sharpness(images[1:2]).item() == pytest.approx(sharpness(images)[1].item(), rel=1e-12)
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    assert sharpness(board.expand(1, 3, 8, 8)).item() == pytest.approx(4)
    ends = luma(torch.tensor([-1.0, 1.0])[:, None, None, None].expand(-1, 3, 1, 1))
    assert ends.flatten().tolist() == pytest.approx([0, 1])
    halves = torch.ones(1, 3, 8, 8)
    halves[..., :4] = -1
    torch.testing.assert_close(contrast(halves), torch.tensor([0.5], dtype=torch.float64))
    assert contrast(torch.zeros(1, 3, 8, 8)).item() == 0
    assert sharpness(torch.full((1, 3, 8, 8), 0.3)).item() == pytest.approx(0, abs=1e-12)
    # A ramp has no Laplacian: sharpness is not contrast.
    ramp = torch.linspace(-1, 1, 8, dtype=torch.float64).expand(1, 3, 8, 8)
    assert sharpness(ramp).item() == pytest.approx(0, abs=1e-12)
    assert contrast(ramp).item() > 0.2
    assert pixel_features(images).shape == (3, 3072)
