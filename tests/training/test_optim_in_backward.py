"""Updates during the backward pass are those of the ordinary optimiser, and what they can't do is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twinflow.errors import TwinflowError
from twinflow.recipes.sections import Optimizer
from twinflow.training import Trainer
from twinflow.training.checkpoint import CheckpointFolder, read_checkpoint
from twinflow.training.ema import trained_parameters
from twinflow.training.optim import Optimizers
from twinflow.training.optim_in_backward import InBackward, blockwise

from .tiny import Colors, TinyPipeline, tiny_recipe

NAMES = ("adamw", "radam", "muon", "adafactor", "adamw8bit", "adamw4bit")


class Blocks(nn.Module):
    """Three blocks with a frozen and a dead parameter, a shared one, and an entry."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Linear(6, 72)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(72, 72), nn.LayerNorm(72)) for _ in range(3))
        self.blocks[0][1].bias.requires_grad_(False)
        self.blocks[1].dead = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.entry(x)
        for block in self.blocks:
            h = h + torch.tanh(block[1](block[0](h)))
        return h @ self.entry.weight  # which so gets two parts of its gradient


def train(settings: Optimizer, *, dtype: torch.dtype, steps: int = 4) -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(3)
    network = Blocks().to(dtype)
    optimizers = Optimizers(trained_parameters(network), settings, seed=5)
    norms = []
    for step in range(steps):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step)).to(dtype)
        optimizers.begin(lr=0.01 / (step + 1))
        network(x).float().square().mean().backward()
        if optimizers.in_backward is not None:
            # In the first pass the block with a dead parameter is updated at the end only.
            blocks = network.blocks if step else [network.blocks[0], network.blocks[2]]
            assert all(p.grad is None for block in blocks for p in block[0].parameters())
            norms.append(optimizers.in_backward.finish())
        else:
            grads = [p.grad for p in network.parameters() if p.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(grads))
            optimizers.step()
            optimizers.zero_grad()
        assert all(p.grad is None for p in network.parameters())
    return network, norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_updates_in_backward_are_the_ordinary_ones_bit_for_bit(name: Any, dtype: torch.dtype) -> None:
    settings = Optimizer(name=name, lr=0.01, weight_decay=0.1, clip=None)
    ordinary, norms = train(settings, dtype=dtype)
    blockwise_, own_norms = train(settings.model_copy(update={"in_backward": True}), dtype=dtype)
    moved = 0
    for (key, one), other in zip(ordinary.named_parameters(), blockwise_.parameters(), strict=True):
        assert torch.equal(one, other), key
        moved += not torch.equal(one, dict(Blocks().to(dtype).named_parameters())[key])
    assert moved > 10
    # Norms are summed in another order, and for bf16 in another precision.
    tolerance = 1e-6 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(
        torch.stack(own_norms), torch.stack(norms).float(), rtol=tolerance, atol=0, check_dtype=False
    )


def test_units_are_blocks() -> None:
    units = blockwise(trained_parameters(Blocks()))
    assert [len(unit) for unit in units] == [1, 1, 3, 6, 4]


def test_the_gradients_of_a_block_are_all_that_lives() -> None:
    network = Blocks()
    optimizers = Optimizers(trained_parameters(network), Optimizer(clip=None, in_backward=True))
    assert optimizers.in_backward is not None
    alive: list[int] = []

    def watch(_: Any) -> None:
        alive.append(sum(p.grad.numel() for p in network.parameters() if p.grad is not None))

    for parameter in trained_parameters(network).values():
        parameter.register_post_accumulate_grad_hook(watch)
    for step in range(2):
        alive.clear()
        network(torch.randn(2, 6)).square().mean().backward()
        if step == 1:  # in the first pass the dead parameters are waited for
            block = sum(p.numel() for p in network.blocks[2].parameters())
            assert max(alive) <= block + network.entry.weight.numel()
        optimizers.in_backward.finish()


