"""Plans from fake tensors beside real steps on real ones, and beside themselves without short cuts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from PIL import Image
from torch import Tensor

from families import FAMILIES, NAMES
from twinflow.objectives.dmd2 import DMD2
from twinflow.pipelines import AnyStepPipeline, LoraSettings
from twinflow.pipelines.quantise import LIBRARIES, Kind, quantise
from twinflow.planner import Planner, gpu_named, sources
from twinflow.planner import network as network_module
from twinflow.planner.prediction import backbone_of
from twinflow.recipes.sections import Lora, Optimizer
from twinflow.training.ema import trained_parameters

from .measured import measured, objective, planned, setup_of
from .middle_sized import middle_sized_stock


def middle_sized() -> AnyStepPipeline:
    """On pictures of 1024 tokens."""
    return AnyStepPipeline(
        middle_sized_stock(heads=4), call=FAMILIES["qwen"].call | {"height": 256, "width": 256}
    )


@pytest.fixture(scope="module")
def pipe() -> AnyStepPipeline:
    return middle_sized()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ({}, {}),
        ({}, {"checkpointing": True}),
        ({}, {"autocast": True}),
        ({}, {"autocast": True, "checkpointing": True}),
        ({"in_backward": True}, {"checkpointing": True}),
        ({"name": "adafactor", "in_backward": True}, {"checkpointing": True, "freeze": ("*_mod.*",)}),
    ],
    ids=str,
)
def test_the_peak_is_that_of_a_real_step(
    pipe: AnyStepPipeline, optimizer: dict[str, Any], options: dict[str, Any]
) -> None:
    pipe.network.requires_grad_(True)
    setup = setup_of(pipe, batch=4, optimizer=Optimizer(clip=None, **optimizer), **options)
    foretold, real = planned(pipe, setup).peak, measured(pipe, setup)
    assert foretold == pytest.approx(real, rel=0.02)


@pytest.mark.slow
def test_a_tiny_network_is_planned_as_well() -> None:
    """Of so little the output and its gradient are a good part: each counts once."""
    family = FAMILIES["sd3"]
    pipe = AnyStepPipeline(family.stock(), call=family.call)
    setup = setup_of(pipe, batch=4, optimizer=Optimizer(clip=None), checkpointing=True)
    assert planned(pipe, setup).peak == pytest.approx(measured(pipe, setup), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("in_backward", [False, True])
def test_the_peak_of_three_networks(in_backward: bool) -> None:
    """Both phases of DMD2, with the discriminator on the fake score's features."""
    family = FAMILIES["sd3"]
    pipe, method = AnyStepPipeline(family.stock(), call=family.call), DMD2(times=(1.0,), guidance=1.0)
    optimizer = Optimizer(clip=None, in_backward=in_backward)
    setup = setup_of(pipe, batch=4, optimizer=optimizer, checkpointing=True)
    assert planned(pipe, setup, method).peak == pytest.approx(measured(pipe, setup, method), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [None, "int8", "nf4"])
def test_a_lora_is_as_large_as_a_real_one(quantize: Kind | None) -> None:
    stock = middle_sized_stock(heads=4)
    if quantize is not None:
        pytest.importorskip(LIBRARIES[quantize])
        quantise(stock.transformer, quantize)
    pipe = AnyStepPipeline(stock, call=FAMILIES["qwen"].call | {"height": 256, "width": 256})
    setup = setup_of(
        pipe, batch=2, optimizer=Optimizer(), lora=Lora(rank=4), quantize=quantize, checkpointing=True
    )
    planner = Planner(backbone_of(pipe), objective())
    pipe.add_lora(LoraSettings(rank=4))
    plan = planner.plan(setup, gpu_named("h100-80"))
    sizes = {component.name: component.bytes for component in plan.components}
    real = trained_parameters(pipe.network)
    # The plan has one layer more: queries of the last block's text, whose gradients are there, and zero.
    extra = 4 * (128 + 128)
    assert plan.trained == sum(p.numel() for p in real.values()) + extra
    assert sizes["optimiser states"] == 2 * (sum(p.nbytes for p in real.values()) + 4 * extra)  # AdamW's
    weights = list(pipe.pipe.transformer.parameters())
    buffers = sum(b.nbytes for b in pipe.pipe.transformer.buffers())
    assert sizes["weights"] == sum(stored(p) for p in weights) + 4 * extra + buffers
    if quantize is None:
        assert plan.profile.peak == pytest.approx(measured(pipe, setup), rel=0.05)


def stored(weight: Tensor) -> int:
    """Bytes of a weight, with what a quantised one keeps beside."""
    if (state := getattr(weight, "quant_state", None)) is not None:
        return weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    if hasattr(weight, "qdata"):
        return weight.qdata.nbytes + weight.scale.nbytes + weight.zero_point.nbytes
    return weight.nbytes


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "sd3"])  # which is above
def test_every_family_is_planned(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its state is: tokens, a picture, a clip, a list; and whatever it reads off its masks."""
    for side in ("VAE_IMAGE_SIZE", "CONDITION_IMAGE_SIZE"):  # sources of 1024 x 1024 would take minutes
        monkeypatch.setattr(pipeline_qwenimage_edit_plus, side, 64 * 64)
    monkeypatch.setitem(sources.SOURCE_AREAS, "QwenImageEditPlusPipeline", 64 * 64)
    family = FAMILIES[name]
    pipe = AnyStepPipeline(family.stock(), call=family.call, fold_padding=False)
    setup = setup_of(pipe, batch=4, optimizer=Optimizer(clip=None))
    assert planned(pipe, setup).peak == pytest.approx(measured(pipe, setup), rel=0.1)


@pytest.mark.slow
def test_a_source_picture_counts_as_much_as_the_one_drawn() -> None:
    family, sides = FAMILIES["flux2_klein"], {"height": 64, "width": 64}
    source = {"image": Image.new("RGB", (64, 64), "red")}
    pipe = AnyStepPipeline(family.stock(), call=family.call | sides | source)
    setup = setup_of(pipe, batch=4, optimizer=Optimizer(clip=None))
    peak = planned(pipe, setup).peak
    assert peak == pytest.approx(measured(pipe, setup), rel=0.1)
    assert peak > 1.2 * planned(pipe, replace(setup, edits=False)).peak


@pytest.mark.parametrize("autocast", [False, True])
def test_short_cuts_change_nothing(
    pipe: AnyStepPipeline, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autocast keeps the weights that it has cast until a call is over, those of blocks that were left out too."""
    pipe.network.requires_grad_(True)
    setup = setup_of(pipe, batch=4, optimizer=Optimizer(clip=None), checkpointing=True, autocast=autocast)
    short = planned(pipe, setup)
    monkeypatch.setattr(network_module, "_KEPT", 99)
    whole = planned(pipe, setup)
    assert short.peak == whole.peak
    assert short.step_flops == whole.step_flops
    assert short.gradients == whole.gradients
    dead = {
        f"transformer_blocks.6.{name}" for name in ("attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")
    }
    assert short.dead == whole.dead
    assert {name.rpartition(".")[0] for name in short.dead} == dead
