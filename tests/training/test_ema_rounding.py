"""Averages of bf16 weights move as those of fp32 ones do, though nearly every step is smaller than a bf16 number."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from twinflow.training.ema import ParameterAverage
from twinflow.training.optim_rounding import CHUNK, Rounding, _visit, lerp_

DECAY, STEPS, COUNT = 0.999, 300, 4096


def network(start: float, dtype: torch.dtype) -> nn.Linear:
    made = nn.Linear(COUNT, 1, bias=False, dtype=dtype)
    nn.init.constant_(made.weight, start)
    return made


def settled(dtype: torch.dtype) -> tuple[nn.Linear, ParameterAverage]:
    """An average of weights 1 whose decay has warmed up, and weights that jump to 1.5 then."""
    made = network(1.0, dtype)
    average = ParameterAverage(made, decay=DECAY)
    average.current_decay = DECAY
    nn.init.constant_(made.weight, 1.5)
    return made, average


def value(average: ParameterAverage) -> torch.Tensor:
    return next(average.network.parameters()).detach().double()


def test_the_mean_is_that_of_an_exact_average() -> None:
    _, exact = settled(torch.float32)
    _, rounded = settled(torch.bfloat16)
    for _ in range(STEPS):
        exact.update()
        rounded.update()
    # Each rounding errs by at most 2^-7 with mean 0, and is forgotten with the decay: a sum of variances.
    spread = 2**-7 * (1 / (1 - DECAY**2)) ** 0.5 / COUNT**0.5
    assert abs(value(rounded).mean() - value(exact).mean()) < 4 * spread
    assert value(exact).mean() > 1.1
    nearest = torch.ones((), dtype=torch.bfloat16)
    for _ in range(STEPS):
        nearest.lerp_(torch.tensor(1.5, dtype=torch.bfloat16), 1 - DECAY)
    assert nearest == 1  # what rounding to the nearest makes of the same steps


def test_the_first_update_copies_the_weights() -> None:
    made = network(1.0, torch.bfloat16)
    average = ParameterAverage(made, decay=DECAY)
    nn.init.normal_(made.weight, generator=torch.Generator().manual_seed(0))
    average.update()
    assert torch.equal(value(average), made.weight.detach().double())


def test_a_resumed_average_is_the_same_to_the_bit() -> None:
    _, whole = settled(torch.bfloat16)
    for _ in range(10):
        whole.update()
    _, first = settled(torch.bfloat16)
    for _ in range(4):
        first.update()
    tensors, state = first.state_dict()
    _, second = settled(torch.bfloat16)
    second.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, state)
    for _ in range(6):
        second.update()
    assert torch.equal(value(second), value(whole))


def test_fp32_averages_are_what_they_were() -> None:
    made = network(1.0, torch.float32)
    average = ParameterAverage(made, decay=0.9)
    expected, decay = made.weight.detach().clone(), 0.0
    for step in range(5):
        nn.init.normal_(made.weight, generator=torch.Generator().manual_seed(step))
        average.update()
        expected.lerp_(made.weight.detach(), 1 - decay)
        decay += (1 - decay) * (0.9 - decay) / 2
    assert torch.equal(value(average).float(), expected)


def test_a_decay_that_forgets_nothing_is_refused() -> None:
    for decay in (1.0, -0.1):
        with pytest.raises(ValueError, match=rf"decay must be in \[0, 1\), got {decay}"):
            ParameterAverage(network(1.0, torch.float32), decay=decay)
    ParameterAverage(network(1.0, torch.float32), decay=0.0)  # the weights themselves


# On the host


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_average_that_visits_its_weight_is_the_same(dtype: torch.dtype) -> None:
    """Chunk by chunk, bit for bit: as of an average on another device."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(CHUNK + 7, generator=generator).to(dtype)
    stays = torch.randn(CHUNK + 7, generator=generator).to(dtype)
    visits, rounding = stays.clone(), Rounding(seed=0)
    lerp_({"w": stays}, {"w": weight}, 0.01, step=3)
    _visit(visits, weight, 0.01, rounding, rounding.generator("w", 3, weight.device))
    assert torch.equal(stays, visits)


@pytest.mark.parametrize("strange", ["average", "weight", "both"])
def test_an_average_does_not_depend_on_how_weights_lie_in_memory(strange: str) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {key: torch.randn(6, 5, generator=generator).bfloat16() for key in ("average", "weight")}
    plain = tensors["average"].clone()
    lerp_({"w": plain}, {"w": tensors["weight"]}, 0.01, step=3)
    lying = {
        key: value.T.contiguous().T if strange in (key, "both") else value for key, value in tensors.items()
    }
    lerp_({"w": lying["average"]}, {"w": lying["weight"]}, 0.01, step=3)
    assert torch.equal(lying["average"], plain)


def test_an_average_on_the_host_is_the_same() -> None:
    """Its network computes with the average, and leaves the weights as they are."""
    made = nn.Linear(8, 4)
    ordinary, host = (ParameterAverage(made, decay=0.9, on_host=there) for there in (False, True))
    assert not list(host.network.parameters())
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    for step in range(4):
        nn.init.normal_(made.weight, generator=torch.Generator().manual_seed(step))
        ordinary.update()
        host.update()
        before = made.weight.detach().clone()
        with torch.no_grad():
            assert torch.equal(host.network(x), ordinary.network(x))
        assert torch.equal(made.weight, before)
    assert not any(weight.requires_grad for weight in host.state_dict()[0].values())
    assert host.state_dict()[1] == ordinary.state_dict()[1]
    for name, value in ordinary.state_dict()[0].items():
        assert torch.equal(host.state_dict()[0][name], value)


def test_an_average_that_moves_every_third_step() -> None:
    """As one of the decay's third power that sees every third step alone; the count is resumed."""
    made = network(0.0, torch.float32)
    rare, each = ParameterAverage(made, decay=0.9, every=3), ParameterAverage(made, decay=0.9**3)
    for step in range(1, 11):
        nn.init.normal_(made.weight, generator=torch.Generator().manual_seed(step))
        rare.update()
        if step % 3 == 0:
            each.update()
        if step == 7:
            tensors, state = rare.state_dict()
            rare = ParameterAverage(made, decay=0.9, every=3)
            rare.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, state)
    assert each.updates == 3
    assert torch.equal(value(rare), value(each))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pinned_averages_of_weights_on_a_gpu(dtype: torch.dtype) -> None:
    made = network(1.0, dtype).cuda()
    there, host = (ParameterAverage(made, decay=DECAY, on_host=away) for away in (False, True))
    for step in range(5):
        nn.init.normal_(made.weight, generator=torch.Generator("cuda").manual_seed(step))
        there.update()
        host.update()
    (kept,) = host.state_dict()[0].values()
    assert kept.is_pinned()
    assert torch.equal(kept, there.state_dict()[0]["weight"].cpu())