def trained_weights(output: Path, steps: int, **optimizer: Any) -> dict[str, Tensor]:
    settings = {"lr": 1e-2, "clip": None, **optimizer}
    pipe = TinyPipeline(width=80)  # so that the low-bit moments of its matrices are really in few bits
    dtype = "bf16" if settings.pop("bf16", False) else "fp32"
    pipe.network.to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    recipe = tiny_recipe(
        output,
        model={"dtype": dtype},
        optimizer=settings,
        train={"steps": steps},
        checkpoint={"every": 3},
    )
    pipe.network.forward = _in_own_dtype(pipe.network)  # type: ignore[method-assign]
    Trainer(recipe, pipe, Colors()).run()
    return {name: p.detach().clone() for name, p in pipe.network.named_parameters()}


def _in_own_dtype(network: Any) -> Any:
    dtype, stock = network.last.weight.dtype, type(network).forward

    def forward(x: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        return stock(network, x.to(dtype), t.to(dtype), r.to(dtype), cond).to(x.dtype)

    return forward


@pytest.mark.parametrize("name", ["adamw", "adafactor", "adamw8bit"])
def test_a_run_in_backward_is_the_ordinary_run(tmp_path: Path, name: str) -> None:
    ordinary = trained_weights(tmp_path / "a", 6, name=name)
    in_backward = trained_weights(tmp_path / "b", 6, name=name, in_backward=True)
    assert all(torch.equal(value, in_backward[key]) for key, value in ordinary.items())


@pytest.mark.parametrize(
    ("name", "in_backward"), [("adafactor", True), ("adamw8bit", False), ("adamw4bit", True)]
)
def test_bf16_weights_rounded_by_chance_resume_exactly(tmp_path: Path, name: str, in_backward: bool) -> None:
    changes = {"name": name, "in_backward": in_backward, "bf16": True}
    whole = trained_weights(tmp_path / "a", 7, **changes)
    trained_weights(tmp_path / "b", 4, **changes)
    resumed = trained_weights(tmp_path / "b", 7, **changes)
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    states = []
    for folder in ("a", "b"):
        latest = CheckpointFolder(tmp_path / folder / "checkpoints", keep=1).latest()
        assert latest is not None
        states.append(read_checkpoint(latest).tensors["optimizer"])
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    if name != "adafactor":
        assert any(value.dtype == torch.uint8 for value in states[0].values())


def test_a_checkpoint_of_another_optimiser_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Blocks()
    eight = Optimizers(trained_parameters(network), Optimizer(name="adamw8bit"))
    four = Optimizers(trained_parameters(copy.deepcopy(network)), Optimizer(name="adamw4bit"))
    network(torch.randn(2, 6)).sum().backward()
    eight.begin(lr=1e-3)
    eight.step()
    with pytest.raises(ValueError, match=r"moment of .* there, and .* here"):
        four.load_state_dict(*eight.state_dict())


def test_what_needs_all_gradients_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TwinflowError, match=r"optimizer.clip = 1.0 .* set optimizer.clip to null"):
        tiny_recipe(tmp_path, optimizer={"in_backward": True})
    with pytest.raises(TwinflowError, match=r"train.accumulate = 2 .* raise train.batch"):
        tiny_recipe(tmp_path, optimizer={"in_backward": True, "clip": None}, train={"accumulate": 2})


class SliceOfGpu:
    """What FSDP2's parameter is to the hook, of a process whose slices are kept on the host (``cpu_offload``)."""

    def __init__(self, size: int) -> None:
        self.grad: Tensor | None = None
        self.device_mesh = SimpleNamespace(device_type="cuda")
        self.hooks: list[Callable[[Any], None]] = []
        self.size = size

    def register_post_accumulate_grad_hook(self, hook: Callable[[Any], None]) -> None:
        self.hooks.append(hook)

    def arrive(self) -> None:
        """As FSDP2 does: the copy is asked for, and the hook is called; the numbers come with the stream."""
        self.grad = torch.full((self.size,), torch.nan)
        for hook in self.hooks:
            hook(self)


def test_a_gradient_on_its_way_to_the_host_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP2 itself waits after the backward pass only: a hook that does not would update by what was in memory."""
    parameter = nn.Parameter(torch.zeros(3))
    source = SliceOfGpu(3)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    updates = InBackward([[optimizer]], sources={parameter: source})  # type: ignore[dict-item]

    class Stream:
        def synchronize(self) -> None:
            assert parameter.grad is not None
            parameter.grad.fill_(1.0)

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    source.arrive()
    assert parameter.tolist() == [-1.0, -1.0, -1.0]
    assert updates.finish() == pytest.approx(3**0.5)
