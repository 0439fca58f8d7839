"""Stochastic rounding is right in the mean; moments in few bits, and Adafactor, stay close to what they stand for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from twinflow.recipes.sections import Optimizer
from twinflow.training import optim_rounding
from twinflow.training.optim import Optimizers, state_bytes
from twinflow.training.optim_low_bit import FIRST, SECOND, Code
from twinflow.training.optim_rounding import Rounding, round_stochastically

CODES = [*FIRST.values(), *SECOND.values()]


@pytest.mark.parametrize("start", [1.0, -3.0, 1e-3, -(2.0**20), 1.2e-38])
@pytest.mark.parametrize("fraction", [0.0, 1 / 65536, 0.3, 0.5, 0.99])
def test_rounding_by_chance_has_the_right_mean(start: float, fraction: float) -> None:
    count = 1 << 18
    low = torch.tensor(start).to(torch.bfloat16).float()
    high = (low.view(torch.int32) + (1 << 16)).view(torch.float32)  # the next bf16 away from zero
    bits = low.view(torch.int32) + round(fraction * 65536)
    value = bits.view(torch.float32).expand(count).contiguous()
    rounded = round_stochastically(value, generator=Generator().manual_seed(0)).float()
    assert set(rounded.unique().tolist()) <= {low.item(), high.item()}
    share = float((rounded == high).double().mean())
    # A mean of count draws of probability p, within five of its standard deviations.
    p = round(fraction * 65536) / 65536
    assert abs(share - p) <= 5 * math.sqrt(p * (1 - p) / count)


def test_rounding_is_a_function_of_seed_parameter_and_step() -> None:
    def drawn(seed: int, name: str, step: int) -> Tensor:
        generator = Rounding(seed=seed).generator(name, step, torch.device("cpu"))
        return torch.randint(0, 1 << 16, (64,), generator=generator)

    assert torch.equal(drawn(1, "a", 2), drawn(1, "a", 2))
    different = [drawn(1, "a", 2), drawn(2, "a", 2), drawn(1, "b", 2), drawn(1, "a", 3)]
    assert len({tuple(numbers.tolist()) for numbers in different}) == 4


def displacement(name: Any, *, lr: float, steps: int) -> Tensor:
    weight = nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    optimizers = Optimizers({"w": weight}, Optimizer(name=name, lr=lr))
    for _ in range(steps):
        weight.grad = torch.full_like(weight, 0.3)
        optimizers.begin(lr=lr)
        optimizers.step()
    return 1 - weight.detach().double()


@pytest.mark.parametrize("name", ["adafactor", "adamw8bit", "adamw4bit"])
def test_steps_below_the_resolution_of_bf16_are_made_in_the_mean(name: str) -> None:
    lr, steps = 1e-4, 60  # a sixtieth of half the distance of two bf16 numbers below 1
    moved = displacement(name, lr=lr, steps=steps).flatten()
    # Each step is a draw of variance below lr times the distance 2^-8; a 4-bit moment is off by up to a tenth.
    deviation = math.sqrt(steps * lr * 2**-8 / len(moved))
    bias = {"adafactor": 0, "adamw8bit": 0.01, "adamw4bit": 0.1}[name] * steps * lr
    assert abs(float(moved.mean()) - steps * lr) <= 5 * deviation + bias
    assert not displacement("adamw", lr=lr, steps=steps).any()  # rounded to the nearest: nothing is learnt


@pytest.mark.parametrize("code", CODES, ids=str)
def test_a_moment_is_within_half_a_gap_of_its_table(code: Code) -> None:
    x = torch.randn(code.block * 64, generator=Generator().manual_seed(0)) * torch.logspace(
        -6, 2, 64
    ).repeat_interleave(code.block)
    x = x if code.signed else x.abs()
    table = code.table(x.device)[0]
    assert len(table) == 2**code.bits
    assert (table.diff() > 0).all()
    packed, scale = code.quantise(x)
    assert packed.numel() * packed.element_size() + 4 * scale.numel() == code.bytes_of(x.numel())
    back = code.restore(packed, scale)
    largest_gap = max(
        float(table.diff().max()),
        2 * float(1 - table.abs().max()),
        2 * float(table[0] + 1) if code.signed else 2 * float(table[0]),
    )
    error = (back - x).abs().view(-1, code.block).amax(1)
    assert (error <= scale * (largest_gap / 2 + 1e-6)).all()
    again = code.quantise(back)
    torch.testing.assert_close(code.restore(*again), back, rtol=2e-2 if code.bits == 8 else 0.2, atol=0)


def trajectory(name: Any, steps: int = 40) -> Tensor:
    """Weights along a noisy regression."""
    generator = Generator().manual_seed(1)
    weight = nn.Parameter(torch.randn(64, 80, generator=generator) * 0.1)
    target = torch.randn(64, 80, generator=generator) * 0.1
    optimizers = Optimizers({"w": weight}, Optimizer(name=name, lr=3e-3))
    start = weight.detach().clone()
    for _ in range(steps):
        x = torch.randn(32, 80, generator=generator)
        optimizers.begin(lr=3e-3)
        (x @ (weight - target).T).square().mean().backward()
        optimizers.step()
        optimizers.zero_grad()
    return weight.detach() - start


def test_low_bit_moments_drift_little() -> None:
    exact = trajectory("adamw")
    drift = {
        name: float((trajectory(name) - exact).norm() / exact.norm()) for name in ("adamw8bit", "adamw4bit")
    }
    assert drift["adamw8bit"] < 0.03
    assert 0.03 < drift["adamw4bit"] < 0.3


def plain_adafactor(weight: Tensor, gradients: list[Tensor], *, lr: float, beta2: float) -> Tensor:
    """The paper's algorithm 4 without a relative step size, on the whole matrix at once."""
    rows = columns = torch.zeros(())
    for t, g in enumerate(gradients, start=1):
        decay = min(beta2, 1 - t**-0.8)
        square = g.double() ** 2 + 1e-30
        rows = decay * rows + (1 - decay) * square.sum(1)
        columns = decay * columns + (1 - decay) * square.sum(0)
        update = g.double() / torch.sqrt(torch.outer(rows, columns) / rows.sum())
        update = update / max(1.0, float(update.square().mean().sqrt()))
        weight = weight - lr * update
    return weight


