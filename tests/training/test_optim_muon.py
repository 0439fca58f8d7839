"""Matrices orthogonalised together are those that torch's Muon orthogonalises one by one."""

import pytest
import torch
from torch import nn

from twinflow.training import optim_muon
from twinflow.training.optim_muon import Muon, orthogonal

SHAPES = [(8, 8)] * 3 + [(24, 8)] * 2 + [(8, 24), (5, 7)]


def weights(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


# Without Nesterov's momentum torch 2.13 scales a bf16 buffer itself, which is then no average: not compared.
@pytest.mark.parametrize(
    ("dtype", "nesterov"), [(torch.float32, True), (torch.float32, False), (torch.bfloat16, True)]
)
@pytest.mark.parametrize("together", [1, 150, 1 << 22])
def test_the_steps_are_those_of_torch(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, nesterov: bool, together: int
) -> None:
    """Products are summed in another order at most: they differ by bf16's rounding, 2^-9, of steps of lr's size."""
    monkeypatch.setattr(optim_muon, "TOGETHER", together)
    settings = {"lr": 1e-2, "weight_decay": 0.1, "nesterov": nesterov, "adjust_lr_fn": "match_rms_adamw"}
    ours, theirs = weights(dtype), weights(dtype)
    mine, stock = Muon(ours, **settings), torch.optim.Muon(theirs, **settings)
    generator = torch.Generator().manual_seed(1)
    for step in range(4):
        for i, (own, other) in enumerate(zip(ours, theirs, strict=True)):
            own.grad = other.grad = None
            if i != step:  # one has no gradient in this step
                own.grad = torch.randn(own.shape, generator=generator).to(dtype)
                other.grad = own.grad.clone()
        mine.step()
        stock.step()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=2**-8, atol=4 * 1e-2 * 2**-8)
        assert torch.equal(mine.state[own]["momentum_buffer"], stock.state[other]["momentum_buffer"])


def test_the_singular_values_come_near_one() -> None:
    matrices = torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(2))
    for some in (matrices, matrices.mT):
        values = torch.linalg.svdvals(orthogonal(some, (3.4445, -4.7750, 2.0315), steps=5, eps=1e-7).float())
        assert values.min() > 0.5  # the iteration's own band, of its docstring in torch: 0.5 to 1.5
        assert values.max() < 1.5
