"""Diversity scores of sets whose spread is known."""

import math

import pytest
import torch

from twinflow.evaluation.diversity import layout_diversity, seed_diversity, vendi_score


def picture(value: float, shape=(1, 2, 2)) -> torch.Tensor:
    return torch.full(shape, value)


def test_equal_pictures_have_no_diversity():
    images = torch.rand(1, 3, 4, 4).expand(4, -1, -1, -1)
    for distance in ("l1", "l2", "cosine"):
        assert seed_diversity(images, ["a"] * 4, distance=distance).mean == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 8, 8)])
@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_distance_of_flat_pictures_whatever_their_size(shape, distance):
    images = torch.stack([picture(v, shape) for v in (0.0, 1.0, 3.0)])
    result = seed_diversity(images, ["a"] * 3, distance=distance)
    assert result.mean == pytest.approx((1 + 2 + 3) / 3)
    assert result.pairs == 3


def test_l1_and_l2_differ_where_the_change_is_local():
    images = torch.zeros(2, 1, 2, 2)
    images[1, 0, 0, 0] = 1
    assert seed_diversity(images, [0, 0], distance="l1").mean == pytest.approx(1 / 4)
    assert seed_diversity(images, [0, 0], distance="l2").mean == pytest.approx(1 / 2)


def test_only_pictures_of_one_prompt_are_compared_and_prompts_weigh_the_same():
    values = {"a": (0.0, 1.0), "b": (100.0, 103.0, 106.0), "c": (7.0,)}
    prompts = [p for p, vs in values.items() for _ in vs]
    images = torch.stack([picture(v) for vs in values.values() for v in vs])
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0)).tolist()
    result = seed_diversity(images[order], [prompts[i] for i in order])
    assert result.prompts == pytest.approx({"a": 1.0, "b": 4.0})
    assert result.mean == pytest.approx(2.5)
    assert (result.pairs, result.left_out) == (4, 1)


def test_cosine_of_given_features():
    def angle(images):
        theta = images.flatten(1)[:, 0] * math.pi
        return torch.stack([theta.cos(), theta.sin()], dim=1)

    images = torch.stack([picture(0.0), picture(0.5), picture(1.0)])
    result = seed_diversity(images, ["a"] * 3, distance="cosine", features=angle)
    assert result.mean == pytest.approx((1 + 1 + 2) / 3)


def test_vendi_score_counts_different_rows():
    eye = torch.eye(5)
    assert vendi_score(eye) == pytest.approx(5)
    assert vendi_score(eye[:1].expand(7, -1)) == pytest.approx(1)
    assert vendi_score(torch.cat([eye[:2]] * 3)) == pytest.approx(2)
    assert vendi_score(eye * torch.arange(1, 6)[:, None]) == pytest.approx(5)  # lengths do not matter
    # Shares 3/4 and 1/4.
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert vendi_score(eye[[0, 0, 0, 1]]) == pytest.approx(math.exp(entropy))


def test_vendi_score_of_two_rows_at_an_angle():
    cosine = 0.6
    rows = torch.tensor([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64)
    shares = [(1 + cosine) / 2, (1 - cosine) / 2]
    expected = math.exp(-sum(s * math.log(s) for s in shares))
    assert vendi_score(rows) == pytest.approx(expected)
    assert vendi_score(torch.cat([rows] * 4)) == pytest.approx(expected)  # more rows than features
    assert vendi_score(rows.float()) == vendi_score(rows.float().double())  # summed in fp64


def test_vendi_score_of_rows_of_zeros():
    assert vendi_score(torch.zeros(3, 4)) == pytest.approx(1)
    assert vendi_score(torch.tensor([[0.0, 0.0], [1.0, 0.0]])) == pytest.approx(2)


def box(x: float, y: float, radius: float = 1.0) -> tuple[float, float, float, float]:
    return (x - radius, y - radius, x + radius, y + radius)


def test_layouts_are_compared_by_sorted_centres():
    # The same two places in another order, with other sizes, are the same layout.
    same = [[box(4, 5), box(20, 9, 3)], [box(20, 9), box(4, 5, 2)]]
    assert layout_diversity(same, ["a", "a"]).mean == pytest.approx(0)
    moved = [[box(4, 5), box(20, 9)], [box(20, 10), box(7, 5)]]
    assert layout_diversity(moved, ["a", "a"]).mean == pytest.approx((3 + 1) / 2)
    assert layout_diversity(moved, ["a", "a"], size=32).mean == pytest.approx(2 / 32)


def test_layouts_with_other_counts_are_not_compared():
    layouts = [[box(4, 4)], [box(6, 4)], [box(1, 1), box(9, 9)], [], []]
    result = layout_diversity(layouts, ["a"] * 5)
    assert (result.mean, result.pairs) == (pytest.approx(2), 1)


def test_errors():
    with pytest.raises(ValueError, match="at least 2 seeds a prompt"):
        seed_diversity(torch.zeros(2, 1, 2, 2), ["a", "b"])
    with pytest.raises(ValueError, match="at least 2 seeds a prompt"):
        layout_diversity([[], []], ["a", "a"])
    with pytest.raises(ValueError, match="2 pictures need as many prompts, got 1"):
        seed_diversity(torch.zeros(2, 1, 2, 2), ["a"])
    with pytest.raises(ValueError, match="'lpips'"):
        seed_diversity(torch.zeros(2, 1, 2, 2), ["a", "a"], distance="lpips")
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        vendi_score(torch.zeros(3))
    for empty in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match=r"N, D > 0"):
            vendi_score(torch.zeros(empty))
    with pytest.raises(ValueError, match="2 pictures need as many prompts, got 3"):
        layout_diversity([[], []], ["a", "a", "a"])
    with pytest.raises(ValueError, match="size"):
        layout_diversity([[], []], ["a", "a"], size=0)