@pytest.mark.parametrize("chunk", [1 << 22, 100])
def test_adafactor_is_that_of_the_paper(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim_rounding, "CHUNK", chunk)
    generator = Generator().manual_seed(2)
    gradients = [torch.randn(24, 40, generator=generator) * 10.0 ** (k % 3) for k in range(6)]
    weight = nn.Parameter(torch.randn(24, 2, 20, generator=generator))
    expected = plain_adafactor(weight.detach().flatten(1).double(), gradients, lr=0.1, beta2=0.95)
    optimizers = Optimizers({"w": weight}, Optimizer(name="adafactor", lr=0.1))
    for g in gradients:
        weight.grad = g.view_as(weight).clone()
        optimizers.begin(lr=0.1)
        optimizers.step()
    torch.testing.assert_close(weight.detach().flatten(1).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["adamw8bit", "adamw4bit"])
def test_chunks_make_no_difference(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trajectory(name, steps=4)
    monkeypatch.setattr(optim_rounding, "CHUNK", 700)
    assert torch.equal(trajectory(name, steps=4), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw", "radam", "muon", "adafactor", "adamw8bit", "adamw4bit"])
def test_states_are_as_large_as_foretold(name: Any, dtype: torch.dtype) -> None:
    shapes = {"blocks.0.w": (96, 100), "blocks.0.conv": (8, 4, 3, 3), "bias": (50,), "head": (70, 61)}
    settings = Optimizer(name=name)
    for key, shape in shapes.items():
        parameter = nn.Parameter(torch.randn(shape, dtype=dtype))
        optimizers = Optimizers({key: parameter}, settings)
        parameter.grad = torch.randn_like(parameter)
        optimizers.step()
        tensors, _ = optimizers.state_dict()
        kept = [t for k, t in tensors.items() if not k.startswith("step")]
        real = sum(t.numel() * t.element_size() for t in kept)
        assert real == state_bytes(settings, shape, dtype, in_block=key.startswith("blocks"))
