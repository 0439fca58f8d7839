"""Offloaded activations change no gradient, and a run says what was foretold beside what was measured."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from rich.console import Console
from torch import nn
from torch.utils.checkpoint import checkpoint

from twinflow.training import Trainer
from twinflow.training.offload import SMALLEST, offloaded
from twinflow.training.watch import Prediction

from .tiny import Colors, TinyPipeline, tiny_recipe


def test_offloading_changes_no_gradient_and_leaves_weights_where_they_are() -> None:
    torch.manual_seed(0)
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(256, 256), nn.GELU()) for _ in range(3))
    x = torch.randn(SMALLEST // 256, 256)

    def gradients(offload: bool) -> list[torch.Tensor]:
        blocks.zero_grad()
        moved: list[int] = []
        context = offloaded([blocks])
        pack = context.pack_hook
        context.pack_hook = lambda tensor: (moved.append(isinstance(pack(tensor), tuple)), pack(tensor))[1]
        h = x.clone().requires_grad_()
        with context if offload else torch.enable_grad():
            for block in blocks:
                h = checkpoint(block, h, use_reentrant=False)
        h.square().mean().backward()
        if offload:
            assert sum(moved) >= len(blocks)  # the input of every block
            assert len(moved) <= 2 * len(blocks)  # and no weight
        return [p.grad.clone() for p in blocks.parameters() if p.grad is not None]

    assert all(map(torch.equal, gradients(True), gradients(False)))


def test_what_comes_back_lies_as_it_did() -> None:
    """torch multiplies tensors of other strides in another way, and then keeps others when it computes them again:
    checkpointing refused that for a LoRA on SANA, whose blocks get a picture's transpose."""
    context = offloaded([])
    turned = torch.randn(16, SMALLEST // 16).T
    back = context.unpack_hook(context.pack_hook(turned))
    assert torch.equal(back, turned)
    assert back.stride() == turned.stride()


def test_frozen_weights_stay_where_they_are_too() -> None:
    """A layer passes gradients on through its weights, frozen ones too: a base under a LoRA is most of the memory."""
    layers = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256))
    layers[1].requires_grad_(False)
    weights = {p.untyped_storage().data_ptr() for p in layers.parameters()}
    context = offloaded([layers])
    pack, moved = context.pack_hook, 0

    def counted(tensor: torch.Tensor) -> object:
        nonlocal moved
        packed = pack(tensor)
        moved += isinstance(packed, tuple) and tensor.untyped_storage().data_ptr() in weights
        return packed

    context.pack_hook = counted
    with context:
        loss = layers(torch.randn(SMALLEST // 256, 256)).square().mean()
    loss.backward()
    assert moved == 0


def test_the_plan_is_shown_and_the_measurement_beside_it(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, train={"steps": 12, "offload": True})
    text = io.StringIO()
    prediction = Prediction(line="plan: 1 GiB", bytes=2**30)
    Trainer(recipe, TinyPipeline(), Colors(), console=Console(file=text), prediction=prediction).run()
    lines = text.getvalue().splitlines()
    shown = lines.index("plan: 1 GiB")
    measured = next(i for i, line in enumerate(lines) if line.startswith("measured: "))
    tenth = next(i for i, line in enumerate(lines) if line.startswith("step 10/12"))
    assert shown < measured <= tenth
    assert "planned 1.00 GiB" in lines[measured]
