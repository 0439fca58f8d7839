"""Laws of the linear flow in signed time."""

from __future__ import annotations

import pytest
import torch

from twinflow.flow import data_estimate, expand_time, interpolate, noise_estimate, velocity

T = torch.tensor([1.0, 0.0, 0.25, -0.25, -1.0])


def ends(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Data and noise (5, 2, 3)."""
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 5, 2, 3, generator=generator, dtype=torch.float64)
    return x.to(dtype), z.to(dtype)


def test_a_state_and_its_velocity_point_back_to_both_ends() -> None:
    x, z = ends()
    x_t, v = interpolate(x, z, T), velocity(x, z)
    torch.testing.assert_close(data_estimate(x_t, v, T), x, rtol=0, atol=1e-14)
    torch.testing.assert_close(noise_estimate(x_t, v, T), z, rtol=0, atol=1e-14)


def test_the_path_begins_in_noise_ends_in_data_and_knows_no_sign() -> None:
    x, z = ends()
    x_t = interpolate(x, z, T)
    assert torch.equal(x_t[[0, 4]], z[[0, 4]])
    assert torch.equal(x_t[1], x[1])
    torch.testing.assert_close(x_t[2], 0.25 * z[2] + 0.75 * x[2], rtol=0, atol=1e-15)
    assert torch.equal(interpolate(x, z, -T), x_t)
    v = velocity(x, z)
    assert torch.equal(data_estimate(x_t, v, -T), data_estimate(x_t, v, T))
    assert torch.equal(noise_estimate(x_t, v, -T), noise_estimate(x_t, v, T))


def test_times_are_not_rounded_to_the_dtype_of_the_state() -> None:
    x, z = ends(torch.bfloat16)
    t = torch.full((5,), 0.999)  # 1 in bf16
    wide = interpolate(x.double(), z.double(), t.double())
    x_t = interpolate(x, z, t)
    assert x_t.dtype == torch.bfloat16
    torch.testing.assert_close(x_t.double(), wide, rtol=2**-8, atol=1e-6)
    v = torch.full_like(x, 1000)  # times 1 - t it is 1, and 0 for a time that was rounded
    assert noise_estimate(torch.zeros_like(x), v, t).sub(1).abs().max() < 0.01
    assert data_estimate(x, v, t).dtype == noise_estimate(x, v, t).dtype == torch.bfloat16
    assert interpolate(x, z.float(), t).dtype == interpolate(x.float(), z, t).dtype == torch.float32
    assert expand_time(t.bfloat16(), x).dtype == torch.float32
    assert expand_time(t.double(), x).dtype == torch.float64


@pytest.mark.parametrize("shape", [(1,), (4,), (5, 1), ()])
def test_a_row_has_one_time(shape: tuple[int, ...]) -> None:
    """A time that broadcasts over the rows would give numbers, and wrong ones."""
    x, z = ends()
    with pytest.raises(ValueError, match=r"one time per row: expected shape \(5,\)"):
        interpolate(x, z, torch.zeros(shape))
    assert expand_time(T, x).shape == (5, 1, 1)
