"""bf16 weights with bits beside them are master weights of 24 or 32 bits: updates are those of fp32 up to these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from twinflow.errors import TwinflowError
from twinflow.recipes.sections import Optimizer
from twinflow.training.optim import Optimizers, state_bytes
from twinflow.training.optim_rounding import ExtraBits

from .test_optim_in_backward import trained_weights
from .tiny import tiny_recipe

NAMES = ("adamw", "adafactor", "adamw8bit", "adamw4bit")
SHAPES = {"matrix": (70, 61), "vector": (50,)}


def values() -> Tensor:
    """fp32 patterns of every size and both signs, ties of bf16 among them."""
    some = torch.randn(4096, generator=Generator().manual_seed(0)) * torch.logspace(-37, 37, 4096)
    ties = (some.view(torch.int32) & -(1 << 16) | (1 << 15)).view(torch.float32)
    return torch.cat([some, ties, torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0 - 2**-23, -(2.0 - 2**-23)])])


def test_sixteen_more_bits_hold_fp32() -> None:
    value = values()
    weight, extra = ExtraBits.split(value, torch.int16, generator=Generator())
    assert torch.equal(ExtraBits.master(weight, extra).view(torch.int32), value.view(torch.int32))
    nearest = value.to(torch.bfloat16).float()  # which breaks ties otherwise
    assert torch.equal((weight.float() - value).abs(), (nearest - value).abs())


def test_eight_more_bits_hold_a_neighbour_of_24() -> None:
    value = values()
    weight, extra = ExtraBits.split(value, torch.int8, generator=Generator().manual_seed(1))
    master = ExtraBits.master(weight, extra)
    assert not (master.view(torch.int32) & 255).any()
    assert ((master.view(torch.int32) - value.view(torch.int32)).abs() < 256).all()
    # By chance, and right in the mean: within five deviations of that of a draw between neighbours.
    third = torch.full((1 << 18,), 1.0).view(torch.int32).add(85).view(torch.float32)
    drawn = ExtraBits.master(*ExtraBits.split(third, torch.int8, generator=Generator().manual_seed(2)))
    up = (drawn != 1.0).double().mean()
    p = 85 / 256
    assert abs(float(up) - p) < 5 * (p * (1 - p) / (1 << 18)) ** 0.5


def stepped(settings: Optimizer, dtype: torch.dtype, steps: int = 6) -> tuple[dict[str, Tensor], Optimizers]:
    """Weights after some steps on the same bf16 gradients, from the same bf16 numbers: masters where there are."""
    generator = Generator().manual_seed(4)
    start = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in SHAPES.items()}
    parameters = {name: nn.Parameter(value.to(dtype)) for name, value in start.items()}
    optimizers = Optimizers(parameters, settings, seed=7)
    for step in range(steps):
        for parameter in parameters.values():
            gradient = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.grad = gradient.bfloat16().to(dtype)
        optimizers.begin(lr=1e-3 / (step + 1))
        optimizers.step()
    found = {name: p.detach() for name, p in parameters.items()}
    tensors, _ = optimizers.state_dict()
    for name in found:
        if f"extra|{name}" in tensors:
            found[name] = ExtraBits.master(found[name], tensors[f"extra|{name}"])
    return found, optimizers


@pytest.mark.parametrize("name", NAMES)
def test_an_update_with_sixteen_more_bits_is_that_of_fp32_bit_for_bit(name: Any) -> None:
    settings = Optimizer(name=name, weight_decay=0.1, extra_bits=16)
    small, _ = stepped(settings, torch.bfloat16)
    large, _ = stepped(settings, torch.float32)  # which has all bits: nothing is kept beside it
    for key in SHAPES:
        assert small[key].dtype == large[key].dtype == torch.float32
        assert torch.equal(small[key], large[key]), key


def test_fp32_here_is_torchs_adamw() -> None:
    """Up to the order of its operations: a few roundoffs of the weight, and of the step."""
    small, _ = stepped(Optimizer(extra_bits=16, weight_decay=0.1), torch.bfloat16)
    stock, _ = stepped(Optimizer(weight_decay=0.1), torch.float32)
    for key in SHAPES:
        torch.testing.assert_close(small[key], stock[key], rtol=6 * 2**-24, atol=6 * 1e-3 * 2**-20)


@pytest.mark.parametrize("name", NAMES[:2])
def test_an_update_with_eight_more_bits_is_that_of_fp32_within_them(name: Any) -> None:
    """A step rounds to a neighbour of 24 bits, 15 of them below the leading one: by 2**-15 of the weight at most,
    which on its way was at most 5e-3 larger than at its end."""
    steps = 6
    small, _ = stepped(Optimizer(name=name, extra_bits=8), torch.bfloat16, steps)
    large, _ = stepped(Optimizer(name=name, extra_bits=8), torch.float32, steps)
    without, _ = stepped(Optimizer(name=name if name != "adamw" else "adamw8bit"), torch.bfloat16, steps)
    for key in SHAPES:
        bound = steps * 2**-15 * (large[key].abs() + 5e-3)
        assert ((small[key] - large[key]).abs() <= bound).all(), key
        assert ((without[key].float() - large[key]).abs() > bound).any(), "bf16 alone is off by more"


@pytest.mark.parametrize("extra_bits", [8, 16])
@pytest.mark.parametrize("name", NAMES)
def test_states_are_as_large_as_planned(name: Any, extra_bits: Any) -> None:
    settings = Optimizer(name=name, extra_bits=extra_bits)
    _, optimizers = stepped(settings, torch.bfloat16, steps=1)
    tensors, _ = optimizers.state_dict()
    for key, shape in SHAPES.items():
        real = sum(t.nbytes for k, t in tensors.items() if k.endswith(f"|{key}"))
        assert real == state_bytes(settings, shape, torch.bfloat16, in_block=False)


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_resumed_run_is_the_same_run(tmp_path: Path, in_backward: bool) -> None:
    changes = {"name": "adamw", "extra_bits": 8, "in_backward": in_backward, "bf16": True}
    whole = trained_weights(tmp_path / "a", 7, **changes)
    trained_weights(tmp_path / "b", 4, **changes)
    resumed = trained_weights(tmp_path / "b", 7, **changes)
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_another_number_of_bits_does_not_resume() -> None:
    _, eight = stepped(Optimizer(extra_bits=8), torch.bfloat16, steps=1)
    _, none = stepped(Optimizer(name="adamw8bit"), torch.bfloat16, steps=1)
    _, sixteen = stepped(Optimizer(extra_bits=16), torch.bfloat16, steps=1)
    with pytest.raises(ValueError, match=r"extra of .*int16.* there, and .*int8"):
        eight.load_state_dict(*sixteen.state_dict())
    with pytest.raises(ValueError, match="has no|there, and"):
        eight.load_state_dict(*none.state_dict())


def test_recipes_that_have_no_place_for_them(tmp_path: Path) -> None:
    with pytest.raises(TwinflowError, match=r"optimizer.extra_bits = 8 .* set model.dtype to bf16"):
        tiny_recipe(tmp_path, optimizer={"extra_bits": 8})
    with pytest.raises(TwinflowError, match="extra_bits = 8 is for adamw"):
        tiny_recipe(tmp_path, optimizer={"name": "muon", "extra_bits": 8})
    with pytest.raises(TwinflowError, match="extra_bits"):
        tiny_recipe(tmp_path, optimizer={"extra_bits": 4})
