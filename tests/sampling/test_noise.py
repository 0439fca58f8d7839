"""Same seed, same picture: whatever the batch, the dtype and the state of other generators."""

import pytest
import torch

from twinflow.sampling import row_generators, sample, sample_trajectory, sampling_steps, seeded_noise
from twinflow.sampling.noise import generators_from

from .fields import smooth

SEEDS = [11, 12, 13, 14, 15]


@pytest.mark.parametrize("shape", [(3,), (2, 4, 4)])
def test_a_row_depends_on_its_seed_alone(shape):
    together = seeded_noise(shape, SEEDS)
    for row, seed in zip(together, SEEDS, strict=True):
        torch.manual_seed(seed * 7)
        assert torch.equal(row, seeded_noise(shape, [seed])[0])
    assert together.shape == (5, *shape)
    assert len({row.sum().item() for row in together}) == 5
    assert seeded_noise(shape, []).shape == (0, *shape)


def test_skip_gives_what_one_generator_would_give_in_turn():
    generator = torch.Generator().manual_seed(42)
    in_turn = torch.stack([torch.randn(3, 5, generator=generator) for _ in range(4)])
    assert torch.equal(seeded_noise((3, 5), [42] * 4, skip=range(4)), in_turn)
    assert torch.equal(seeded_noise((3, 5), [42, 7], skip=[2, 0])[0], in_turn[2])


def test_dtype_only_rounds():
    assert torch.equal(seeded_noise((9,), SEEDS).bfloat16(), seeded_noise((9,), SEEDS, dtype=torch.bfloat16))


def test_noise_is_standard_normal():
    noise = seeded_noise((200,), range(200))
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    # Rows of neighbouring seeds are not related.
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max().item() < 0.4


@pytest.mark.parametrize("with_generators", [True, False])
@pytest.mark.parametrize("splits", [[5], [1, 1, 1, 1, 1], [2, 3], [4, 1]])
@pytest.mark.parametrize(("style", "stochastic"), [("few", 1.0), ("any", 0.3), ("multi", "sde")])
def test_same_seed_same_picture_for_any_split(style, stochastic, splits, with_generators):
    def draw(seeds):
        generator = row_generators(seeds) if with_generators else None
        noise = seeded_noise((3, 4), seeds)
        options = {"nfe": 4, "style": style, "stochastic": stochastic, "generator": generator}
        return sample(smooth, noise, None, **options)

    expected = torch.cat([draw([seed]) for seed in SEEDS])
    ends = torch.tensor(splits).cumsum(0).tolist()
    actual = torch.cat([draw(SEEDS[end - size : end]) for size, end in zip(splits, ends, strict=True)])
    assert torch.equal(actual, expected)


def test_re_noising_is_independent_of_the_noise_of_the_same_seed():
    first = seeded_noise((1000,), SEEDS)
    second = torch.stack([torch.randn(1000, generator=own) for own in row_generators(SEEDS)])
    correlation = (first * second).mean(1)
    assert correlation.abs().max().item() < 0.15
    assert torch.corrcoef(second).fill_diagonal_(0).abs().max().item() < 0.15

    def zero(x, t, r, c):  # x_hat = x_t: at the second step the state is .4 noise + .6 eps
        return torch.zeros_like(x)

    eps = (sample(zero, first, None, nfe=2) - 0.4 * first) / 0.6
    assert (first * eps).mean(1).abs().max().item() < 0.15
    assert torch.corrcoef(eps).fill_diagonal_(0).abs().max().item() < 0.15
    assert eps.std().item() == pytest.approx(1, abs=0.05)


def test_pictures_of_earlier_versions_are_drawn_again():
    (own,) = row_generators([7])
    assert own.initial_seed() == 3092812917077846747
    (own,) = generators_from(torch.arange(4.0).reshape(1, 2, 2))
    assert own.initial_seed() == 2747922369425462947


def test_dtype_of_the_noise_draws_the_same_fresh_noise():
    noise = seeded_noise((16,), SEEDS, dtype=torch.bfloat16)
    low = sample(smooth, noise, None, nfe=4)
    high = sample(smooth, noise.float(), None, nfe=4)
    torch.testing.assert_close(low.float(), high, atol=0.05, rtol=0.02)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    sample(smooth, seeded_noise((4,), SEEDS), None, nfe=4)
    assert torch.equal(torch.rand(3), expected)


def test_initial_noise_may_be_learnt():
    noise = seeded_noise((4,), SEEDS)
    run = sample_trajectory(smooth, noise, None, nfe=4)
    steps = list(sampling_steps(smooth, noise.clone().requires_grad_(), None, nfe=4))
    assert torch.equal(steps[-1].x_hat, run.sample)
    assert torch.autograd.grad(steps[0].x_hat.sum(), steps[0].x_t)[0].abs().min() > 0
