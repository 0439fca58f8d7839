"""Updates that are compiled, as on a GPU, are those that are not, up to roundoff; and go on where that fails."""

from __future__ import annotations

import logging
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twinflow.recipes.sections import Optimizer
from twinflow.training import optim_rounding
from twinflow.training.fused import Fused, each
from twinflow.training.optim import Optimizers


def updated(name: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Weights and states after three steps at three learning rates: a whole chunk each, and a rest that is small."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(320, 256).bfloat16())
    optimizers = Optimizers({"w": weight}, Optimizer(name=name, weight_decay=0.1), seed=3)
    for step in range(3):
        optimizers.begin(lr=0.01 / (step + 1))
        weight.grad = torch.randn(weight.shape).bfloat16() * 10.0**step
        optimizers.step()
    return weight.detach().float(), optimizers.state_dict()[0]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles for the CPU")
@pytest.mark.parametrize("name", ["adamw4bit", "adafactor"])
def test_compiled_updates_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other learning rates compile nothing anew. Arithmetic in another order moves few elements over a border: those
    of bf16 weights, 2**-8 of them apart, and of codes, one apart."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(optim_rounding, "CHUNK", 1 << 16)
    plain, states = updated(name)
    monkeypatch.setattr(Fused, "everywhere", True)
    torch._dynamo.reset()
    counters.clear()
    weight, others = updated(name)
    assert counters["stats"]["unique_graphs"] == {"adamw4bit": 2, "adafactor": 6}[name]  # a size, and any
    assert (weight != plain).float().mean() < 1e-3
    torch.testing.assert_close(weight, plain, rtol=2**-7, atol=1e-6)
    assert others.keys() == states.keys()
    for key, value in states.items():
        if value.dtype == torch.uint8:
            assert (others[key] != value).float().mean() < 1e-3, key
        else:
            torch.testing.assert_close(others[key], value, rtol=1e-4, atol=1e-6, msg=key)


def test_what_can_not_be_compiled_is_done_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(work: Any, **options: Any) -> Any:
        def call(*arguments: Any) -> None:
            raise RuntimeError("no compiler\nand more")

        return call

    def double(numbers: Any, x: Tensor) -> Tensor:
        (factor,) = each(numbers)
        return x * factor

    monkeypatch.setattr(Fused, "everywhere", True)
    monkeypatch.setattr(torch, "compile", broken)
    fused, x = Fused(double), torch.ones(3)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(fused((2.0,), x), 2 * x)
        assert torch.equal(fused((3.0,), x), 3 * x)
    assert [record.message for record in caplog.records] == [
        "updates are not compiled, and slow: RuntimeError: no compiler"
    ]
